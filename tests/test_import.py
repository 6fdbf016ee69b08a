"""``import finescope`` and ``import finescope.ops`` stay light and silent.

A heavy import hidden in a module that everything imports costs every command seconds. What is heavy is listed
by name, so that the test does not depend on the speed of the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "transformers", "tokenizers", "datasets", "huggingface_hub", "pyarrow", "sklearn", "scipy", "matplotlib",
    "rich", "click", "yaml", "pandas", "sentence_transformers", "pybind11", "setuptools", "pydantic",
    "jinja2",
)  # fmt: skip


def modules_after(statement: str, before: str = "") -> set[str]:
    script = (
        f"import sys\n{before}\nhad = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - had))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1, "importing printed something"
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import finescope", "import finescope.ops", "import finescope.diagnostics", "import finescope.config"],
)
def test_nothing_heavy(statement: str) -> None:
    added = modules_after(statement, "import torch")
    assert "finescope" in added
    assert not {name.partition(".")[0] for name in added} & set(HEAVY)


def test_bare_import_leaves_torch_alone() -> None:
    assert "torch" not in modules_after("import finescope")


@pytest.mark.parametrize("statement", ["import finescope.curation", "import finescope.cli.options"])
def test_who_scores_codes_does_not_pay_for_the_models_side(statement: str) -> None:
    added = modules_after(statement)
    assert "finescope.embeddings.pooler" in added
    assert not added & {"finescope.activations", "finescope.embeddings.rows", "finescope.sae.train"}

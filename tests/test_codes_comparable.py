"""Codes of corpus and targets that were made in different ways aren't compared: what differs is named.

Scores of such codes are numbers like any other, so nobody would notice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.config import SaeConfig
from finescope.embeddings.store import CodeStore
from finescope.sae import SparseAutoencoder
from support.cli_job import save_job, save_tiny_model

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, rows, and an autoencoder from elsewhere: nothing beside it says what it was trained without."""
    folder = save_job(tmp_path_factory.mktemp("job"))
    (folder / "template.jinja").write_text(TEMPLATE)
    SparseAutoencoder(32, SaeConfig(num_latents=64, k=4)).save(folder / "sae")
    assert embed(folder, "corpus", folder / "codes").exit_code == 0
    return folder


def embed(job: Path, rows: str, out: Path, *options: Any, model: Path | None = None) -> Result:
    place = ["--model", model or job / "model", "--sae", job / "sae", "--corpus", job / f"{rows}.jsonl"]
    layer = () if "--layer" in options else ("--layer", "layers.0")
    return invoke("embed", *place, *layer, "--out", out, *options)


def score(job: Path, targets: Path) -> Result:
    return invoke("score", job / "codes", targets, "--out", targets.parent / "scores.parquet")


def test_codes_made_alike_are_compared_and_have_one_limit_of_sinks(job: Path, tmp_path: Path) -> None:
    assert embed(job, "seeds", tmp_path / "seeds").exit_code == 0
    assert score(job, tmp_path / "seeds").exit_code == 0
    limits = [
        CodeStore(path).fingerprint()["origin"]["max_norm"] for path in (job / "codes", tmp_path / "seeds")
    ]
    assert limits == [json.loads((job / "sae" / "sinks.json").read_text())["max_norm"]] * 2
    assert embed(job, "seeds", tmp_path / "mean", "--pooling", "mean").exit_code == 0
    assert score(job, tmp_path / "mean").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sinks", "keep"], "limits of attention sinks (--sinks"),
        (["--layer", "layers.1"], "layers (--layer): encoder.layer.0 and encoder.layer.1"),
        (["--dtype", "bfloat16"], "dtypes of the model (--dtype): torch.float32 and torch.bfloat16"),
        (["--activation-dtype", "bfloat16"], "(--activation-dtype): float16 and bfloat16"),
        (["--max-length", 32], "lengths of window (--max-length): 64 and 32"),
        (["--max-length", 32, "--stride", 4], "overlaps of windows (--stride): 0 and 4"),
        (["--chat-template", "template.jinja"], "ways to write out conversations (--chat-template"),
        (["--top-k-activations", 3], "numbers of latents kept (--top-k-activations): 100 and 3"),
    ],
)
def test_what_differs_is_named(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[Any], words: str
) -> None:
    monkeypatch.chdir(job)
    made = embed(job, "seeds", tmp_path / "seeds", *options)
    assert made.exit_code == 0, made.stderr
    result = score(job, tmp_path / "seeds")
    assert result.exit_code == 1
    assert words in result.stderr
    assert "embed one of them again" in result.stderr
    several = invoke("score", job / "codes", f"a={tmp_path / 'seeds'}", "--out", tmp_path / "sets")
    assert several.exit_code == 1
    assert words in several.stderr


def test_another_model_is_named(job: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    other = save_tiny_model(tmp_path / "model")
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(9)
    changed = {name: weight + torch.rand_like(weight) / 8 for name, weight in weights.items()}
    save_file(changed, other / "model.safetensors", {"format": "pt"})
    assert embed(job, "seeds", tmp_path / "seeds", model=other).exit_code == 0
    assert "weights of the model (--model)" in score(job, tmp_path / "seeds").stderr

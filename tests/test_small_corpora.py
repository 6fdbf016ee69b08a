"""The main job on as little as there can be, and on rows that can't be told apart.

Fails if: a corpus of fewer tokens than a batch, or of one short row, gives no selection; equal rows give
none, or others than the first; an autoencoder that nothing can be scored with, or a corpus of targets, gives
an empty file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from support.cli_job import rows_of, save_tiny_model, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def _curate(model: Path, folder: Path, corpus: list[Any], targets: list[Any], *more: Any) -> Result:
    arguments = [
        "curate",
        "--model",
        model,
        "--layer",
        "layers.0",
        "--device",
        "cpu",
        "--out",
        folder / "out",
    ]
    arguments += ["--corpus", write_jsonl(folder / "corpus.jsonl", corpus), "-k", 5]
    arguments += ["--targets", write_jsonl(folder / "targets.jsonl", targets), *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def _chosen(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "out" / "curated.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rows", [1, 40])
def test_a_single_word_trains_no_autoencoder_and_that_is_said(tmp_path: Path, model: Path, rows: int) -> None:
    """Its one activation is the mean: nothing fires. The file of the curated rows was empty, and all well."""
    done = _curate(model, tmp_path, [{"text": "cats"}] * rows, [{"text": "dogs"}], "--preset", "paper")
    assert done.exit_code == 1
    assert f"none of the {rows} rows can be scored" in done.stderr
    assert "give more rows, or an autoencoder" in done.stderr
    assert not list((tmp_path / "out").glob("curated.*"))


def test_one_short_row_is_chosen(tmp_path: Path, model: Path) -> None:
    done = _curate(model, tmp_path, [{"text": "the small cats purr"}], [{"text": "the dogs bark"}])
    assert done.exit_code == 0, done.stderr
    assert [row["text"] for row in _chosen(tmp_path)] == ["the small cats purr"]


def test_rows_that_are_all_alike_are_chosen_in_their_order(tmp_path: Path, model: Path) -> None:
    corpus = [{"id": f"r{at}", "text": "the small cats"} for at in range(40)]
    done = _curate(model, tmp_path, corpus, rows_of("animals", 3, seed=1))
    assert done.exit_code == 0, done.stderr
    chosen = _chosen(tmp_path)
    assert [row["id"] for row in chosen] == [f"r{at}" for at in range(5)]
    assert len({row["finescope_score"] for row in chosen}) == 1


def test_a_corpus_of_targets_alone_is_refused(tmp_path: Path, model: Path) -> None:
    """The file of the curated rows was empty, and all well."""
    rows = rows_of("animals", 4, seed=1)
    done = _curate(model, tmp_path, [*rows, {"id": "e", "text": ""}], rows)
    assert done.exit_code == 1
    assert "nothing to select: 4 of the 5 rows are targets themselves" in done.stderr
    assert not list((tmp_path / "out").glob("curated.*"))

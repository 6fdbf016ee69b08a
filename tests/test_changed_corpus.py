"""Rows that aren't those that were scored are named by whatever reads them again, and nothing is written.

Without that, a corpus that was edited, sorted or cut after the scoring gives texts that nothing has scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.workflow.finished import open_run
from support.cli_job import save_run

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose corpus is of one format, and whose curated rows are of the other."""
    folder = tmp_path_factory.mktemp("job")
    ours, other = request.param, {"jsonl": "parquet", "parquet": "jsonl"}[request.param]
    return save_run(folder, "--format", other, corpus=f"corpus.{ours}")


@pytest.fixture
def run(made: Path) -> Iterator[Path]:
    """The run; corpus and targets are put back at the end, as old as they were."""
    files = [path for path in (*made.parent.glob("corpus.*"), made.parent / "seeds.jsonl") if path.is_file()]
    held = [(path.read_bytes(), path.stat()) for path in files]
    yield made
    for path, (data, was) in zip(files, held, strict=True):
        path.write_bytes(data)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def rewrite(path: Path, change: Callable[[Rows], Rows]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(change(pq.read_table(path).to_pylist())), path)
        return
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def corpus_of(run: Path) -> Path:
    return Path(json.loads((run / "manifest.json").read_text())["configuration"]["corpus"][0])


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def commands(run: Path, out: Path) -> dict[str, list[Any]]:
    """Whatever reads texts of a finished run, and writes into ``out`` if anywhere beyond the run."""
    table = ["select", run / "scores.parquet", "--corpus", corpus_of(run), "-k", 12, "--out"]
    return {
        "select": ["select", run, "-k", 12, "-q"],
        "table to jsonl": [*table, out / "picked.jsonl"],
        "table to parquet": [*table, out / "picked.parquet"],
        "explain": ["explain", run, "#3"],
        "latents": ["latents", run],
        "diff": ["diff", run],
        "atlas": ["export", run, "--format", "atlas", "--out", out / "atlas.parquet"],
    }


CHANGES: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "other texts": (
        lambda rows: [{**row, "text": f"{row['text']} new"} for row in rows],
        "has another text than the scores are of",
    ),
    "other capitals": (
        lambda rows: [{**row, "text": row["text"].upper()} for row in rows],
        "has another text than the scores are of",
    ),
    "texts that changed places": (
        lambda rows: [{**row, "text": rows[-1 - at]["text"]} for at, row in enumerate(rows)],
        "has another text than the scores are of",
    ),
    "another order": (lambda rows: rows[::-1], "the row's id is"),
    "a row removed in front": (lambda rows: rows[1:], "the row's id is"),
    "rows removed at the end": (lambda rows: rows[:3], "there are only 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_corpus_is_named_and_nothing_is_written(run: Path, tmp_path: Path, change: str) -> None:
    how, words = CHANGES[change]
    (curated,) = run.glob("curated.*")
    before = curated.read_bytes()
    rewrite(corpus_of(run), how)
    for name, arguments in commands(run, tmp_path).items():
        result = invoke(*arguments)
        assert result.exit_code == 1, (name, result.output)
        assert words in result.stderr, name
        assert "changed since it was scored" in result.stderr, name
    assert not list(tmp_path.iterdir())
    assert curated.read_bytes() == before


def test_rows_that_came_after_disturb_nobody(run: Path, tmp_path: Path) -> None:
    for name, arguments in commands(run, tmp_path).items():
        assert invoke(*arguments).exit_code == 0, name
    (curated,) = run.glob("curated.*")
    before = curated.read_bytes()
    rewrite(corpus_of(run), lambda rows: [*rows, {**rows[0], "id": "late"}])
    for name, arguments in commands(run, tmp_path).items():
        assert invoke(*arguments).exit_code == 0, name
    assert curated.read_bytes() == before


def test_labels_of_a_changed_corpus_are_not_read(run: Path) -> None:
    select = ["select", run, "--label-column", "label", "--target-label", "sky", "-q"]
    rewrite(corpus_of(run), lambda rows: [*rows, {**rows[0], "id": "late"}])
    result = invoke(*select)
    assert "the scores are of only 120 rows; the corpus has changed" in result.stderr
    rewrite(corpus_of(run), lambda rows: rows[:100])
    assert "there are 100 rows, but the scores are of 120" in invoke(*select).stderr
    rewrite(corpus_of(run), lambda rows: [{**row, "text": row["text"][1:]} for row in rows])
    assert "has another text than the scores are of" in invoke(*select).stderr


def test_targets_that_changed_are_not_shown_as_those_that_were_near(run: Path) -> None:
    rewrite(
        run.parent / "seeds.jsonl", lambda rows: [{**row, "text": f"other {row['text']}"} for row in rows]
    )
    result = invoke("select", run, "-k", 5, "-q")
    assert result.exit_code == 1
    assert "the targets have changed since they were scored" in result.stderr


def test_a_table_of_scores_without_checksums_is_still_read(run: Path, tmp_path: Path) -> None:
    table = pq.read_table(run / "scores.parquet")
    pq.write_table(table.drop_columns(["text_crc32"]), tmp_path / "old.parquet")
    arguments = [
        "select",
        tmp_path / "old.parquet",
        "--corpus",
        corpus_of(run),
        "--out",
        tmp_path / "p.jsonl",
    ]
    assert invoke(*arguments, "-k", 3).exit_code == 0
    rewrite(corpus_of(run), lambda rows: rows[::-1])
    assert "the row's id is" in invoke(*arguments, "-k", 4).stderr


def test_a_run_keeps_where_the_rows_of_files_of_lines_stand(run: Path) -> None:
    marks = open_run(run).context.corpus.files[0].marks
    assert [mark.row for mark in marks] == ([0] if corpus_of(run).suffix == ".jsonl" else [])

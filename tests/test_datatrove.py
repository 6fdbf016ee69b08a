"""Documents in a pipeline of datatrove score what the run gives its rows, in whatever task or process.

Run by datatrove itself. Fails if: a kept document scores otherwise than the row of the run; documents are
kept or dropped against the limit; one without a code passes it; the model is loaded again for each task; what
is missing isn't said with its remedy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from support.cli_job import save_run

LIMIT = 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its corpus again in three files, one of which also holds a document without a known word."""
    folder = tmp_path_factory.mktemp("datatrove")
    save_run(folder, "--scorer", "contrast+tfidf")
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    (folder / "data").mkdir()
    for number in range(3):
        part = lines[number::3] + ([json.dumps({"id": "blank", "text": "\u2003"})] if number == 1 else [])
        (folder / "data" / f"{number}.jsonl").write_text("\n".join(part) + "\n")
    return folder


def kept(run: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(run / "scores.parquet").to_pylist()}


@pytest.fixture
def executed(
    folder: Path, tmp_path: Path
) -> Callable[..., tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Runs a filter over the documents; gives those that come through and those dropped, as written."""
    pytest.importorskip("datatrove", reason="datatrove isn't installed (pip install 'finescope[datatrove]')")
    pytest.importorskip("orjson", reason="orjson isn't installed, by which datatrove writes")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    from finescope.integrations.datatrove import FineScopeFilter

    def run(min_score: float | None, tasks: int = 1, workers: int = 1, **options: Any) -> Any:
        dropped = JsonlWriter(str(tmp_path / "dropped"), compression=None)
        step = FineScopeFilter(folder / "run", min_score, exclusion_writer=dropped, batch_size=16, **options)
        out = JsonlWriter(str(tmp_path / "kept"), compression=None)
        LocalPipelineExecutor(
            [JsonlReader(str(folder / "data")), step, out],
            tasks=tasks,
            workers=workers,
            logging_dir=str(tmp_path / "logs"),
        ).run()
        return read(tmp_path / "kept"), read(tmp_path / "dropped")

    return run


def read(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().split("\n") if line]


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (3, 1), (3, 2)])
def test_documents_are_kept_by_the_scores_of_the_run(
    folder: Path, executed: Any, tasks: int, workers: int
) -> None:
    came, went = executed(LIMIT, tasks, workers)
    rows = kept(folder / "run")
    assert {row["id"] for row in came} == {name for name, row in rows.items() if row["score"] >= LIMIT}
    for document in [*came, *went]:
        if document["id"] == "blank":
            continue
        row, said = rows[document["id"]], document["metadata"]
        assert said["finescope_score"] == row["score"]
        assert said["finescope_nearest_target"] == row["nearest_target"]
        assert said["finescope_nearest_similarity"] == row["nearest_similarity"]
        assert said["label"] in ("animals", "sky")
    assert 0 < len(came) < len(rows)
    reasons = {row["id"]: row["metadata"]["filter_reason"] for row in went}
    assert reasons.pop("blank") == "finescope_no_code"
    assert set(reasons.values()) == {"finescope_low_score"}


def test_without_a_limit_all_come_through_with_their_scores(folder: Path, executed: Any) -> None:
    came, went = executed(None, device="cpu", batch_tokens=64)
    rows = kept(folder / "run")
    scores = {row["id"]: row["metadata"]["finescope_score"] for row in came}
    assert scores.pop("blank") is None
    assert scores == {name: row["score"] for name, row in rows.items()}
    assert went == []


def test_a_document_without_a_code_passes_no_limit(folder: Path, executed: Any) -> None:
    came, went = executed(-1e9)
    assert [row["id"] for row in went] == ["blank"]
    assert len(came) == len(kept(folder / "run"))


def test_the_model_is_loaded_once_for_all_tasks_of_a_process(
    executed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finescope.integrations import datatrove as integration

    opened: list[str] = []

    class Counted(integration.RowScorer):
        def __init__(self, run: str, **options: Any) -> None:
            opened.append(run)
            super().__init__(run, **options)

    monkeypatch.setattr(integration, "RowScorer", Counted)
    integration._loaded.cache_clear()
    executed(LIMIT, tasks=3)
    integration._loaded.cache_clear()
    assert len(opened) == 1


def test_without_datatrove_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['datatrove'] = None\n"
        "try:\n    import finescope.integrations.datatrove\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'finescope[datatrove]'" in done.stdout

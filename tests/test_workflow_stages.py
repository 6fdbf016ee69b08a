"""A stage is a value: it can be sent elsewhere, says what it reads and writes, and is done once per input."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finescope.workflow
from finescope.curation.limits import REASONS
from finescope.curation.scoring.table import ScoreTable
from finescope.curation.selected import Selection
from finescope.errors import InputError, StoreError
from finescope.progress import Reporter
from finescope.workflow.context import Context
from finescope.workflow.job import Job
from finescope.workflow.scored import ScoredRows
from finescope.workflow.stage import Stage
from finescope.workflow.stages.activations import CollectActivations
from finescope.workflow.stages.check import Check
from finescope.workflow.stages.embed import Embed
from finescope.workflow.stages.evaluate import Evaluate
from finescope.workflow.stages.manifest import Manifest
from finescope.workflow.stages.report import Averaged, Report
from finescope.workflow.stages.score import Score
from finescope.workflow.stages.select import Select
from finescope.workflow.stages.sets import (
    SET_FOLDERS,
    IndexSets,
    ManifestSets,
    ReportSets,
    ScoreSets,
    SelectSets,
)
from finescope.workflow.stages.sinks import FindSinks
from finescope.workflow.stages.train import Train
from finescope.workflow.tables import read_selection, write_scores, write_selection

STAGES = [
    Check(), CollectActivations(), FindSinks(), Train(), Embed("corpus"), Embed("targets"), Score(), Select(),
    Evaluate(), Report(), Report(Averaged(("a", "b"), ())), Manifest(),
    ScoreSets(), SelectSets(), ReportSets(), ReportSets(Averaged(("a", "b"), ())), IndexSets(),
    ManifestSets(),
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_can_be_sent_elsewhere(stage: Stage) -> None:
    there = pickle.loads(pickle.dumps(stage))
    assert there == stage
    assert there is not stage
    assert (there.name, there.reads, there.writes) == (stage.name, stage.reads, stage.writes)


def test_whatever_a_stage_reads_another_one_writes() -> None:
    written = {name for stage in STAGES for name in stage.writes}
    read = {name for stage in STAGES for name in stage.reads} - {"corpus", "targets", "model", SET_FOLDERS}
    assert read
    assert read <= written


def test_every_stage_of_the_package_is_listed_here() -> None:
    folder = Path(finescope.workflow.__file__).parent / "stages"
    classes = {
        node.name
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Stage" for base in node.bases)
    }
    assert classes == {type(stage).__name__ for stage in STAGES}


@dataclass(frozen=True)
class Square(Stage):
    """Writes the square of a number."""

    number: int
    dear: bool = False

    name = "square"
    reads = ()
    writes = ("squares", "square.txt")

    @property
    def expensive(self) -> bool:
        return self.dear

    def decisive(self, context: Context) -> Mapping[str, Any]:
        return {"number": self.number}

    def work(self, context: Context) -> Mapping[str, Any]:
        (context.folder / "squares").mkdir(parents=True, exist_ok=True)
        (context.folder / "squares" / str(self.number)).touch()
        (context.folder / "square.txt").write_text(str(self.number**2))
        if self.number < 0:
            raise KeyboardInterrupt
        return {"found": self.number**2}


def open_context(folder: Path, **options: bool) -> Context:
    rows = folder / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    job = Job.from_dict({"targets": str(rows), "corpus": [str(rows)], "out": str(folder / "out")})
    return Context(job, Reporter(quiet=True), **options)


def test_a_stage_is_done_once_per_input_and_again_when_a_file_is_gone(tmp_path: Path) -> None:
    context = open_context(tmp_path)
    assert Square(3).run(context)
    assert not Square(3).run(context)
    assert not Square(3).run(open_context(tmp_path))
    assert context.ledger.facts("square")["found"] == 9
    (context.folder / "square.txt").unlink()
    assert Square(3).run(context)
    assert Square(4).run(context)
    assert sorted(path.name for path in (context.folder / "squares").iterdir()) == ["4"]
    assert (context.folder / "square.txt").read_text() == "16"


def test_a_stage_that_was_cut_off_is_done_again_and_keeps_what_it_had(tmp_path: Path) -> None:
    context = open_context(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Square(-2).run(context)
    assert context.ledger.begun("square")
    assert context.ledger.facts("square") == {}
    with pytest.raises(KeyboardInterrupt):
        Square(-2).run(context)
    assert sorted(path.name for path in (context.folder / "squares").iterdir()) == ["-2"]


def test_a_dear_result_of_other_inputs_is_kept_until_restart(tmp_path: Path) -> None:
    assert Square(3, dear=True).run(open_context(tmp_path))
    with pytest.raises(
        InputError, match=r"holds the square of another run \(number was 3, now 5\).*--restart"
    ):
        Square(5, dear=True).run(open_context(tmp_path))
    assert (tmp_path / "out" / "square.txt").read_text() == "9"
    assert Square(5, dear=True).run(open_context(tmp_path, restart=True))
    assert (tmp_path / "out" / "square.txt").read_text() == "25"
    (tmp_path / "out" / "stages" / "square.json").unlink()
    assert Square(6, dear=True).run(open_context(tmp_path, restart=True))
    assert sorted(path.name for path in (tmp_path / "out" / "squares").iterdir()) == ["6"]


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    context = open_context(tmp_path)
    Square(3).run(context)
    (context.folder / "stages" / "square.json").write_text('["of another kind"]')
    with pytest.raises(StoreError, match=r"square\.json is not a note about a stage"):
        Square(3).run(context)


@pytest.mark.parametrize(("scorer", "drawn"), [("contrast", False), ("random", True), ("max+random", True)])
def test_a_random_order_is_scored_again_with_another_seed(scorer: str, drawn: bool, tmp_path: Path) -> None:
    for name in ("corpus", "targets"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}')

    def decisive(seed: int) -> Mapping[str, Any] | None:
        job = Job.from_dict(
            {
                "corpus": [str(tmp_path / "corpus.jsonl")], "targets": str(tmp_path / "targets.jsonl"),
                "out": str(tmp_path), "scorer": scorer, "seed": seed,
            }
        )  # fmt: skip
        return Score().decisive(Context(job, Reporter(quiet=True)))

    assert decisive(1) == decisive(1)
    assert (decisive(1) != decisive(2)) is drawn


def test_what_was_fitted_in_other_folds_is_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("corpus", "targets"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}')
    job = {"corpus": [str(tmp_path / "corpus.jsonl")], "targets": str(tmp_path / "targets.jsonl")}

    def decisive(scorer: str) -> Mapping[str, Any] | None:
        whole = Job.from_dict({**job, "out": str(tmp_path), "scorer": scorer})
        return Score().decisive(Context(whole, Reporter(quiet=True)))

    before = decisive("ridge+tfidf"), decisive("contrast+tfidf")
    monkeypatch.setattr("finescope.workflow.stages.score.FOLDS", 3)
    assert decisive("ridge+tfidf") != before[0]
    assert decisive("contrast+tfidf") == before[1]


def test_scores_are_read_once_and_again_when_they_are_written_again(tmp_path: Path) -> None:
    for name in ("corpus", "targets"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}')
    job = {"corpus": [str(tmp_path / "corpus.jsonl")], "targets": str(tmp_path / "targets.jsonl")}
    context = Context(Job.from_dict({**job, "out": str(tmp_path)}), Reporter(quiet=True))
    with pytest.raises(StoreError, match="run `finescope score`"):
        context.scored()
    for value in (1.0, 2.0):
        table = ScoreTable(np.full(3, value), np.zeros(3, np.int64), np.ones(3), np.ones(3, np.bool_), "max")
        rows = ScoredRows(table, ["a", "b", "c"], ["t"], np.ones(3, np.int64), np.zeros(3, np.bool_), {})
        write_scores(tmp_path / "scores.parquet", rows)
        assert context.scored().table.score.tolist() == [value] * 3
        assert list(context.scored().ids) == ["a", "b", "c"]
        assert context.scored() is context.scored()


def test_a_selection_comes_back_from_its_file(tmp_path: Path) -> None:
    reason = np.full(6, REASONS.index("beyond_limit"), np.uint8)
    reason[[4, 1]] = REASONS.index("selected")
    reason[2] = REASONS.index("near_duplicate")
    made = Selection(np.array([4, 1]), reason, {2: 4}, 17, {"k": 2, "min_score": 0.5})
    zeros = np.zeros(6)
    table = ScoreTable(zeros, np.zeros(6, np.int64), zeros, np.ones(6, np.bool_), "max")
    ids = [f"r{row}" for row in range(6)]
    rows = ScoredRows(table, ids, ["t"], np.ones(6, np.int64), np.zeros(6, np.bool_), {})
    write_selection(tmp_path / "selection.parquet", rows, made)
    found = read_selection(tmp_path / "selection.parquet")
    assert found.indices.tolist() == [4, 1]
    assert np.asarray(found.reason).tolist() == reason.tolist()
    assert found.counts == made.counts
    assert (found.tokens, found.config) == (17, made.config)
    with pytest.raises(StoreError, match="does not exist; select the rows again"):
        read_selection(tmp_path / "nothing.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="truncated or not a Parquet file"):
        read_selection(tmp_path / "broken.parquet")

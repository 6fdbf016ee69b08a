"""The shards of a stage are worked on by the engine of the run, and by nobody else.

Fails if: rows are embedded without the engine being asked; it is asked for finished shards again; what it is
given isn't the plan; work is done ahead of whoever takes the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from finescope.corpus.plan import Planner, Shard
from finescope.embeddings import CodeStore
from finescope.progress import Reporter
from finescope.workflow import context
from finescope.workflow.engines.engine import Result, Work
from finescope.workflow.engines.local import Local
from finescope.workflow.job import Job
from finescope.workflow.run import Run
from support.cli_job import save_job


class Noting(Local):
    """The local engine, which notes what it was asked for, and may break down."""

    def __init__(self, breaks_after: int = 1000) -> None:
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "left", breaks_after)

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        do = work.open()
        for shard in shards:
            if len(self.asked) == self.left:
                raise KeyboardInterrupt
            self.asked.append(shard)
            yield do(shard)

    asked: list[Shard]
    left: int


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"), animals=20, sky=40)


def run(folder: Path, out: Path, engine: Local) -> Run:
    asked: dict[str, Any] = {
        "model": str(folder / "model"), "layer": "layers.0", "targets": str(folder / "seeds.jsonl"),
        "corpus": [str(folder / "corpus.jsonl")], "out": str(out), "device": "cpu", "draws": 0,
        "training": {"num_epochs": 1}, "selection": {"k": 5},
    }  # fmt: skip
    return Run(Job.from_dict(asked), Reporter(quiet=True), engine=engine)


def test_planned_shards_go_through_the_engine_once(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "Planner", lambda: Planner(16))
    whole = Noting()
    first = run(job, tmp_path / "whole", whole)
    first.curate()
    shards = first.context.plan("corpus")  # targets are few: no worker is sent for them
    assert [shard.rows for shard in shards] == [16, 16, 16, 12]
    assert whole.asked == shards
    broken, rest = Noting(breaks_after=2), Noting()
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "again", broken).curate()
    run(job, tmp_path / "again", rest).curate()
    assert broken.asked + rest.asked == shards
    stores = [CodeStore(tmp_path / name / "codes/corpus") for name in ("whole", "again")]
    assert stores[0].codes() == stores[1].codes()


def test_work_waits_until_its_result_is_asked_for() -> None:
    done: list[int] = []

    class Noted:
        def open(self) -> Any:
            return lambda shard: done.append(shard.first)

    results = Local().over(Noted(), [Shard(at, 1, "") for at in range(3)])
    assert done == []
    next(results)
    assert done == [0]

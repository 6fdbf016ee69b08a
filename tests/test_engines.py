"""The shards of a stage are worked on by the engine of the run, and by nobody else.

Fails if: rows are embedded without the engine being asked; it is asked for finished shards again; what it is
given isn't the plan; work is done ahead of whoever takes the results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked

from finescope.cli import main
from finescope.corpus.plan import Planner, Shard
from finescope.embeddings import CodeStore
from finescope.progress import Reporter
from finescope.workflow import context
from finescope.workflow.engines.engine import Result, Work
from finescope.workflow.engines.local import Local
from finescope.workflow.engines.ray import Ray
from finescope.workflow.job import Job
from finescope.workflow.run import Run


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


def invoke(job: Path, out: Path, *options: str) -> Invoked:
    words = [
        "curate", "--model", job / "model", "--layer", "layers.0", "--targets", job / "seeds.jsonl",
        "--corpus", job / "corpus.jsonl", "--out", out, "-k", 5, "--device", "cpu", "--draws", 0,
        "--set", "training.num_epochs=1", "-q", *options,
    ]  # fmt: skip
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    "options",
    [
        ("--address", "auto"),
        ("--worker-gpus", "1"),
        ("--worker-cpus", "2"),
        ("--engine", "processes", "--address", "auto"),
        ("--engine", "local", "--worker-gpus", "0.5"),
    ],
)
def test_options_of_a_cluster_go_with_its_engine(job: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    refused = invoke(job, tmp_path / "out", *options)
    assert refused.exit_code == 2
    assert "--address, --worker-cpus and --worker-gpus go with --engine ray" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_engines_are_checked_and_handed_on(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, words in (
        (("--engine", "spark"), "'spark' is not one of"),
        (("--engine", "local", "--workers", "2"), "--workers"),
        (("--engine", "ray", "--worker-gpus", "-1"), "--worker-gpus"),
    ):
        refused = invoke(job, tmp_path / "out", *options)
        assert refused.exit_code == 2, options
        assert words in refused.stderr
    asked: list[Ray] = []

    def over(self: Ray, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        asked.append(self)
        return Local().over(work, shards)

    monkeypatch.setattr(Ray, "over", over)
    cluster = ("--address", "10.0.0.7:6379", "--workers", "3", "--worker-cpus", "2", "--worker-gpus", "0.5")
    done = invoke(job, tmp_path / "out", "--engine", "ray", *cluster)
    assert done.exit_code == 0, done.stderr
    assert {(one.address, one.workers, one.cpus, one.gpus, one.device) for one in asked} == {
        ("10.0.0.7:6379", 3, 2.0, 0.5, "cpu")
    }


def test_without_ray_its_engine_says_how_to_have_it(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = invoke(job, tmp_path / "out", "--engine", "ray")
    assert refused.exit_code == 1
    assert "pip install 'finescope[ray]'" in refused.stderr

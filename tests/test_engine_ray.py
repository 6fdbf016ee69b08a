"""Actors of a Ray cluster share the shards of a run, while machines of it are lost and others join.

Real clusters of this machine, of as many raylets as nodes. Fails if: the files of a run differ from those of
one process; a lost node ends the run; a worker that no node has room for is waited for in silence; one that
no node has room for yet is refused where a launcher starts more; that work is done without GPUs isn't said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.corpus.plan import Planner, Shard
from finescope.demo.docstrings import collect_docstrings
from finescope.demo.text import find_model
from finescope.errors import InputError
from finescope.workflow import context
from finescope.workflow.engines import ray as engine
from finescope.workflow.engines.engine import Result, Work
from finescope.workflow.engines.ray import Ray
from support.cli_job import write_jsonl
from support.crew_work import Numbering
from support.run_files import contents, curated

pytestmark = [
    pytest.mark.slow,
    # Ray's own remarks: on its GPUs to come, and on sockets that it leaves to the collector.
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHARDS = [Shard(10 * number, 10, "", number) for number in range(5)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a CPU each, and this process joined to them."""
    for found in _cluster(monkeypatch, num_cpus=1):
        found.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield found


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, which says of itself what KubeRay and ``ray up`` have heads say."""
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "headgroup")
    yield from _cluster(monkeypatch, num_cpus=0)


def _cluster(monkeypatch: pytest.MonkeyPatch, num_cpus: int) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    ray = pytest.importorskip("ray", reason="ray isn't installed (pip install 'finescope[ray]')")
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": num_cpus, "object_store_memory": 100 << 20}
    found = Cluster(initialize_head=True, head_node_args=arguments)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as an actor of one CPU has, whose sums are rounded alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_docstrings(folder: Path) -> dict[str, Any]:
    """Write docstrings of Python's own library, and some as targets; return a job that a real model reads.

    Most of them are no part of the sample, so that actors read them by the model.
    """
    try:
        model = find_model()
    except InputError as error:
        pytest.skip(str(error))
    rows = [row.to_dict() for row in collect_docstrings(["stdlib"], min_per_label=20, max_per_label=45)]
    assert len(rows) > 250
    folder.mkdir()
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "seeds.jsonl", rows[:12])
    return {"model": model, "layer": "encoder.layer.3", "train_tokens": 3000, "draws": 0}


@dataclass(frozen=True)
class Disturbed(Ray):
    """A cluster of which a node is lost twice, and in which another one joins each time a shard later."""

    cluster: Any = None

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        for number, result in enumerate(super().over(work, shards)):
            yield result
            if number in (0, 2):
                (other,) = self.cluster.worker_nodes
                self.cluster.remove_node(other, allow_graceful=False)
            elif number in (1, 3):
                self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20)


def test_a_run_whose_nodes_are_killed_and_added_leaves_the_files_of_one_process(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Python's docstrings, read by MiniLM."""
    lost: list[str] = []
    real = engine.Gone

    def noted(how: str) -> Any:
        lost.append(how)
        return real(how)

    job, settings = tmp_path / "job", save_docstrings(tmp_path / "job")
    monkeypatch.setattr(context, "Planner", lambda: Planner(48))
    curated(job, tmp_path / "one", **settings)
    monkeypatch.setattr(engine, "Gone", noted)
    disturbed = Disturbed(2, say=lambda words: None, cluster=cluster)
    curated(job, tmp_path / "ray", engine=disturbed, **settings)
    assert lost, "an actor was lost with its node"
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_what_is_asked_for_is_held_against_what_there_is(cluster: Any, tmp_path: Path) -> None:
    refused = r"asks for 1 CPU and 1 GPU, and no machine.*1 CPU, 0 GPU; 1 CPU, 0 GPU"
    with pytest.raises(InputError, match=refused):
        list(Ray(1, gpus=1.0).over(Numbering(tmp_path), SHARDS))
    with pytest.raises(InputError, match=r"asks for 2 CPU, and no machine.*--worker-cpus"):
        list(Ray(1, cpus=2.0).over(Numbering(tmp_path), SHARDS))
    said: list[str] = []
    done = list(Ray(3, say=said.append).over(Numbering(tmp_path), SHARDS))
    assert "no machine of the cluster has a GPU now, so workers run on CPUs" in said[0]
    assert said[1:] == [
        "ray: there is room for 2 of 3 workers of 1 CPU each; the others begin when machines join"
    ]
    assert sorted(number for number, _, _ in done) == list(range(5))


def test_gpus_that_must_be_are_asked_for(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"asks for 1 CPU and 1 GPU, and no machine"):
        list(Ray(1, device="cuda").over(Numbering(tmp_path), SHARDS))
    said: list[str] = []
    assert len(list(Ray(1, device="cpu", say=said.append).over(Numbering(tmp_path), SHARDS))) == 5
    assert said == []


def test_a_cluster_that_begins_with_nothing_is_waited_for(
    head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE", 2.0)
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        if "no worker is ready yet" in words and not head.worker_nodes:
            head.add_node(num_cpus=1, object_store_memory=100 << 20)  # as an autoscaler would

    done = list(Ray(2, device="cpu", say=say).over(Numbering(tmp_path), SHARDS))
    assert sorted(number for number, _, _ in done) == list(range(5))
    assert said[0] == (
        "ray: a worker asks for 1 CPU, and no machine of the cluster has that (they have: 0 CPU, 0 GPU); "
        "waiting for one to join. If the cluster starts none such, ask for less with --worker-cpus and "
        "--worker-gpus"
    )
    assert said[1].startswith("ray: no worker is ready yet")


def test_killed_actors_are_replaced_and_errors_arrive(cluster: Any, tmp_path: Path) -> None:
    done = list(Ray(2).over(Numbering(tmp_path, kills=((1, 1), (4, 2))), SHARDS))
    assert sorted(number for number, _, _ in done) == list(range(5))
    with pytest.raises(InputError, match="row 30 is bad") as caught:
        list(Ray(2).over(Numbering(tmp_path, refuses=3), SHARDS))
    assert "in _do" in str(caught.value.__cause__)

"""Batches of Ray Data get the scores of a run, in whatever form they come.

The last test runs on a real cluster of this machine. Fails if: a row scores otherwise than in the run; a
batch comes back as another kind or loses a column; nulls and conversations are read otherwise than from a
file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finescope import InputError
from finescope.integrations.ray import AddScores
from support.cli_job import save_run

BOTH = {"nearest": True, "tokens": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run by one thread, as actors of one CPU have, over rows one of which has no text."""
    folder, threads = tmp_path_factory.mktemp("ray-data"), torch.get_num_threads()
    torch.set_num_threads(1)
    save_run(folder, corpus="corpus.parquet")
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def add(folder: Path) -> AddScores:
    return AddScores(folder / "run", **BOTH)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]


def told(folder: Path) -> dict[str, tuple[Any, ...]]:
    table = pq.read_table(folder / "run" / "scores.parquet").to_pylist()
    wanted = ("score", "nearest_target", "nearest_similarity", "tokens")
    return {row["id"]: tuple(row[name] for name in wanted) for row in table}


def scored(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("score", "nearest_target", "nearest_similarity", "tokens")
    return tuple(row[f"finescope_{name}"] for name in names)


def test_a_dictionary_of_arrays(folder: Path, add: AddScores) -> None:
    batch = {name: np.array([row[name] for row in rows(folder)][:40]) for name in ("id", "text", "label")}
    found = add({**batch, "finescope_score": np.zeros(40)})
    assert list(found) == [
        "id", "text", "label", "finescope_score",
        "finescope_nearest_target", "finescope_nearest_similarity", "finescope_tokens",
    ]  # fmt: skip
    each = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    assert [scored(row) for row in each] == [told(folder)[row["id"]] for row in each]
    assert found["label"].tolist() == batch["label"].tolist()


def test_a_table_keeps_nulls(folder: Path, add: AddScores) -> None:
    given = pa.Table.from_pylist([*rows(folder)[:9], {"id": "nothing", "text": None, "label": "sky"}])
    found = add(given)
    assert found.select(given.column_names).equals(given)
    *each, nothing = found.to_pylist()
    assert [scored(row) for row in each] == [told(folder)[row["id"]] for row in each]
    assert scored(nothing) == (None, None, None, 0)
    again = add(found)
    assert again.equals(found)
    assert add(given.slice(0, 0)).schema == found.schema


def test_a_frame(folder: Path, add: AddScores) -> None:
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame([*rows(folder)[:9], {"id": "nothing", "text": None, "label": "sky"}])
    found = add(given)
    assert list(found.columns[:3]) == ["id", "text", "label"]
    *each, nothing = found.to_dict("records")
    assert [scored(row) for row in each] == [told(folder)[row["id"]] for row in each]
    assert np.isnan(nothing["finescope_score"])


def test_conversations_are_read_from_every_kind(folder: Path, add: AddScores) -> None:
    turns = [{"role": "user", "content": "cats purr", "name": None}, {"role": "user", "content": "small"}]
    table = pa.Table.from_pylist([{"messages": turns}])
    wanted = add({"text": np.array(["user: cats purr\nuser: small"])})["finescope_score"]
    assert add(table)["finescope_score"].to_pylist() == wanted.tolist()
    nested = np.empty(1, object)
    nested[0] = np.array(table["messages"].to_pylist()[0], object)
    assert add({"messages": nested})["finescope_score"].tolist() == wanted.tolist()
    with pytest.raises(InputError, match="no column 'text'; there are 'body'"):
        add({"body": np.array(["cats"])})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_actors_of_a_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's own 15 a busy machine starves them
    ray = pytest.importorskip("ray", reason="ray isn't installed (pip install 'finescope[ray]')")
    pytest.importorskip("pandas", reason="Ray Data imports pandas (pip install 'ray[data]')")
    ray.init("local", num_cpus=2, object_store_memory=100 << 20, log_to_driver=False, include_dashboard=False)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        for kind in ("numpy", "pyarrow"):
            found = ray.data.read_parquet(str(folder / "corpus.parquet")).map_batches(
                AddScores,
                fn_constructor_kwargs={"run": str(folder / "run"), **BOTH},
                compute=ray.data.ActorPoolStrategy(size=1),
                batch_size=16,
                batch_format=kind,
            )
            assert {row["id"]: scored(row) for row in found.take_all()} == told(folder)
    finally:
        ray.shutdown()

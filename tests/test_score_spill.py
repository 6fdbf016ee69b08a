"""Scores of very many rows are found on the disk and written in groups: the files are those of few rows.

What depends on how many rows there are shows with large corpora only, when nobody compares any more. So the
limits are made small, and the same corpus is scored with all of it in memory.
"""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import SparseCodes
from finescope.curation.scoring import sums
from finescope.curation.scoring.fitted import Scoring, score_in_passes, score_together
from finescope.curation.scoring.presets import PRESETS
from finescope.embeddings import CodeStore, CodeStoreWriter
from finescope.errors import StoreError
from finescope.storage import spill
from finescope.storage.spill import Spill
from finescope.workflow.sets import read_sets, score_sets, write_sets
from finescope.workflow.stages.score import score_stores
from finescope.workflow.tables import evidence_of, read_scores, write_scores

ROWS, F = 83, 24
RECIPES = ["contrast", "paper", "contrast+0.5*tfidf+random", "ridge+length", "default"]


def a_store(folder: Path, rows: int, *, shard: int, seed: int, name: str) -> CodeStore:
    """Codes of rows with texts; some rows are empty, and some are targets of any other store."""
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, F)) * (rng.random((rows, F)) < 0.3)
    dense[rng.random(rows) < 0.1] = 0.0
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 30, 8)) for _ in range(rows)]
    texts[:2] = ["the same words", "the same words"]
    with CodeStoreWriter(folder, F, facts={"pooling": "sqrt_mean"}) as store:
        for low in range(0, rows, shard):
            part = slice(low, low + shard)
            codes = SparseCodes.from_dense(torch.from_numpy(dense[part].astype(np.float32)))
            ids = [f"{name} {row}" for row in range(rows)][part]
            store.write(codes, ids, n_tokens=[len(text) % 7 for text in texts[part]], texts=texts[part])
        store.finish()
    return CodeStore(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[CodeStore]:
    folder = tmp_path_factory.mktemp("stores")
    corpus = a_store(folder / "corpus", ROWS, shard=11, seed=0, name="row")
    return [
        corpus,
        *(a_store(folder / name, 5, shard=5, seed=at, name=name) for at, name in enumerate("ab", start=1)),
    ]


@pytest.fixture(params=[(7, 0), (11, 100), (82, 0), (83, 0)])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows in a group, and no room in memory; or room for columns of narrow types only."""
    rows, held = request.param
    for module in ("scored", "fresh", "tables", "stages.score"):
        monkeypatch.setattr(f"finescope.workflow.{module}.ROWS", rows)
    monkeypatch.setattr(spill, "HELD_BYTES", held)


def scoring(stores: list[CodeStore], scorer: str) -> Scoring:
    recipe = PRESETS.get(scorer, "default")
    given = {} if scorer in PRESETS else {"scorer": scorer}
    return Scoring(evidence_of(stores[0]), evidence_of(stores[1]), recipe, **given)


@pytest.fixture(scope="module", params=RECIPES)
def expected(request: pytest.FixtureRequest, stores: list[CodeStore]) -> tuple[str, Any, dict[str, Any]]:
    """A scorer, its scores as they are found in memory, and what it has learned."""
    made = scoring(stores, request.param)
    return request.param, made.score(), made.state()


@pytest.mark.usefixtures("small")
def test_scores_found_on_the_disk_are_those_found_in_memory(
    stores: list[CodeStore], expected: tuple[str, Any, dict[str, Any]], tmp_path: Path
) -> None:
    scorer, table, state = expected
    made = scoring(stores, scorer)
    rows = score_stores(stores[0], stores[1], made)
    write_scores(tmp_path / "scores.parquet", rows)
    saved = read_scores(tmp_path / "scores.parquet")
    for found in (rows, saved):
        for name, values in table.columns().items():
            assert found.table.columns()[name].tobytes() == values.tobytes(), name
        assert list(found.ids) == stores[0].ids()
        assert found.tokens.tolist() == stores[0].token_counts().tolist()
        assert np.asarray(found.crc32).tolist() == np.asarray(stores[0].known("corpus").crc32).tolist()
        assert found.targets_in_corpus == {"same_text": 2, "same_id": 0, "other_text": 0}
        assert np.flatnonzero(found.is_target).tolist() == [0, 1]
        some = np.array([80, 3, 10, 11])
        assert list(found.at(some).ids) == [f"row {row}" for row in some]
    assert {name: value.numpy().tobytes() for name, value in made.state().items()} == {
        name: value.numpy().tobytes() for name, value in state.items()
    }


def test_tables_of_several_sets_are_the_same_bytes(
    stores: list[CodeStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = dict(zip("ab", stores[1:], strict=True))
    recipe = PRESETS["default"]
    write_sets(tmp_path / "held", score_sets(stores[0], sets, recipe))
    monkeypatch.setattr(spill, "HELD_BYTES", 0)
    write_sets(tmp_path / "spilled", score_sets(stores[0], sets, recipe))
    for name in ("a", "b", "rows"):
        files = [(tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("held", "spilled")]
        assert files[0] == files[1]
    for rows in read_sets(tmp_path / "spilled").values():
        assert rows.targets_in_corpus == {"same_text": 2, "same_id": 0, "other_text": 0, "of_other_sets": 0}


def test_groups_of_rows_are_looked_at_in_any_order(
    stores: list[CodeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "HELD_BYTES", 0)
    (found,) = score_in_passes([scoring(stores, "contrast")])
    (table,) = score_together([scoring(stores, "contrast")])
    for low, high in ((40, 83), (0, 41), (82, 83), (5, 5)):
        part = found[slice(low, high)]
        assert part.score.tobytes() == table.score[low:high].tobytes()
        assert part.nearest_target.tolist() == table.nearest_target[low:high].tolist()


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200),
    st.integers(1, 5),
    st.sampled_from([128, 136, 500]),
)
@settings(max_examples=200, deadline=None)
def test_moments_are_those_of_numpy(numbers: list[float], times: int, block: int) -> None:
    values = np.tile(np.array(numbers), times * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_BLOCK", block)
        mean, spread = sums.moments_of(values)
    assert (mean.hex(), spread.hex()) == (float(values.mean()).hex(), float(values.std()).hex())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_spill_is_an_array(writes: list[tuple[int, int]], held: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "HELD_BYTES", 1000 if held else 0)
        found, expected = Spill(30, np.int32), np.zeros(30, np.int32)
    found[0:30] = 0
    for number, ends in enumerate(writes, start=1):
        rows = slice(min(ends), max(ends))
        found[rows] = expected[rows] = np.arange(rows.stop - rows.start) + number
    assert len(found) == 30
    for low, high in ((0, 30), (3, 17), (29, 30), (4, 4)):
        assert found[low:high].tolist() == expected[low:high].tolist()
        assert found[low:high].dtype == np.int32


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "HELD_BYTES", 0)
    found = Spill(10, np.float64)

    class Full:
        def seek(self, place: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(found, "_file", Full())
    with pytest.raises(StoreError, match="the disk is full") as error:
        found[0:3] = np.zeros(3)
    assert tempfile.gettempdir() in str(error.value)


def test_tables_of_a_store_come_in_blocks_whatever_its_shards(stores: list[CodeStore]) -> None:
    whole = stores[0].table(["id", "n_tokens"])
    for rows in (1, 5, 11, 12, 50, 83, 99):
        blocks = list(stores[0].table_blocks(["id", "n_tokens"], rows))
        assert [block.num_rows for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
        assert pa.concat_tables(blocks).equals(whole)

"""Rows of a store of codes are read one by one where few are wanted: those, and nothing of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.curation.blocks import row_access
from finescope.embeddings import CodeStore, CodeStoreWriter
from finescope.errors import StoreError

ROWS, LATENTS = 103, 50


def write(folder: Path) -> tuple[CodeStore, SparseCodes]:
    generator = torch.Generator().manual_seed(3)
    dense = torch.rand(ROWS, LATENTS, generator=generator)
    dense *= dense > 0.7
    dense[[0, 40, 102]] = 0.0
    codes = SparseCodes.from_dense(dense.half())
    with CodeStoreWriter(folder, LATENTS) as writer:
        for low, high in ((0, 1), (1, 40), (40, 41), (41, 90), (90, ROWS)):
            writer.write(codes[low:high], [f"row {row}" for row in range(low, high)])
        writer.finish()
    return CodeStore(folder), codes


@pytest.mark.parametrize(
    "rows",
    [[], [0], [102], [5, 5, 5], [102, 0, 41, 40, 39, 1], list(range(ROWS)), list(range(ROWS))[::-1]],
    ids=["none", "first", "last", "repeats", "across shards", "all", "backwards"],
)
def test_rows_are_those_asked_for_in_that_order(tmp_path: Path, rows: list[int]) -> None:
    store, codes = write(tmp_path / "codes")
    found = store.take(np.array(rows, np.int64))
    assert found == codes[np.array(rows, np.int64)]
    assert found.values.dtype == torch.float16
    assert found.indices.dtype == torch.uint16
    assert row_access(store).take(np.array(rows, np.int64)) == found


@pytest.mark.parametrize("row", [-1, ROWS])
def test_rows_that_are_not_there(tmp_path: Path, row: int) -> None:
    store, _ = write(tmp_path / "codes")
    with pytest.raises(IndexError, match=rf"from {min(row, 3)} to {max(row, 3)}, outside 0\.\.{ROWS - 1}"):
        store.take([row, 3])


def test_no_shard_stays_mapped(tmp_path: Path) -> None:
    store, _ = write(tmp_path / "codes")
    found = store.take([2, 50])
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert found.nnz > 0


def damage(shard: Path, tensor: str, place: int, value: int) -> None:
    """Overwrite one whole number of a shard, whose size stays."""
    raw = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:start])[tensor]
    size = {"I64": 8, "U16": 2}[entry["dtype"]]
    at = start + entry["data_offsets"][0] + place * size
    raw[at : at + size] = value.to_bytes(size, "little")
    shard.write_bytes(raw)


def test_damage_is_met_where_it_is_and_only_there(tmp_path: Path) -> None:
    store, codes = write(tmp_path / "codes")
    shard = sorted((tmp_path / "codes").glob("*.safetensors"))[3]  # rows 41 … 89
    bounds = (codes[41:90].indptr - codes[41:90].indptr[0]).tolist()
    damage(shard, "indices", bounds[9], LATENTS + 7)
    assert store.take([49, 51, 3]) == codes[np.array([49, 51, 3])]
    with pytest.raises(StoreError, match=rf"{shard.name} is corrupt: latent {LATENTS + 7}"):
        store.take([3, 50])
    damage(shard, "indptr", 4, bounds[5] + 1)
    with pytest.raises(StoreError, match=rf"{shard.name} is corrupt: indptr"):
        store.take([88])

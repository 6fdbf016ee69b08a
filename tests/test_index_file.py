"""An index in a file: the same bytes as in memory, bounded memory, and refused once it isn't what was saved.

A packed copy beside rows it was not made from would make wrong answers that look right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from finescope import Index, SparseCodes, StoreError, ops
from finescope.search import blocked as mapped
from finescope.search.blocked import BlockedRows
from support.equivalence import assert_same_bytes


@pytest.fixture(autouse=True)
def _many_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks with packed copies, whatever screens this machine has; and memory that is given back."""
    monkeypatch.setattr(mapped, "PACKED_BYTES", 400 * 24 * 4)
    monkeypatch.setattr(mapped, "READ_BYTES", 170 * 24 * 4)
    monkeypatch.setattr(mapped, "WORTH_KEEPING", 9.0)
    monkeypatch.setattr("finescope.search.index.PACKED_BYTES", 0)


def _packed(index: Index) -> list[int]:
    """How many packed blocks the parts have."""
    return [len(part.packed) if isinstance(part, BlockedRows) else -1 for part in index._parts]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_same_bytes_as_before(tmp_path: Path, metric: str, packed: bool, mmap: bool) -> None:
    queries, corpus = torch.randn(7, 24), torch.randn(3001, 24)
    names = torch.randperm(3001) + 2**40
    index = Index(corpus[:1800], metric=metric, ids=names[:1800])
    index.add(corpus[1800:1900].bfloat16(), ids=names[1800:1900])
    index.add(corpus[1900:1900], ids=names[:0])
    index.add(corpus[1900:2400].half(), ids=names[1900:2400])
    index.add(corpus[2400:], ids=names[2400:])
    options: dict[str, Any] = {
        "min_score": 0.05,
        "exclude": names[torch.randint(0, 3001, (7, 5))],
        "mask": torch.rand(3001) < 0.8,
    }
    index.save(tmp_path / "new" / "corpus.index", packed=packed)
    loaded = Index.load(tmp_path / "new" / "corpus.index", mmap=mmap)
    assert (len(loaded), loaded.width, loaded.metric) == (3001, 24, metric)
    if ops.native.module("cpu") is not None:
        assert any(count > 1 for count in _packed(loaded)) == packed
    for _ in range(3):
        assert_same_bytes(loaded.search(queries, 11, **options), index.search(queries, 11, **options))
        assert_same_bytes(loaded.search(queries[:1], 900), index.search(queries[:1], 900))
    loaded.add(corpus[:3].double(), ids=[0, 1, 2])
    index.add(corpus[:3].double(), ids=[0, 1, 2])
    assert_same_bytes(loaded.search(queries, 5), index.search(queries, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_are_kept_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    corpus = torch.randn(900, 24).to(dtype)
    corpus[5, 3], corpus[6] = torch.nan, 0.0
    Index(corpus).save(tmp_path / "corpus")
    with safe_open(tmp_path / "corpus", framework="pt") as file:
        held = file.get_tensor("rows.0")
    assert held.dtype == dtype
    assert torch.equal(held.view(torch.uint8), corpus.view(torch.uint8))
    queries = torch.randn(4, 24)
    assert_same_bytes(Index.load(tmp_path / "corpus").search(queries, 9), Index(corpus).search(queries, 9))


def test_sparse_codes(tmp_path: Path) -> None:
    dense = torch.relu(torch.randn(300, 40))
    index = Index(SparseCodes.from_dense(dense[:100]))
    index.add(SparseCodes.from_dense(dense[100:]))
    index.save(tmp_path / "codes")
    queries = SparseCodes.from_dense(dense[:6])
    for mmap in (True, False):
        got = Index.load(tmp_path / "codes", mmap=mmap).search(queries, 9)
        assert_same_bytes(got, index.search(queries, 9))


def test_memory_mapped_arrays(tmp_path: Path) -> None:
    """Packed in memory, or saved without ever being in memory; changes that are in no file are searched."""
    queries, corpus = torch.randn(5, 24), torch.randn(2000, 24)
    np.save(tmp_path / "rows.npy", corpus.numpy())
    for mode in ("r", "r+", "c"):
        array = np.load(tmp_path / "rows.npy", mmap_mode=mode)
        if mode == "c":
            corpus[1700] = queries[0]
            array[1700] = queries[0].numpy()
        wanted = ops.cosine_topk(queries, corpus, 9)
        for view, rows in ((array, corpus), (array[100:], corpus[100:]), (array[::-1], corpus.flip(0))):
            index = Index(view)
            for _ in range(2):
                assert_same_bytes(index.search(queries, 9), ops.cosine_topk(queries, rows, 9))
                index.pack()
        index = Index(array)
        index.save(tmp_path / "corpus")
        assert_same_bytes(Index.load(tmp_path / "corpus").search(queries, 9), wanted)
    columns = np.load(tmp_path / "rows.npy", mmap_mode="r")[:, 3:20]
    got = Index(columns).search(queries[:, 3:20], 9)
    assert_same_bytes(got, ops.cosine_topk(queries[:, 3:20], torch.from_numpy(np.array(columns)), 9))


def test_pack_in_memory() -> None:
    queries, corpus = torch.randn(5, 24), torch.randn(2000, 24)
    index = Index(corpus)
    index.pack()
    assert index._packed[0]._packed is not None
    assert_same_bytes(index.search(queries, 9), ops.cosine_topk(queries, corpus, 9))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Index(torch.randn(1200, 24), ids=range(1200)).save(tmp_path / "corpus")
    return tmp_path / "corpus"


def test_every_changed_byte_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = len(content[8 : 8 + size].rstrip())
    places = [0, 7, 8, 8 + text // 2, 8 + text - 1, 8 + size, len(content) - 1]
    places += np.random.default_rng(0).integers(8 + size, len(content), 40).tolist()
    for place in places:
        for mmap in (True, False):
            saved.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            with pytest.raises(StoreError, match="corpus"):
                Index.load(saved, mmap=mmap)
    saved.write_bytes(content)
    Index.load(saved)


def test_the_part_that_changed_is_named(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        row = file.get_tensor("rows.0")[700].tobytes()
    content = saved.read_bytes()
    assert content.count(row) == 1
    saved.write_bytes(content.replace(row, bytes(len(row))))
    with pytest.raises(StoreError, match=r"was changed .*: rows\.0 .*don't belong together"):
        Index.load(saved)


def test_truncated_files_are_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in (0, 1, 8, 100, 4000, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(StoreError, match=r"truncated|corrupt"):
            Index.load(saved)
    saved.write_bytes(content + b"\0")
    with pytest.raises(StoreError, match="bytes instead of"):
        Index.load(saved)


def test_copies_are_accepted_once_they_are_verified(saved: Path, tmp_path: Path) -> None:
    shutil.copyfile(saved, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime_ns != saved.stat().st_mtime_ns
    queries = torch.randn(3, 24)
    assert_same_bytes(Index.load(tmp_path / "copy").search(queries, 4), Index.load(saved).search(queries, 4))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing does not exist"):
        Index.load(tmp_path / "nothing")
    with pytest.raises(StoreError, match="is a folder"):
        Index.load(tmp_path)
    with pytest.raises(StoreError, match="it is a folder"):
        Index(torch.randn(3, 2)).save(tmp_path)
    SparseCodes.from_dense(torch.eye(3)).save(tmp_path / "codes")
    with pytest.raises(StoreError, match="no index"):
        Index.load(tmp_path / "codes")


@pytest.mark.parametrize("version", ["1", "2", "9"])
def test_other_versions_are_refused(saved: Path, version: str) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content.replace(b'"version":"3"', f'"version":"{version}"'.encode(), 1))
    with pytest.raises(StoreError, match=f"is of version {version}"):
        Index.load(saved)


def test_packed_copies_of_other_rows_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where checksums agree, the engine is never given a copy that it can't use."""
    wrong = torch.zeros(4096, dtype=torch.uint8)
    monkeypatch.setattr(BlockedRows, "pack", lambda self, metric: iter([wrong] * 3))
    Index(torch.randn(1200, 24)).save(saved)
    if ops.native.module("cpu") is None:
        Index.load(saved).search(torch.randn(2, 24), 3)  # nothing looks at them
    else:
        with pytest.raises(StoreError, match="the packed copy of rows 0 to 399 isn't one of them"):
            Index.load(saved)


def test_missing_packed_copies_are_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = torch.zeros(4096, dtype=torch.uint8)
    monkeypatch.setattr(BlockedRows, "pack", lambda self, metric: iter([some] * 2))
    Index(torch.randn(1200, 24)).save(saved)
    with pytest.raises(StoreError, match="2 packed copies for 1200 rows"):
        Index.load(saved)


def test_saved_over_the_file_it_is_mapped_from(saved: Path) -> None:
    queries = torch.randn(3, 24)
    index = Index.load(saved)
    wanted = index.search(queries, 4)
    index.add(torch.randn(50, 24), ids=range(2000, 2050))
    index.save(saved)
    assert len(Index.load(saved)) == 1250
    assert_same_bytes(Index.load(saved).search(queries, 4), index.search(queries, 4))
    assert_same_bytes(index.search(queries, 4, mask=torch.arange(1250) < 1200), wanted)


def test_a_save_that_fails_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved.read_bytes()
    index = Index(torch.randn(3000, 24))
    monkeypatch.setattr(os, "utime", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        index.save(saved)
    assert saved.read_bytes() == content
    assert [path.name for path in saved.parent.iterdir()] == ["corpus"]


_MEASURE = """
import sys, numpy as np, torch
from pathlib import Path
from finescope import Index
from finescope.search import blocked as mapped, index as search
mapped.READ_BYTES, mapped.PACKED_BYTES, mapped.WORTH_KEEPING = 8 << 20, 16 << 20, 9.0
search.PACKED_BYTES = 0
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
index = Index(torch.randn(40000, 128))
queries = torch.randn(8, 128)
for _ in range(3):
    index.search(queries, 10)
index = Index.load(sys.argv[1]) if sys.argv[2] == "packed" else Index(np.load(sys.argv[1], mmap_mode="r"))
before = peak()
index.search(queries, 10)
if sys.argv[2] == "save":
    index.save(sys.argv[1] + ".index")
print(peak() - before)
"""


@pytest.mark.requires_native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(
        tmp_path / "rows.npy", mode="w+", dtype=np.float32, shape=(320_000, 128)
    )
    for first in range(0, len(array), 40_000):
        array[first : first + 40_000] = np.random.default_rng(first).standard_normal((40_000, 128))
    array.flush()
    # As small as they are here, glibc would keep freed blocks for itself.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    for what, file in (("rows", "rows.npy"), ("save", "rows.npy"), ("packed", "rows.npy.index")):
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / file), what]
        grown = int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
        assert grown < 80_000, f"{what}: {grown} kB more for 160000 kB of rows"

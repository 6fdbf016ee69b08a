"""An index gives what one exact search over all its rows gives, however the rows arrived.

Blocks merged by rounded scores go wrong exactly where it is hardest to see: among near-duplicates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import finescope
from finescope import Index, SparseCodes, ops
from finescope.embeddings import CodeStore, CodeStoreWriter
from finescope.errors import StoreError
from finescope.search import blocked as mapped
from finescope.search import index as search
from finescope.storage import mapping
from finescope.storage.files import map_tensors
from support import oracle
from support.equivalence import assert_same_bytes
from support.rows import rows

KINDS = ["gaussian", "grid", "duplicates", "near", "equal"]


def _data(kind: str) -> tuple[Tensor, Tensor]:
    return rows(kind, 6, 24, torch.float32, 1), rows(kind, 500, 24, torch.float32, 2)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_merge_exactly(kind: str, metric: str) -> None:
    queries, corpus = _data(kind)
    wanted = oracle.search(oracle.dense_scores(queries, corpus, metric), 30, torch.float32)
    for sizes in ([500], [250, 250], [1, 499], [100, 0, 7, 393]):
        first, *others = corpus.split(sizes)
        index = Index(first, metric=metric)
        for block in others:
            index.add(block)
        assert len(index) == 500
        assert_same_bytes(index.search(queries, 30), wanted, f"{kind} {sizes}")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_blocks_merge_exactly(kind: str, metric: str) -> None:
    queries, corpus = (side * (torch.rand(side.shape) < 0.4) for side in _data(kind))
    wanted = oracle.search(oracle.sparse_scores(queries, corpus, metric), 30, torch.float32)
    codes = SparseCodes.from_dense(corpus)
    for cut in (0, 1, 250):
        index = Index(codes[:cut], metric=metric)
        index.add(codes[cut:])
        # From the second search on, packed.
        for turn in range(3):
            found = index.search(SparseCodes.from_dense(queries), 30)
            assert_same_bytes(found, wanted, f"{kind} {cut} {turn}")


def test_blocks_that_differ_below_float32() -> None:
    """Scores that round to the same float32 but are not equal: the later row is better and must win."""
    queries = torch.ones(1, 2)
    corpus = torch.tensor([[1.0, 2.0**-30], [1.0, 2.0**-29]])
    index = Index(corpus[:1], metric="ip")
    index.add(corpus[1:])
    scores, ids = index.search(queries, 2)
    assert scores.tolist() == [[1.0, 1.0]]
    assert ids.tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_memory_mapped_arrays_are_streamed(
    tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, corpus = _data("gaussian")
    array = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=dtype, shape=(500, 24))
    array[:] = corpus.numpy()
    array.flush()
    held = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    wanted = ops.cosine_topk(queries, held, 20)
    monkeypatch.setattr(mapped, "READ_BYTES", 70 * 24 * array.itemsize)
    asked: list[int] = []
    original = search.cosine_topk

    def record(queries_: Tensor, block: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        asked.append(len(block))
        return original(queries_, block, *args, **options)

    monkeypatch.setattr(search, "cosine_topk", record)
    index = Index(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert_same_bytes(index.search(queries, 20), wanted)
    assert asked == [70] * 7 + [10]


def test_arrays_in_memory() -> None:
    queries, corpus = _data("gaussian")
    wanted = ops.cosine_topk(queries, corpus, 9)
    array = corpus.numpy().copy()
    assert_same_bytes(Index(array).search(queries.numpy(), 9), wanted)
    assert_same_bytes(Index(array[::-1][::-1]).search(queries, 9), wanted)
    assert_same_bytes(Index(np.asfortranarray(array)).search(queries, 9), wanted)
    array.flags.writeable = False
    assert_same_bytes(Index(array).search(queries, 9), wanted)
    assert_same_bytes(
        Index(np.flip(array, 0)).search(queries, 9), ops.cosine_topk(queries, corpus.flip(0), 9)
    )


def test_mixed_dtypes_of_blocks() -> None:
    queries, corpus = _data("grid")
    index = Index(corpus[:200].half())
    index.add(corpus[200:300].bfloat16())
    index.add(corpus[300:].double())
    wanted = oracle.search(oracle.dense_scores(queries, corpus, "cosine"), 15, torch.float64)
    assert_same_bytes(index.search(queries, 15), wanted)


def test_filters_speak_of_positions_across_blocks() -> None:
    queries, corpus = _data("gaussian")
    mask, exclude = torch.rand(500) < 0.6, torch.randint(-1, 500, (6, 40))
    options: dict[str, Any] = {"mask": mask, "exclude": exclude, "min_score": 0.2}
    wanted = ops.cosine_topk(queries, corpus, 50, **options)
    index = Index(corpus[:123])
    index.add(corpus[123:])
    assert_same_bytes(index.search(queries, 50, **options), wanted)
    assert (wanted[1] == -1).any()


def test_own_ids() -> None:
    queries, corpus = _data("duplicates")
    names = torch.randperm(500) + 2**40
    scores, positions = ops.cosine_topk(queries, corpus, 20)
    index = Index(corpus[:200], ids=names[:200])
    index.add(corpus[200:], ids=names[200:].numpy())
    assert_same_bytes(index.search(queries, 20), (scores, names[positions]))
    exclude = torch.cat([names[positions[:, :3]], torch.full((6, 1), -1), torch.full((6, 1), 17)], dim=1)
    assert_same_bytes(index.search(queries, 17, exclude=exclude), (scores[:, 3:], names[positions[:, 3:]]))
    assert (index.search(queries, 600)[1][:, 500:] == -1).all()


def test_empty_and_too_much() -> None:
    queries, corpus = _data("gaussian")
    scores, ids = Index(corpus[:0]).search(queries, 3)
    assert ids.tolist() == [[-1] * 3] * 6
    assert (scores == -torch.inf).all()
    index = Index(corpus[:0], ids=[])
    index.add(corpus[:2], ids=[5, 3])
    assert index.search(queries, 4)[1][:, 2:].tolist() == [[-1, -1]] * 6
    assert index.search(queries[:0], 4)[1].shape == (0, 4)
    assert index.search(queries, 0)[0].shape == (6, 0)
    queries[2, 0], corpus[7, 3] = torch.nan, torch.nan
    half = Index(corpus[:250])
    half.add(corpus[250:])
    assert_same_bytes(half.search(queries, 499), ops.cosine_topk(queries, corpus, 499))


def test_complaints() -> None:
    queries, corpus = _data("gaussian")
    codes = SparseCodes.from_dense(corpus.relu())
    index = Index(corpus)
    with pytest.raises(ValueError, match=r"corpus must have shape \[N, D\], got \[24\]"):
        Index(corpus[0])
    with pytest.raises(ValueError, match="metric must be one of 'cosine', 'ip', got 'l2'"):
        Index(corpus, metric="l2")
    with pytest.raises(TypeError, match=r"corpus must be floating point, got torch\.int64"):
        Index(corpus.long())
    with pytest.raises(TypeError, match="corpus must be float16, float32 or float64, got int8"):
        Index(corpus.numpy().astype(np.int8))
    with pytest.raises(TypeError, match="SparseCodes or a CodeStore, got list"):
        Index([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the index has width 24, got a block of width 23"):
        index.add(corpus[:, 1:])
    with pytest.raises(TypeError, match="the index holds Tensor rows, got SparseCodes"):
        index.add(codes)
    with pytest.raises(ValueError, match="give ids for every block or for none"):
        index.add(corpus, ids=torch.arange(500))
    with pytest.raises(ValueError, match=r"ids must have shape \[N\] with N=500, got \[499\]"):
        Index(corpus, ids=torch.arange(499))
    with pytest.raises(ValueError, match="ids must be distinct"):
        Index(corpus, ids=torch.zeros(500, dtype=torch.int64))
    with pytest.raises(
        TypeError, match="queries must be a tensor or an array like the index, got SparseCodes"
    ):
        index.search(codes, 3)
    with pytest.raises(TypeError, match="queries must be SparseCodes like the index, got Tensor"):
        Index(codes).search(queries, 3)
    with pytest.raises(ValueError, match=r"mask must have shape \[N\] with N=500, got \[6\]"):
        index.search(queries, 3, mask=torch.ones(6, dtype=torch.bool))
    assert len(index) == 500, "a block that was refused left nothing behind"


def test_public_name_and_representation() -> None:
    assert finescope.Index is Index
    assert repr(Index(torch.zeros(3, 2))) == "Index(dense, N=3, width=2, metric='cosine')"


def test_ids_are_whole_numbers_that_no_padding_looks_like() -> None:
    rows = torch.eye(3)
    with pytest.raises(ValueError, match="must not be negative"):
        Index(rows, ids=[5, -1, 2])
    for bad in ([0.5, 1.7, 2.9], torch.tensor([0.0, 1.0, 2.0]), np.array([True, False, True])):
        with pytest.raises(TypeError, match="whole numbers"):
            Index(rows, ids=bad)
    for good in ([5, 7, 2], np.array([5, 7, 2], dtype=np.int32), range(5, 8), torch.tensor([5, 7, 2])):
        assert int(Index(rows, ids=good).search(rows[:1], 1)[1]) == 5


@pytest.mark.parametrize("ids", [None, [10, 11, 12]])
def test_filters_may_be_arrays_and_keep_their_dtypes(ids: list[int] | None) -> None:
    rows, own = torch.eye(3), [0, 1, 2] if ids is None else ids
    index = Index(rows, ids=ids)
    mask, exclude = np.array([True, True, False]), np.array([[own[0]]])
    assert index.search(rows[:1], 3, mask=mask, exclude=exclude)[1].tolist() == [[own[1], -1, -1]]
    with pytest.raises(TypeError, match="exclude must be int64"):
        index.search(rows[:1], 3, exclude=torch.tensor([[own[0]]], dtype=torch.int32))


def _store(folder: Path, codes: SparseCodes, rows: int) -> CodeStore:
    with CodeStoreWriter(folder, codes.num_latents, dtype=torch.float32) as writer:
        for first in range(0, len(codes), rows):
            part = codes[first : first + rows]
            writer.write(part, [str(first + n) for n in range(len(part))])
        writer.finish()
    return CodeStore(folder)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_store_is_searched_as_if_it_were_in_memory(tmp_path: Path, metric: str) -> None:
    codes = SparseCodes.from_dense(torch.rand(700, 24) * (torch.rand(700, 24) < 0.4))
    queries, mask = codes[:5], torch.rand(700) < 0.8
    exclude = torch.arange(5)[:, None]
    store = _store(tmp_path / "codes", codes, 300)
    wanted = Index(codes, metric=metric).search(queries, 40, mask=mask, exclude=exclude)
    index = Index(store, metric=metric)
    assert (len(index), index.width) == (700, 24)
    assert "sparse, N=700" in repr(index)
    assert_same_bytes(index.search(queries, 40, mask=mask, exclude=exclude), wanted, "store")
    for block_bytes in (1, 100, 1000):
        pieces = list(store.stream(block_bytes))
        assert [start for start, _ in pieces] == list(np.cumsum([0] + [len(c) for _, c in pieces[:-1]]))
        assert SparseCodes.cat([piece for _, piece in pieces]) == codes
    assert len(list(store.stream(1))) == 700


def test_a_damaged_shard_is_named_by_the_search(tmp_path: Path) -> None:
    codes = SparseCodes.from_dense(torch.rand(40, 24))
    store = _store(tmp_path / "codes", codes, 20)
    path = sorted((tmp_path / "codes").rglob("*.safetensors"))[1]
    content, indices = path.read_bytes(), map_tensors(path)[0]["indices"].numpy()
    wrong = indices.copy()
    wrong[7] = 24
    path.write_bytes(content.replace(indices.tobytes(), wrong.tobytes()))
    with pytest.raises(StoreError, match=rf"{path.name} is corrupt: rows from 0 hold a latent outside 0..23"):
        Index(store).search(codes[:2], 3)


def test_a_file_larger_than_memory_gives_its_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system is told: the pages are dropped behind the reader, and read again by the next search."""
    monkeypatch.setattr(mapping, "_memory", lambda: 1.0)
    monkeypatch.setattr(mapped, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(search, "PACKED_BYTES", 1)  # below that, nothing is given back
    advice: list[str] = []
    advise = mapping.MappedFile._advise
    monkeypatch.setattr(
        mapping.MappedFile,
        "_advise",
        lambda self, rows, name, **options: (advice.append(name), advise(self, rows, name, **options))[1],
    )
    corpus = torch.randn(3000, 40)
    np.save(tmp_path / "rows.npy", corpus.numpy())
    index = Index(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    queries = torch.randn(5, 40)
    for _ in range(2):
        assert_same_bytes(index.search(queries, 7), ops.cosine_topk(queries, corpus, 7))
    assert "MADV_PAGEOUT" in advice
    assert "MADV_POPULATE_READ" in advice

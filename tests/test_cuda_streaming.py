"""A corpus on the host, searched on a GPU through the ring of pinned buffers: bytes, memory, streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finescope import Index, SparseCodes, ops
from support import cuda_calls
from support.equivalence import assert_same_bytes
from support.rows import rows

pytestmark = cuda_calls.ONLY_CUDA

MEMORY = 3 << 20


def _on_cpu(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.cpu() for tensor in found)


@pytest.mark.parametrize("kind", ["gaussian", "near", "equal"])
@pytest.mark.parametrize("source", ["memory", "pinned", "mapped", "bfloat16"])
def test_same_bytes_as_one_search_on_the_cpu(tmp_path: Path, source: str, kind: str) -> None:
    dtype = torch.bfloat16 if source == "bfloat16" else torch.float32
    queries, corpus = rows(kind, 6, 64, dtype, 1), rows(kind, 60_000, 64, dtype, 2).contiguous()
    options: dict[str, Any] = {"mask": torch.rand(60_000) < 0.8, "exclude": torch.randint(-1, 60_000, (6, 9))}
    wanted = ops.cosine_topk(queries, corpus, 30, **options)
    held: Any = corpus
    if source == "pinned":
        held = corpus.pin_memory()
    elif source == "mapped":
        np.save(tmp_path / "rows.npy", corpus.numpy())
        held = np.load(tmp_path / "rows.npy", mmap_mode="r")
    index = Index(held, device="cuda", memory=MEMORY)
    for _ in range(2):
        assert_same_bytes(index.search(queries, 30, **options), wanted)
        found = index.search(queries.cuda(), 30, **options)
        assert found[0].device.type == "cuda"
        assert_same_bytes(_on_cpu(found), wanted)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        found = index.search(queries, 30, **options)
    assert_same_bytes(found, wanted)


def test_sparse_codes() -> None:
    codes = SparseCodes.from_dense(torch.rand(9000, 200) * (torch.rand(9000, 200) < 0.1))
    queries = codes[:5]
    wanted = Index(codes).search(queries, 20)
    assert_same_bytes(Index(codes, device="cuda", memory=1 << 19).search(queries, 20), wanted)
    assert_same_bytes(_on_cpu(Index(codes.to("cuda")).search(queries.to("cuda"), 20)), wanted)


def test_the_device_holds_the_ring_and_what_a_search_takes() -> None:
    corpus, queries = torch.randn(1_500_000, 64), torch.randn(16, 64)
    block = torch.randn(MEMORY // 3 // 256, 64, device="cuda")
    on_device = queries.cuda()
    peaks = []
    for work in (
        lambda: ops.cosine_topk(on_device, block, 10),
        lambda: Index(corpus, device="cuda", memory=MEMORY).search(queries, 10),
    ):
        work()  # cuBLAS keeps the workspace that it takes when it is first used
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert torch.cuda.memory_allocated() == before
    assert peaks[1] <= peaks[0] + MEMORY + (2 << 20), peaks


def test_no_room_for_the_ring() -> None:
    corpus = torch.randn(200_000, 64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (8 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="lower memory"):
            Index(corpus, device="cuda", memory=48 << 20).search(corpus[:2], 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert Index(corpus, device="cuda", memory=48 << 20).search(corpus[:2], 1)[1].tolist() == [[0], [1]]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_second_device() -> None:
    corpus = torch.randn(60_000, 64)
    wanted = ops.cosine_topk(corpus[:4], corpus, 9)
    index = Index(corpus, device="cuda:1", memory=MEMORY)
    assert_same_bytes(index.search(corpus[:4], 9), wanted)
    with pytest.raises(ValueError, match="must lie on the CPU or on the index's device cuda:1"):
        index.add(corpus.to("cuda:0"))

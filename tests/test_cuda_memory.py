"""Memory of the device: bounded while an operation works, all given back, also after running out of it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from finescope import ops
from support import cuda_calls
from support.cuda_calls import arguments, every_call, run
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.ONLY_CUDA


@pytest.fixture
def _limit_is_lifted() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def _peak(work: Callable[[], object]) -> int:
    """Bytes that ``work`` has allocated at its peak, its results included."""
    work()  # cuBLAS keeps the workspace that it takes when it is first used
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _leave(spare: int) -> None:
    """Let this process have only ``spare`` bytes more than it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + spare) / total)


@pytest.mark.usefixtures("_limit_is_lifted")
def test_running_out_of_memory() -> None:
    """A clear error; nothing is leaked; the same call succeeds when there is room again."""
    x, weight = torch.randn(2048, 256, device="cuda"), torch.randn(60_000, 256, device="cuda")
    wanted = tuple(tensor.cpu() for tensor in ops.topk_encode(x, weight, None, 32))
    gc.collect()
    before = torch.cuda.memory_allocated()
    for spare in (0, 4 << 20, 20 << 20):
        _leave(spare)
        with pytest.raises(RuntimeError, match=r"(?i)memory"):
            ops.topk_encode(x, weight, None, 32)
        gc.collect()
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    got = tuple(tensor.cpu() for tensor in ops.topk_encode(x, weight, None, 32))
    assert_same_bytes(got, wanted)


@pytest.mark.usefixtures("_limit_is_lifted")
@every_call
def test_every_operation_runs_out_of_memory_cleanly(call: str) -> None:
    """With no byte to spare: an error, or success where nothing needs to be allocated; never a leak."""
    args = arguments(call)
    run(call, args)
    gc.collect()
    before = torch.cuda.memory_allocated()
    _leave(0)
    message = "memory"
    try:
        run(call, args)
    except RuntimeError as error:
        message = str(error)
    assert "memory" in message.lower()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    torch.cuda.set_per_process_memory_fraction(1.0)
    run(call, args)


def _results(*shape: int) -> int:
    rows, k = shape
    return rows * k * 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_encoding_takes_a_twentieth_of_the_dense_matrix(dtype: torch.dtype) -> None:
    rows, latents, k = 8192, 131_072, 64
    x, weight = (torch.randn(n, 256, device="cuda", dtype=dtype) for n in (rows, latents))
    peak = _peak(lambda: ops.topk_encode(x, weight, None, k))
    dense = rows * latents * dtype.itemsize  # what torch must hold at least
    assert peak - _results(rows, k) < dense / 20, f"{peak / 2**20:.0f} MiB"


def test_searching_takes_a_twentieth_of_the_dense_matrix() -> None:
    queries, corpus = (torch.randn(n, 64, device="cuda") for n in (1024, 2_000_000))
    peak = _peak(lambda: ops.cosine_topk(queries, corpus, 100))
    assert peak - _results(1024, 100) < 1024 * 2_000_000 * 4 / 20, f"{peak / 2**20:.0f} MiB"


def test_memory_does_not_grow_with_the_corpus() -> None:
    queries = torch.randn(64, 64, device="cuda")
    peaks = []
    for rows in (500_000, 4_000_000):
        corpus = torch.randn(rows, 64, device="cuda")
        peaks.append(_peak(lambda corpus=corpus: ops.cosine_topk(queries, corpus, 10)))
        del corpus
    assert peaks[1] < peaks[0] + (8 << 20), peaks


def test_a_backward_holds_no_dense_matrix() -> None:
    rows, latents, width = 2048, 65_536, 128
    x = torch.randn(rows, width, device="cuda")
    weight = torch.randn(latents, width, device="cuda", requires_grad=True)

    def step() -> Tensor:
        values, _ = ops.topk_encode(x, weight, None, 32)
        (grad,) = torch.autograd.grad(values.sum(), weight)
        return grad

    peak = _peak(step)
    gradient = latents * width * 4
    assert peak < 2 * gradient + (256 << 20), f"{peak / 2**20:.0f} MiB"

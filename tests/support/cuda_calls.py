"""A call of every operation that has a CUDA kernel, large enough to take all its stages.

The tests of what can go wrong on a device (streams, graphs, waiting, memory, order) run each of them. Tensors
are made on the CPU, anew for every seed; run as a program, it makes every call once, for compute-sanitizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import finescope.ops  # noqa: F401  registers the operations
from finescope.codes import SparseCodes
from finescope.ops.registry import DEFAULTS

# The CUDA kernels may be compiled for the CPU (tests/cuda_on_cpu): then the same tests run there.
ON_CPU = bool(os.environ.get("FINESCOPE_TEST_CUDA_ON_CPU"))
DEVICE = "cpu" if ON_CPU else "cuda"
MARKS = [] if ON_CPU else [pytest.mark.requires_cuda]
# For tests of what only a device does.
ONLY_CUDA = [pytest.mark.requires_cuda, pytest.mark.skipif(ON_CPU, reason="needs a device")]

Args = tuple[Any, ...]


def _codes(n: int, f: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    dense = torch.rand(n, f) * (torch.rand(n, f) < 0.2)
    codes = SparseCodes.from_dense(dense.to(dtype))
    return codes.indptr, codes.indices, codes.values


def _encode(x: torch.dtype, w: torch.dtype) -> Args:
    return torch.randn(37, 72).to(x), torch.randn(3000, 72).to(w), torch.randn(3000), 19, "auto"


def _threshold(x: torch.dtype, w: torch.dtype) -> Args:
    scale, offset = torch.rand(3000), torch.randn(3000)
    sides = torch.randn(37, 72).to(x), torch.randn(3000, 72).to(w), torch.randn(3000)
    return *sides, torch.rand(3000) * 20 + 8, scale, offset, "auto"


def _search(dtype: torch.dtype, metric: str) -> Args:
    exclude, mask = torch.randint(-1, 4000, (9, 3)), torch.rand(4000) < 0.7
    sides = torch.randn(9, 70).to(dtype), torch.randn(4000, 70).to(dtype)
    return *sides, 30, metric, "auto", 0.05, exclude + 5 * (exclude >= 0), mask, 5


def _pairs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    indices = torch.randint(0, 300, (50, 12))
    indices[:, 0] = 7  # one latent that every token has
    return torch.randn(50, 12).to(dtype), indices


def _training(k: int) -> Args:
    values, indices = _pairs()
    return values, indices, torch.randn(300, 40), torch.randn(40), torch.randn(50, 40), k


def _grads(k: int) -> Args:
    values, indices = _pairs()
    grad = torch.randn(2 if k < 12 else 1, 50, 40)
    return torch.randn(50, 12), values, indices, torch.randn(50, 40), grad, k, 300


def _adam(unit: bool, *scales: Tensor) -> Args:
    weight = torch.nn.functional.normalize(torch.randn(300, 40))
    return (
        weight,
        torch.randn(300, 40),
        torch.randn(300, 40),
        torch.rand(300, 40),
        3,
        0.01,
        0.9,
        0.999,
        1e-8,
        unit,
        *scales,
    )


def _pool(reduce: str) -> Args:
    offsets = torch.tensor([0, 5, 5, 30, 31, 50])
    return torch.randn(50, 12), torch.randint(0, 90, (50, 12)), offsets, reduce, 15


def _sparse(metric: str, dtype: torch.dtype) -> Args:
    return *_codes(7, 120, dtype), *_codes(900, 120, dtype), 120, 25, metric


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

#: operation and arguments by name; called after the seed is set.
CALLS: dict[str, tuple[str, Callable[[], Args]]] = {
    "encode": ("topk_encode", lambda: _encode(F32, F32)),
    "encode bf16": ("topk_encode", lambda: _encode(BF16, BF16)),
    "encode mixed": ("topk_encode", lambda: _encode(F16, F32)),
    "encode f64": ("topk_encode", lambda: _encode(F64, F32)),
    "encode without bias or screen": ("topk_encode", lambda: (*_encode(F32, F32)[:2], None, 5, "none")),
    "encode, k = F": ("topk_encode", lambda: (torch.randn(5, 20), torch.randn(60, 20), None, 60, "auto")),
    "threshold": ("threshold_encode", lambda: _threshold(F32, F32)),
    "threshold bf16": ("threshold_encode", lambda: _threshold(BF16, BF16)),
    "threshold f64": ("threshold_encode", lambda: _threshold(F32, F64)),
    "threshold alone": (
        "threshold_encode",
        lambda: (torch.randn(5, 20), torch.randn(60, 20), None, torch.ones(60)),
    ),
    "cosine": ("cosine_topk", lambda: _search(F32, "cosine")),
    "cosine f16": ("cosine_topk", lambda: _search(F16, "cosine")),
    "cosine f64": ("cosine_topk", lambda: _search(F64, "cosine")),
    "ip bf16": ("cosine_topk", lambda: _search(BF16, "ip")),
    "one query": ("cosine_topk", lambda: (torch.randn(1, 33), torch.randn(5000, 33), 3)),
    "pair scores": (
        "pair_scores",
        lambda: (torch.randn(9, 70), torch.randn(400, 70), torch.randint(-1, 400, (9, 30)), "cosine"),
    ),
    "decode": ("sparse_decode", lambda: (*_pairs(), torch.randn(300, 40), torch.randn(40))),
    "decode bf16": ("sparse_decode", lambda: (*_pairs(), torch.randn(300, 41).bfloat16(), None)),
    "sampled dot": ("sampled_dot", lambda: (torch.randn(50, 40), _pairs()[1], torch.randn(300, 40))),
    "scatter rows": ("scatter_rows", lambda: (*_pairs(), torch.randn(50, 40), 300)),
    "scatter values": ("scatter_values", lambda: (*_pairs(), 300)),
    "decode residual": ("decode_residual", lambda: _training(12)),
    "decode residual, MultiTopK": ("decode_residual", lambda: _training(3)),
    "weight grads": ("weight_grads", lambda: _grads(12)),
    "weight grads, MultiTopK": ("weight_grads", lambda: _grads(3)),
    "adam": ("sae_adam_step_", lambda: _adam(False)),
    "adam on the sphere": ("sae_adam_step_", lambda: _adam(True)),
    "adam with scales": ("sae_adam_step_", lambda: _adam(True, torch.rand(2, dtype=torch.float64))),
    **{
        f"pool {reduce}": ("pool_codes", lambda reduce=reduce: _pool(reduce))
        for reduce in ("mean", "max", "sum", "sqrt_mean", "count")
    },
    "sparse matmul": (
        "sparse_matmul",
        lambda: (*_codes(90, 120, BF16), torch.randn(120, 70, dtype=torch.float64)),
    ),
    "sparse cosine": ("sparse_cosine_topk", lambda: _sparse("cosine", F32)),
    "sparse ip f16": ("sparse_cosine_topk", lambda: _sparse("ip", F16)),
    "sparse pair scores": (
        "sparse_pair_scores",
        lambda: (*_sparse("cosine", F32)[:7], torch.randint(-1, 900, (7, 11)), "cosine"),
    ),
}
OPERATIONS = tuple(dict.fromkeys(name for name, _ in CALLS.values()))
every_call = pytest.mark.parametrize("call", CALLS)
#: how many entries these return the host only knows once the device is done
WAITING = ("threshold_encode",)
every_queued_call = pytest.mark.parametrize(
    "call", [call for call, (name, _) in CALLS.items() if name not in WAITING]
)


def arguments(call: str, seed: int = 0, device: str | torch.device = DEVICE) -> Args:
    """Fresh arguments of a call on a device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CALLS[call][1]()
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in made)


def run(call: str, args: Args) -> tuple[Tensor, ...]:
    """Call the operation; returns its results, or what it wrote to."""
    out = getattr(torch.ops.finescope, CALLS[call][0]).default(*args)
    if out is None:
        return args[0], args[2], args[3]
    return (out,) if isinstance(out, Tensor) else tuple(out)


def reference(call: str, seed: int = 0) -> tuple[Tensor, ...]:
    """What the CPU says: the dispatched operation, or, where CUDA's kernels stand in for it, its body."""
    args = arguments(call, seed, "cpu")
    if not ON_CPU:
        return run(call, args)
    out = DEFAULTS[CALLS[call][0]](*args)
    if out is None:
        return args[0], args[2], args[3]
    return (out,) if isinstance(out, Tensor) else tuple(out)


def poison(device: str | torch.device = DEVICE, size: int = 64 << 20) -> None:
    """Fill memory that the next allocations get with bytes that are NaN as floats and -1 as integers."""
    if torch.device(device).type == "cuda":
        blocks = [
            torch.full((count,), 255, dtype=torch.uint8, device=device) for count in (size, 1 << 20, 512)
        ]
        del blocks


if __name__ == "__main__":
    for each in CALLS:
        run(each, arguments(each))
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CALLS)} calls")

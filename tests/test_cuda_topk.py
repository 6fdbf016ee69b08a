"""The CUDA engine's top-k is the oracle's bytes, whatever it screens with and however it cuts the work.

Runs on a GPU, and on the kernels compiled for the CPU (``test_cuda_on_cpu.py`` starts it there), where rows,
chunks and buffers are so small that every boundary is crossed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import oracle
import pytest
import torch
from equivalence import assert_same_bytes
from test_reference import KINDS, rows
from torch import Tensor

from finescope import ops

ON_CPU = bool(os.environ.get("FINESCOPE_TEST_CUDA_ON_CPU"))
DEVICE = "cpu" if ON_CPU else "cuda"
pytestmark = [] if ON_CPU else [pytest.mark.requires_cuda]

SCREENS = ("auto", "float32", None)


def encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, screen: str | None = "auto") -> Any:
    moved = None if bias is None else bias.to(DEVICE)
    found = ops.topk_encode(x.to(DEVICE), weight.to(DEVICE), moved, k, screen=screen)
    return tuple(side.cpu() for side in found)


def search(queries: Tensor, corpus: Tensor, k: int, **options: Any) -> Any:
    moved = {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in options.items()
    }
    return tuple(side.cpu() for side in ops.cosine_topk(queries.to(DEVICE), corpus.to(DEVICE), k, **moved))


def work() -> dict[str, int]:
    """What the kernels had to do since the last call; only known on the CPU."""
    return sys.modules["_C_cuda_on_cpu"].waits() if ON_CPU else {}


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("kind", [*KINDS, "sparse", "zeros"])
def test_encode(kind: str, width: int) -> None:
    base = "gaussian" if kind in ("sparse", "zeros") else kind
    x, weight = rows(base, 5, width, torch.float32, 1), rows(base, 1200, width, torch.float32, 2)
    if kind == "sparse":
        x, weight = (side * (torch.rand(side.shape) < 0.1) for side in (x, weight))
    if kind == "zeros":
        x[::3], weight[::2] = 0, 0
    bias = rows("heavy", 1, 1200, torch.float32, 3)[0] * x.abs().amax()
    for b, screen in ((bias, "auto"), (None, "float32"), (bias, None)):
        wanted = oracle.encode(x, weight, b, 17)
        assert_same_bytes(encode(x, weight, b, 17, screen), wanted, f"{screen}")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_search(kind: str, metric: str) -> None:
    queries, corpus = rows(kind, 4, 72, torch.float32, 1), rows(kind, 1300, 72, torch.float32, 2)
    corpus[3], corpus[10, 5], corpus[11, 71], queries[2, 1] = 0, float("nan"), float("inf"), float("-inf")
    scores = oracle.dense_scores(queries, corpus, metric)
    plain = oracle.search(scores, 20, torch.float32)
    options = {
        "exclude": torch.stack([plain[1][:, 0] + 5, plain[1][:, 3] + 5, torch.full((4,), -1)], dim=1),
        "mask": torch.rand(1300) < 0.6,
        "id_offset": 5,
    }
    low = oracle.search(scores, 20, torch.float32, **options)[0][0, 9].item()
    wanted = oracle.search(scores, 20, torch.float32, **options, min_score=low)
    for screen in SCREENS[:2] if metric == "cosine" else SCREENS[2:]:
        assert_same_bytes(search(queries, corpus, 20, metric=metric, screen=screen), plain, f"{screen}")
        found = search(queries, corpus, 20, metric=metric, screen=screen, min_score=low, **options)
        assert_same_bytes(found, wanted, f"{screen} with options")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    width = 67 if dtype == torch.float16 else 72
    x, weight = rows("gaussian", 4, width, dtype, 1), rows("outliers", 1200, width, dtype, 2)
    encoded = oracle.encode(x, weight, None, 9)
    found = oracle.search(oracle.dense_scores(x, weight, "cosine"), 9, oracle.result_dtype(x))
    mixed = oracle.encode(x, weight.float(), None, 9)
    for screen in SCREENS:
        assert_same_bytes(encode(x, weight, None, 9, screen), encoded, f"{screen}")
        assert_same_bytes(search(x, weight, 9, screen=screen), found, f"{screen}")
        assert_same_bytes(encode(x, weight.float(), None, 9, screen), mixed, f"mixed, {screen}")


@pytest.mark.parametrize("tokens", [1, 50])
def test_many_chunks_of_rows_and_columns(tokens: int) -> None:
    x, weight = rows("gaussian", tokens, 96, torch.float32, 1), rows("gaussian", 4000, 96, torch.float32, 2)
    work()
    got = encode(x, weight, None, 8)
    assert_same_bytes(got, oracle.encode(x, weight, None, 8))
    if ON_CPU:
        waited = work()
        assert waited["rescore"] > 0
        assert waited["scan"] == 0, "the screen could not tell these rows apart"


def test_rows_that_the_screen_cannot_tell_apart_are_scanned() -> None:
    x, weight = torch.rand(5, 64), torch.ones(3000, 64)
    weight[2000] *= 1 + 2.0**-20
    work()
    assert_same_bytes(encode(x, weight, None, 8), oracle.encode(x, weight, None, 8))
    if ON_CPU:
        assert work()["scan"] > 0


def test_large_k() -> None:
    """More than are sorted in shared memory, and buffers longer than a thread block."""
    queries, corpus = rows("gaussian", 1, 24, torch.float32, 1), rows("gaussian", 10000, 24, torch.float32, 2)
    wanted = oracle.search(oracle.dense_scores(queries, corpus, "cosine"), 1100, torch.float32)
    for screen in SCREENS:
        assert_same_bytes(search(queries, corpus, 1100, screen=screen), wanted, f"{screen}")
    assert_same_bytes(encode(queries, corpus, None, 3000), oracle.encode(queries, corpus, None, 3000))


@pytest.mark.parametrize("width", [6144, 8192])
def test_wide_rows(width: int) -> None:
    """As much shared memory as a block may have, and more than that."""
    x, weight = rows("gaussian", 1, width, torch.float32, 1), rows("gaussian", 1100, width, torch.float32, 2)
    assert_same_bytes(encode(x, weight, None, 5), oracle.encode(x, weight, None, 5))


def test_bias_below_the_range_of_float32() -> None:
    x, weight = torch.zeros(2, 8), torch.randn(1300, 8)
    bias = torch.zeros(1300, dtype=torch.float64)
    bias[700] = 1e-46
    assert_same_bytes(encode(x, weight, bias, 3), oracle.encode(x, weight, bias, 3))


def test_strides() -> None:
    x, weight = torch.randn(6, 200), torch.randn(1500, 200)
    views = [
        (x[:, ::2], weight[:, ::2]),
        (x[:, 1:102], weight[:, 1:102]),
        (x[:1].expand(4, 200), weight),
        (x, weight[7:8].expand(1500, 200)),
        (x.T.contiguous().T, weight),
    ]
    for left, right in views:
        assert_same_bytes(encode(left, right, None, 5), oracle.encode(left, right, None, 5))


def test_on_the_bound() -> None:
    """Scores at the edge of the k best differ by far less than any screen can tell apart."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(256, generator=generator)
    weight = torch.randn(3000, 256, generator=generator) * 0.01
    crowd = torch.randperm(3000, generator=generator)[:64]
    weight[crowd] = direction * (1 + torch.randint(-3, 4, (64, 1), generator=generator) * 2.0**-23)
    x = torch.stack([direction, direction * 0.37, direction + 0.01 * torch.randn(256, generator=generator)])
    x = torch.cat([x, torch.randn(20, 256, generator=generator)])
    for screen in SCREENS:
        assert_same_bytes(
            encode(x, weight, None, 32, screen), oracle.encode(x, weight, None, 32), f"{screen}"
        )

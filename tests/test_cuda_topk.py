"""The CUDA engine's top-k is the oracle's bytes, whatever it screens with and however it cuts the work.

Runs on a GPU, and on the kernels compiled for the CPU (``test_cuda_on_cpu.py`` starts it there), where rows,
chunks and buffers are so small that every boundary is crossed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope import ops
from support import hard, oracle
from support.equivalence import assert_same_bytes
from support.rows import KINDS, rows

ON_CPU = bool(os.environ.get("FINESCOPE_TEST_CUDA_ON_CPU"))
DEVICE = "cpu" if ON_CPU else "cuda"
pytestmark = [] if ON_CPU else [pytest.mark.requires_cuda]

SCREENS = ("auto", "int8", "float32", None)


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


# torch's numbers of the dtypes.
INT8, HALF, FLOAT, BFLOAT16 = 1, 5, 6, 15


def multiplied() -> dict[int, int]:
    """Products since the last call, by the dtype of their rows; only known on the CPU."""
    return sys.modules["_C_cuda_on_cpu"].multiplied()


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("kind", hard.ENCODED)
def test_encode(kind: str, width: int) -> None:
    x, weight, bias = hard.encoding(kind, 5, 1200, width)
    for b, screen in ((bias, "auto"), (None, "float32"), (bias, None)):
        wanted = oracle.encode(x, weight, b, 17)
        assert_same_bytes(encode(x, weight, b, 17, screen), wanted, f"{screen}")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_search(kind: str, metric: str) -> None:
    given = hard.search(kind, metric, 4, 1300)
    sides = given.queries, given.corpus, 20
    for screen in SCREENS[:3] if metric == "cosine" else SCREENS[3:]:
        assert_same_bytes(search(*sides, metric=metric, screen=screen), given.plain, f"{screen}")
        found = search(*sides, metric=metric, screen=screen, **given.options)
        assert_same_bytes(found, given.restricted, f"{screen} with options")


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


@pytest.mark.parametrize("width", [3, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_int8(kind: str, width: int) -> None:
    """As many rows as its products need, and fewer in the last block; columns that are no multiple of 8."""
    x, weight = rows(kind, 30, width, torch.float32, 1), rows(kind, 1217, width, torch.float32, 2)
    x[3, 1], x[4], weight[5], weight[9, 2] = float("nan"), 0, 0, float("inf")
    scores = oracle.dense_scores(x, weight, "cosine")
    assert_same_bytes(search(x, weight, 9, screen="int8"), oracle.search(scores, 9, torch.float32))
    weight[9, 2] = 1
    bias = rows("gaussian", 1, 1217, torch.float32, 3)[0] * x.nan_to_num().abs().amax()
    assert_same_bytes(encode(x, weight, bias, 9, "int8"), oracle.encode(x, weight, bias, 9))


@pytest.mark.skipif(not ON_CPU, reason="sees what is multiplied")
def test_what_is_multiplied() -> None:
    """16-bit rows of one kind as they are, else copies in float16; int8 only for more than 16 rows."""
    x, weight = rows("gaussian", 24, 64, torch.float32, 1), rows("gaussian", 1500, 64, torch.float32, 2)
    for left, right, screen, wanted in (
        (x, weight, "auto", {HALF}),
        (x, weight, "bf16", {HALF}),
        (x.bfloat16(), weight.bfloat16(), "auto", {BFLOAT16}),
        (x.half(), weight.half(), "auto", {HALF}),
        (x.bfloat16(), weight.half(), "auto", {HALF}),
        (x, weight, "float32", {FLOAT}),
        (x, weight, "int8", {INT8}),
        (x[:16], weight, "int8", {HALF}),
        (x, weight, None, set()),
        (x.double(), weight, "auto", set()),
    ):
        multiplied()
        encode(left, right, None, 8, screen)
        assert set(multiplied()) == wanted, (left.dtype, right.dtype, screen)


@pytest.mark.skipif(not ON_CPU, reason="makes torch refuse products")
@pytest.mark.parametrize("screen", ["auto", "int8"])
def test_products_that_torch_refuses(screen: str) -> None:
    """Then bfloat16 is multiplied, for all blocks of rows; where it is refused as well, that is an error."""
    x, weight = rows("gaussian", 60, 64, torch.float32, 1), rows("gaussian", 1500, 64, torch.float32, 2)
    module = sys.modules["_C_cuda_on_cpu"]
    module.refuse({HALF, INT8})
    try:
        multiplied()
        assert_same_bytes(encode(x, weight, None, 8, screen), oracle.encode(x, weight, None, 8))
        assert set(multiplied()) == {BFLOAT16}
        module.refuse({HALF, INT8, BFLOAT16})
        with pytest.raises(RuntimeError, match=r"could not multiply rows .* out of memory"):
            encode(x, weight, None, 8, screen)
    finally:
        module.refuse(set())


@pytest.mark.parametrize("size", [2.0**-14, 1.0, 2.0**14])
@pytest.mark.parametrize("screen", ["auto", "int8"])
def test_rows_of_any_size_are_told_apart(screen: str, size: float) -> None:
    """Copies follow the size of each row, so that a float16 neither overflows nor underflows."""
    x = rows("heavy", 20, 64, torch.float32, 1) * size
    weight = rows("gaussian", 3000, 64, torch.float32, 2) / size
    work()
    assert_same_bytes(encode(x, weight, None, 8, screen), oracle.encode(x, weight, None, 8))
    if ON_CPU:
        assert work()["scan"] == 0


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_columns_out_of_range_are_always_candidates(size: float, screen: str | None) -> None:
    queries, corpus = rows("gaussian", 20, 64, torch.float32, 1), rows("gaussian", 1500, 64, torch.float32, 2)
    corpus[700:720] = queries * size
    wanted = oracle.search(oracle.dense_scores(queries, corpus, "cosine"), 5, torch.float32)
    assert wanted[1][:, 0].tolist() == list(range(700, 720))
    assert_same_bytes(search(queries, corpus, 5, screen=screen), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 50])
@pytest.mark.parametrize("rows_of_w", [1240, 4000])
def test_many_chunks_of_rows_and_columns(tokens: int, rows_of_w: int, dtype: torch.dtype) -> None:
    x = rows("gaussian", tokens, 96, dtype, 1)
    weight = rows("heavy", rows_of_w, 96, dtype, 2)
    bias = rows("gaussian", 1, rows_of_w, torch.float32, 3)[0] * 1e3
    work()
    got = encode(x, weight, bias, 8)
    assert_same_bytes(got, oracle.encode(x, weight, bias, 8))
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


@pytest.mark.parametrize("width", [6144, 8192, 8300])
def test_wide_rows(width: int) -> None:
    """As much shared memory as a block may have, and more than that; more than a block's registers hold."""
    x, weight = rows("gaussian", 1, width, torch.float32, 1), rows("gaussian", 1100, width, torch.float32, 2)
    work()
    assert_same_bytes(encode(x, weight, None, 5), oracle.encode(x, weight, None, 5))
    if ON_CPU:
        assert work()["scan"] == 0


def test_bias_below_the_range_of_float32() -> None:
    x, weight = torch.zeros(2, 8), torch.randn(1300, 8)
    bias = torch.zeros(1300, dtype=torch.float64)
    bias[700] = 1e-46
    assert_same_bytes(encode(x, weight, bias, 3), oracle.encode(x, weight, bias, 3))


@pytest.mark.parametrize("minimum", [1 + 2.0**-30, 1e-46])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_minimum_between_two_numbers_of_float32(screen: str | None, minimum: float) -> None:
    queries, corpus = torch.zeros(20, 8), torch.zeros(1300, 8)
    queries[:, 0], corpus[5, 0], corpus[3, 0] = 1, 1, 1 + 2.0**-23
    wanted = oracle.search(oracle.dense_scores(queries, corpus, "ip"), 3, torch.float32, min_score=minimum)
    assert wanted[1][0].tolist() == ([3, -1, -1] if minimum > 1 else [3, 5, -1])
    assert_same_bytes(search(queries, corpus, 3, metric="ip", screen=screen, min_score=minimum), wanted)


@pytest.mark.parametrize("screen", SCREENS)
def test_a_minimum_beyond_the_range_of_float32(screen: str | None) -> None:
    """Results that are infinite as float32 reach it, and no others."""
    queries, corpus = torch.full((20, 8), 1e6), torch.randn(1300, 8)
    corpus[700], corpus[800], corpus[900] = 1e35, 1e34, 1e31
    wanted = oracle.search(oracle.dense_scores(queries, corpus, "ip"), 5, torch.float32, min_score=1e39)
    assert wanted[1][0].tolist() == [700, 800, -1, -1, -1]
    assert_same_bytes(search(queries, corpus, 5, metric="ip", screen=screen, min_score=1e39), wanted)


@pytest.mark.parametrize("of", ["x", "weight"])
@pytest.mark.parametrize(("screen", "step"), [("auto", 2.0**-10), ("int8", 2.0**-6)])
def test_errors_that_all_point_the_same_way(screen: str, step: float, of: str) -> None:
    """The best columns are screened far too low, worse ones too high: bounds must hold, not be likely."""
    width = 128
    down = torch.full((width,), 1 + 0.49 * step)
    up = torch.where(torch.arange(width) % 2 == 0, 1 + 0.51 * step, 1.0)
    for row in (down, up):
        row[:2] = 127 / 64  # where a step of int8 is 1 / 64
    weight = torch.rand(2000, width) * 0.1
    best, worse = torch.randperm(2000)[:40].split([3, 37])
    if of == "weight":
        x = torch.ones(20, width)
        weight[best], weight[worse] = down, up
    else:
        x = torch.cat([down[: width // 2], up[width // 2 :]]).repeat(20, 1)
        half = (torch.arange(width) < width // 2).float()
        half[:2] = 0
        weight[best], weight[worse] = half, (1 - half) * (half.sum() / (1 - half)[2:].sum())
        weight[worse, :2] = 0
    wanted = oracle.encode(x, weight, None, 3)
    assert wanted[1][0].tolist() == sorted(best.tolist())
    work()
    assert_same_bytes(encode(x, weight, None, 3, screen), wanted)
    if ON_CPU:  # a candidate beyond its bound has its row scanned
        assert work()["scan"] == 0


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


@pytest.mark.parametrize("screen", SCREENS)
def test_on_the_bound(screen: str | None) -> None:
    x, weight = hard.on_the_bound()
    assert_same_bytes(encode(x, weight, None, 32, screen), oracle.encode(x, weight, None, 32))

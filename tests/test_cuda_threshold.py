"""The CUDA engine's latents above thresholds: every screen, every boundary, and rows that are scanned.

Runs on a GPU, and on the kernels compiled for the CPU (``test_cuda_on_cpu.py`` starts it there), where rows,
chunks and words of bits are so few that every boundary is crossed; there it also shows which way was taken.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from support import hard, oracle
from support.cuda_calls import DEVICE, MARKS, ON_CPU
from support.equivalence import assert_same_bytes
from support.rows import rows

pytestmark = MARKS
SCREENS = ("auto", "int8", "float32", "none")
HALF, BFLOAT16 = 5, 15  # torch's numbers of the dtypes


def found(*args: Tensor | None, screen: str = "auto") -> Any:
    x, weight, bias, threshold = (None if side is None else side.to(DEVICE) for side in args)
    out = torch.ops.finescope.threshold_encode(x, weight, bias, threshold, None, None, screen)
    return tuple(side.cpu() for side in out)


def wanted(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor) -> Any:
    pre = torch.from_numpy(oracle.fixed_dots(oracle.array(x), oracle.array(weight)))
    pre = pre if bias is None else pre + bias.double()
    kept = pre > threshold.double()
    row, latent = kept.nonzero(as_tuple=True)
    indptr = torch.nn.functional.pad(kept.sum(dim=1).cumsum(0), (1, 0))
    return pre[row, latent].to(oracle.result_dtype(x, weight, bias)), latent.int(), indptr


def scanned() -> int:
    """How often threads of the scan met since the last call; only known on the CPU."""
    return sys.modules["_C_cuda_on_cpu"].waits().get("scan_bits", 0) if ON_CPU else 0


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "latents"), [(1, 1240), (50, 1240), (26, 4003), (17, 31), (33, 1024)])
def test_many_blocks_of_rows_chunks_and_words(
    tokens: int, latents: int, dtype: torch.dtype, screen: str
) -> None:
    x, weight = rows("gaussian", tokens, 96, dtype, 1), rows("heavy", latents, 96, dtype, 2)
    bias = rows("gaussian", 1, latents, torch.float32, 3)[0]
    # On the scores of one row: each must leave out its own.
    threshold = wanted(x[:1], weight, bias, torch.full((latents,), -math.inf))[0].double()
    threshold = threshold.abs() + 10
    scanned()
    assert_same_bytes(found(x, weight, bias, threshold, screen=screen), wanted(x, weight, bias, threshold))
    if ON_CPU and screen != "none":
        assert scanned() == 0, "the screen could not separate these rows"


@pytest.mark.parametrize("screen", SCREENS)
def test_on_the_bound(screen: str) -> None:
    """Errors of the screen as large as they get, and thresholds on the scores themselves."""
    x, weight = hard.on_the_bound()
    pre = torch.from_numpy(oracle.fixed_dots(oracle.array(x), oracle.array(weight)))
    threshold = pre.sort(dim=0, descending=True).values[min(2, len(x) - 1)]
    for limit in (threshold, torch.nextafter(threshold, torch.full_like(threshold, -math.inf))):
        assert_same_bytes(found(x, weight, None, limit, screen=screen), wanted(x, weight, None, limit))


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_rows_out_of_range_are_scanned_and_latents_out_of_range_are_candidates(size: float) -> None:
    x, weight = rows("gaussian", 9, 64, torch.float32, 1), rows("gaussian", 1300, 64, torch.float32, 2)
    for left, right in ((x * size, weight), (x, weight * size)):
        threshold = torch.full((1300,), 20 * size, dtype=torch.float64)
        scanned()
        got = found(left, right, None, threshold)
        assert_same_bytes(got, wanted(left, right, None, threshold))
        assert got[1].numel() > 0
        if ON_CPU:
            assert (scanned() > 0) == (left is not x)


def test_thresholds_that_nothing_or_everything_exceeds() -> None:
    x, weight = rows("gaussian", 30, 40, torch.float32, 1), rows("gaussian", 1500, 40, torch.float32, 2)
    threshold = torch.full((1500,), 15.0, dtype=torch.float64)
    threshold[::7], threshold[1::7], threshold[2::7] = math.inf, math.nan, 1e39
    threshold[3::70], threshold[4::70] = -math.inf, -1e39
    scanned()
    assert_same_bytes(found(x, weight, None, threshold), wanted(x, weight, None, threshold))
    if ON_CPU:
        assert scanned() == 0


@pytest.mark.skipif(not ON_CPU, reason="makes torch refuse products")
def test_products_that_torch_refuses() -> None:
    x, weight = rows("gaussian", 60, 64, torch.float32, 1), rows("gaussian", 1500, 64, torch.float32, 2)
    threshold = torch.full((1500,), 20.0)
    module = sys.modules["_C_cuda_on_cpu"]
    module.refuse({HALF})
    try:
        module.multiplied()
        assert_same_bytes(found(x, weight, None, threshold), wanted(x, weight, None, threshold))
        assert set(module.multiplied()) == {BFLOAT16}
        module.refuse({HALF, BFLOAT16})
        with pytest.raises(RuntimeError, match=r"could not multiply rows .* out of memory"):
            found(x, weight, None, threshold)
    finally:
        module.refuse(set())


def test_views() -> None:
    x, weight = torch.randn(6, 200), torch.randn(1500, 200)
    threshold = torch.full((3000,), 25.0)
    for left, right in (
        (x[:, ::2], weight[:, ::2]),
        (x[:, 1:102], weight[:, 1:102]),
        (x[:1].expand(4, 200), weight),
        (x, weight[7:8].expand(1500, 200)),
    ):
        limit = threshold[::2][: len(right)]
        assert_same_bytes(found(left, right, None, limit), wanted(left, right, None, limit))

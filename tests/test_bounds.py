"""The certificate is only as good as its bounds: |exact − screened| ≤ bound, for every pair of any data.

A bound that is a little too small almost never shows in results; here it is looked at directly.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finescope.ops.dense import Cosine, Encode
from finescope.ops.engine import NEVER, Problem
from finescope.ops.sparse import _Rows, _Sparse
from support.rows import DTYPES, KINDS, csr, rows


def _check(problem: Problem, what: str) -> int:
    """Returns for how many pairs the first screen promised anything."""
    everything = slice(0, problem.rows), slice(0, problem.cols)
    positions = torch.arange(problem.rows)
    exact = problem.exact(positions, torch.arange(problem.cols).expand(problem.rows, -1))
    screened = problem.screen(*everything).double()
    bound = problem.bound(everything[0], screened)
    assert bound.shape == screened.shape
    known = bound.isfinite()
    wrong = known & ~((screened - exact).abs() <= bound)
    assert not wrong.any(), (
        f"{what}: screened {screened[wrong][0]}, exact {exact[wrong][0]}, bound {bound[wrong][0]}"
    )
    approximate, error = problem.wide(positions, everything[1])
    wrong = ~((approximate - exact).abs() <= error)
    assert not wrong.any(), (
        f"{what}: {approximate[wrong][0]}, exact {exact[wrong][0]}, error {error[wrong][0]}"
    )
    return int(known.sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dense(kind: str, dtype: torch.dtype) -> None:
    for width in (1, 16, 100, 700):
        x, weight = rows(kind, 20, width, dtype, 1), rows(kind, 60, width, dtype, 2)
        bias = rows("heavy", 1, 60, torch.float32, 3)[0]
        for b in (None, bias):
            promised = _check(Encode(x, weight, b, NEVER), f"{kind} {width}")
            assert promised == 20 * 60 or kind == "huge"
        assert _check(Cosine(x, weight), f"{kind} {width}") == 20 * 60


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sparse(kind: str, dtype: torch.dtype) -> None:
    x, weight = rows(kind, 20, 60, dtype, 1), rows(kind, 80, 60, dtype, 2)
    sides = [_Rows(*csr(side * (torch.rand(side.shape) < 0.4)), 60, "q") for side in (x, weight)]
    for cosine in (True, False):
        assert _check(_Sparse(sides[0], sides[1], cosine), f"{kind} {cosine}") == 20 * 80 or kind == "huge"


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-100, 2.0**60, 2.0**100])
def test_products_that_leave_the_range_of_float32(scale: float) -> None:
    """Underflow may take a whole product away, so the bound has an absolute part; overflow must void it."""
    x, weight = torch.randn(10, 64), torch.randn(40, 64)
    _check(Encode(x * scale, weight, None, NEVER), "one side")
    _check(Encode(x * scale, weight * scale, None, NEVER), "both sides")
    _check(Encode(x * scale, weight / scale, None, NEVER), "opposite")
    assert _check(Cosine(x * scale, weight / scale), "cosine") == 400


def _opposed(width: int) -> tuple[Tensor, Tensor]:
    """All partial sums are large, every addition rounds the same way, and the total nearly cancels."""
    ones = torch.full((1, width), 1.0 + 2.0**-12)
    ones[:, width // 2 :] *= -1.0
    return ones.repeat(8, 1), (ones.abs() * (1.0 + torch.arange(30)[:, None] * 2.0**-22))


@pytest.mark.parametrize("width", [64, 1000, 4096])
def test_cancelling_sums(width: int) -> None:
    x, weight = _opposed(width)
    assert _check(Encode(x, weight, torch.full((30,), 1e-3), NEVER), "encode") == 240
    assert _check(Cosine(x, weight), "cosine") == 240

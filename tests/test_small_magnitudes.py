"""Products and errors below float32's range: the approximations lose them, the results must not."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from finescope import ops
from finescope.ops import PackedMatrix
from support import oracle
from support.equivalence import assert_same_bytes

pytestmark = pytest.mark.requires_native

ROWS, WIDTH, K = 1500, 4096, 20  # so wide that all candidates are looked at a second time in low precision


Found = tuple[Tensor, Tensor]


@cache  # one oracle for all instruction sets
def underflowing(x_size: float, w_size: float) -> tuple[Tensor, Tensor, Found, Found]:
    generator = torch.Generator().manual_seed(0)
    x = x_size * torch.randn(24, WIDTH, generator=generator)
    w = w_size * torch.randn(ROWS, WIDTH, generator=generator)
    searched = oracle.search(oracle.dense_scores(x, w, "ip"), K, torch.float32)
    return x, w, searched, oracle.encode(x, w, None, K)


@pytest.mark.parametrize(("x_size", "w_size"), [(1e-34, 1e-11), (1e-20, 1e-25)])
def test_products_that_underflow(isa: str, x_size: float, w_size: float) -> None:
    x, w, searched, encoded = underflowing(x_size, w_size)
    for screen in ("int8", "bf16", "float32"):
        got = PackedMatrix(w, metric="ip", screen=screen).search(x, K)
        assert_same_bytes(got, searched, f"search, packed, {screen}")
        got = PackedMatrix(w, metric="encode", screen=screen).topk_encode(x, None, K)
        assert_same_bytes(got, encoded, f"encode, packed, {screen}")
        got = ops.topk_encode(x, w, None, K, screen=screen)
        assert_same_bytes(got, encoded, f"encode, {screen}")


@cache
def rounded_down(size: float) -> tuple[Tensor, Tensor, Found]:
    unit = 2.0**-7  # of bfloat16 just above 1
    down = torch.full((WIDTH,), 1 + 0.49 * unit)
    down[::2] = 1 + 1.49 * unit
    w = torch.full((ROWS, WIDTH), 1 + 0.51 * unit)
    w[200:] *= 0.5
    w[3::70] = down
    w *= size
    x = 1 + torch.rand(24, 1, generator=torch.Generator().manual_seed(0)).expand(24, WIDTH)
    return x, w, oracle.encode(x, w, None, K)


@pytest.mark.parametrize("size", [2.0**-66, 2.0**-83])
def test_roundings_whose_squares_underflow(isa: str, size: float) -> None:
    """The rows that bfloat16 rounds down are the best, and most of those that it rounds up are not."""
    x, w, wanted = rounded_down(size)
    for screen in ("int8", "bf16", "auto"):
        got = PackedMatrix(w, metric="encode", screen=screen).topk_encode(x, None, K)
        assert_same_bytes(got, wanted, screen)

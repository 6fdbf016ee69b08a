"""Latents above thresholds: decided in float64, strictly above, the same whatever is computed beside them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import threshold as body
from finescope.ops import threshold_encode
from finescope.ops.registry import DEFAULTS
from finescope.sae.ragged import decode_codes, strongest


def pre_activations(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Whole numbers in float64 are exact, so no order of sums matters."""
    p = x.double() @ weight.double().T
    return p if bias is None else p + bias.double()


def whole(*shape: int, spread: int = 3) -> Tensor:
    return torch.randint(-spread, spread + 1, shape).float()


@pytest.mark.parametrize(
    ("tokens", "width", "latents"), [(1, 1, 1), (7, 5, 40), (300, 16, 200), (3, 9, 0), (0, 4, 6)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_strictly_above_and_nothing_else(tokens: int, width: int, latents: int, dtype: torch.dtype) -> None:
    x, weight, bias = whole(tokens, width).to(dtype), whole(latents, width).to(dtype), whole(latents)
    threshold = whole(latents)  # met exactly by many
    for offset in (None, bias):
        p = pre_activations(x, weight, offset)
        codes = threshold_encode(x, weight, offset, threshold)
        codes.validate()
        kept = p > threshold.double()
        assert torch.equal(codes.to_dense().double(), p.where(kept, 0.0))
        assert codes.nnz == int(kept.sum())  # zeros above a negative threshold are held too
        assert codes.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert threshold_encode(x, weight, bias, 1.0).nnz == int((pre_activations(x, weight, bias) > 1).sum())


def test_the_last_bit_decides() -> None:
    """Pre-activations that float32 rounds onto the threshold lie on both sides of it."""
    x = torch.tensor([[1.0, 2.0**-30], [1.0, -(2.0**-30)], [1.0, 0.0]])
    weight = torch.tensor([[1.0, 1.0]])
    codes = threshold_encode(x, weight, None, torch.tensor([1.0]))
    assert codes.indptr.tolist() == [0, 1, 1, 1]
    assert codes.values.tolist() == [1.0]
    below = math.nextafter(1.0, 0.0)
    assert threshold_encode(x, weight, None, torch.tensor([below], dtype=torch.float64)).nnz == 2


def test_blocks_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(400, 24), torch.randn(70, 24), torch.randn(70)
    threshold = torch.rand(70) * 3
    once = threshold_encode(x, weight, bias, threshold)
    monkeypatch.setattr(body, "_BLOCK", 600)
    values, indices, indptr = DEFAULTS["threshold_encode"](x, weight, bias, threshold)
    assert SparseCodes(indptr, indices, values, 70) == once
    parts = [threshold_encode(part, weight, bias, threshold) for part in x.split(37)]
    assert SparseCodes.cat(parts) == once


def test_values_of_another_affine_form() -> None:
    x, weight, bias = whole(50, 6), whole(30, 6), whole(30)
    scale, offset = whole(30), whole(30)
    dots = x.double() @ weight.double().T
    codes = threshold_encode(x, weight, bias, 2.0, scale=scale, offset=offset)
    expected = (dots * scale.double() + offset.double()).where(dots + bias.double() > 2, 0.0)
    assert torch.equal(codes.to_dense().double(), expected)


def test_a_broken_token_is_seen_and_spoils_no_other() -> None:
    x, weight = whole(6, 4), whole(20, 4)
    good = threshold_encode(x, weight, None, 0.0)
    x[2, 1], x[4, 0] = math.nan, math.inf
    codes = threshold_encode(x, weight, None, 0.0)
    for row in (0, 1, 3, 5):
        assert codes[row] == good[row]
    for row in (2, 4):
        assert codes[row].indices.tolist() == [0]
        assert math.isnan(codes[row].values.item())
    weight[7, 0] = math.nan
    assert bool(threshold_encode(x, weight, None, 0.0).values.isnan().all())


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e25])
def test_sizes_near_the_ends_of_float32(size: float) -> None:
    x, weight = torch.randn(40, 8) * size, torch.randn(50, 8)
    p = x.double() @ weight.double().T
    codes = threshold_encode(x, weight, None, size)
    near = ((p - size).abs() < 1e-12 * size).any()
    assert not bool(near)
    assert torch.equal(codes.to_dense() != 0, p > size)


def test_codes_of_any_length_are_decoded_row_by_row() -> None:
    lengths = [0, 1, 15, 16, 17, 40, 0, 33, 300]
    rows = [torch.randperm(400)[:length].sort().values for length in lengths]
    indptr = torch.tensor([0, *lengths]).cumsum(0)
    codes = SparseCodes(indptr, torch.cat(rows).int(), torch.randn(sum(lengths)), 400)
    weight, bias = torch.randn(400, 12), torch.randn(12)
    expected = codes.to_dense().double() @ weight.double() + bias.double()
    torch.testing.assert_close(decode_codes(codes, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)
    for row in range(len(codes)):
        assert torch.equal(decode_codes(codes[row], weight, bias)[0], decode_codes(codes, weight, bias)[row])


def test_the_strongest_of_every_row() -> None:
    dense = torch.tensor(
        [[3.0, 1.0, 3.0, 2.0], [0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    )
    kept = strongest(SparseCodes.from_dense(dense), 2)
    kept.validate()
    assert kept.to_dense().tolist() == [[3, 0, 3, 0], [0, 5, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]

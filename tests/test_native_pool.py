"""The compiled pool_codes against a dictionary-and-loop version of its definition, and what it must refuse.

Values are compared exactly: both sides add float64 numbers in token order, so there is nothing to tolerate.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.backends import op

pytestmark = pytest.mark.requires_native

REDUCTIONS = ["mean", "max", "sum", "sqrt_mean", "count"]


def expected(
    values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int
) -> tuple[Tensor, Tensor]:
    """The definition, one entry at a time."""
    N = offsets.shape[0] - 1
    out_values, out_indices = torch.zeros(N, keep), torch.full((N, keep), -1)
    for n in range(N):
        first, last = int(offsets[n]), int(offsets[n + 1])
        pooled: dict[int, float] = {}
        for b in range(first, last):
            token: list[tuple[int, float]] = []
            for value, latent in zip(values[b].double().tolist(), indices[b].tolist(), strict=True):
                if value > 0 and math.isfinite(value):
                    token.append((latent, value))
            if reduce in ("max", "count"):
                sums: dict[int, float] = {}
                for latent, value in token:
                    sums[latent] = sums.get(latent, 0.0) + value
                for latent, value in sums.items():
                    old = pooled.get(latent, 0.0)
                    pooled[latent] = max(old, value) if reduce == "max" else old + 1.0
            else:
                for latent, value in token:
                    pooled[latent] = pooled.get(latent, 0.0) + value
        if reduce in ("mean", "sqrt_mean"):
            pooled = {latent: value / (last - first) for latent, value in pooled.items()}
        if reduce == "sqrt_mean":
            pooled = {latent: math.sqrt(value) for latent, value in pooled.items()}
        strongest = sorted(pooled.items(), key=lambda item: (-item[1], item[0]))[:keep]
        for place, (latent, value) in enumerate(sorted(strongest)):
            out_values[n, place], out_indices[n, place] = value, latent
    return out_values, out_indices


def check(values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int) -> None:
    got = op.pool_codes(values, indices, offsets, reduce, keep)
    want = expected(values, indices, offsets, reduce, keep)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0], want[0])
    assert got[0].dtype == torch.float32


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1, 5, 40])
def test_definition(device: str, reduce: str, keep: int) -> None:
    # Few latents, so that tokens repeat them and documents drop some; documents of 0 and 1 token among them.
    values, indices = torch.randn(60, 6), torch.randint(0, 30, (60, 6))
    check(values, indices, torch.tensor([0, 0, 1, 25, 25, 59, 60]), reduce, keep)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_latents_beyond_any_table(device: str, reduce: str) -> None:
    values, indices = torch.rand(20, 4), torch.randint(0, 5, (20, 4)) * (1 << 60) // 7
    indices[3, 1] = (1 << 63) - 1
    check(values, indices, torch.tensor([0, 7, 20]), reduce, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_dtypes(device: str, dtype: torch.dtype, reduce: str) -> None:
    values, indices = torch.randn(30, 5).to(dtype), torch.randint(0, 12, (30, 5))
    check(values, indices, torch.tensor([0, 11, 30]), reduce, 4)


def test_ties_go_to_the_lower_latent() -> None:
    values, indices = torch.ones(2, 4), torch.tensor([[9, 3, 7, 5], [1, 8, 2, 4]])
    got = op.pool_codes(values, indices, torch.tensor([0, 2]), "sum", 3)
    assert got[1].tolist() == [[1, 2, 3]]


def test_what_is_not_positive_and_finite_is_dropped_with_its_latent() -> None:
    values = torch.tensor([[float("nan"), float("inf"), -1.0, 0.0, 2.0]])
    got = op.pool_codes(values, torch.tensor([[-5, 1, -(1 << 40), -1, 4]]), torch.tensor([0, 1]), "mean", 2)
    assert got[0].tolist() == [[2.0, 0.0]]
    assert got[1].tolist() == [[4, -1]]


def test_strided_inputs() -> None:
    values, indices = torch.rand(8, 3), torch.randint(0, 9, (8, 3))
    offsets = torch.tensor([0, 3, 8])
    spread = torch.stack([offsets, offsets], 1)[:, 0]
    got = op.pool_codes(values.t().contiguous().t(), indices.t().contiguous().t(), spread, "sum", 4)
    want = op.pool_codes(values, indices, offsets, "sum", 4)
    assert all(torch.equal(left, right) for left, right in zip(got, want, strict=True))


def test_empty() -> None:
    check(torch.rand(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.tensor([0]), "mean", 2)
    check(torch.rand(0, 3), torch.zeros(0, 3, dtype=torch.int64), torch.tensor([0, 0, 0]), "mean", 2)
    check(torch.rand(4, 0), torch.zeros(4, 0, dtype=torch.int64), torch.tensor([0, 4]), "max", 2)


def test_same_bytes_for_every_thread_count() -> None:
    values, indices = torch.rand(3000, 16), torch.randint(0, 500, (3000, 16))
    offsets = torch.cat([torch.tensor([0, 2000]), torch.arange(2001, 3001)])  # one long document, many short
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op.pool_codes(values, indices, offsets, "sqrt_mean", 20))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(left, right) for left, right in zip(results[0], other, strict=True))


@pytest.mark.names_bad_data
def test_bad_data_are_named() -> None:
    values, indices = torch.rand(4, 2), torch.zeros(4, 2, dtype=torch.int64)
    for offsets, message in [
        ([0, 3], "offsets must run from 0 to B=4, got 0 to 3"),
        ([1, 4], "offsets must run from 0 to B=4, got 1 to 4"),
        ([0, 3, 2, 4], "offsets falls after document 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            op.pool_codes(values, indices, torch.tensor(offsets), "mean", 2)
    indices[2, 1] = -3
    with pytest.raises(IndexError, match="indices holds -3 with a positive value; latents start at 0"):
        op.pool_codes(values, indices, torch.tensor([0, 4]), "mean", 2)


def test_refused() -> None:
    values, indices = torch.rand(4, 2), torch.zeros(4, 2, dtype=torch.int64)
    offsets = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"offsets must have shape \[N\+1\]"):
        op.pool_codes(values, indices, offsets[:0], "mean", 2)
    with pytest.raises(ValueError, match=r"reduce must be one of 'mean'.*got 'median'"):
        op.pool_codes(values, indices, offsets, "median", 2)
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        op.pool_codes(values, indices, offsets, "mean", -1)


def test_asking_for_far_more_than_there_is_costs_no_memory() -> None:
    """2 ** 40 latents of no document at all: nothing may be set aside for them."""
    none = torch.zeros(0, 2)
    values, latents = op.pool_codes(none, none.long(), torch.tensor([0]), "mean", 1 << 40)
    assert values.shape == latents.shape == (0, 1 << 40)
    values, latents = op.pool_codes(
        torch.ones(3, 200), torch.arange(600).view(3, 200), torch.tensor([0, 3]), "max", 900
    )
    assert latents[0].tolist() == [*range(600), *[-1] * 300]

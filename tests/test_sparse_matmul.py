"""sparse_matmul: the bytes of its definition, whatever runs it, and what it refuses.

A fused multiply-add, a sum in another order, a register's worth of columns or of rows too many: each shows as
bytes that differ from a loop in NumPy, at some width, row length or instruction set.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from finescope import SparseCodes, ops
from finescope.ops.registry import DEFAULTS
from support.backends import Watch, implementations, op
from support.decode_oracle import sparse_matmul
from support.equivalence import same_bytes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INDICES = [torch.uint16, torch.int32, torch.int64]
LENGTHS = (0, 1, 2, 3, 5, 8, 13, 40, 0, 96, 97, 0)


def codes(
    lengths: tuple[int, ...] = LENGTHS,
    latents: int = 97,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of these lengths."""
    indptr = torch.tensor([0, *itertools.accumulate(lengths)])
    held = [torch.randperm(latents)[:length].sort().values for length in lengths]
    return indptr, torch.cat(held).to(index), torch.randn(int(indptr[-1])).to(dtype)


def panel(latents: int, columns: int) -> Tensor:
    """Numbers of all 53 bits and of very different sizes: no sum of them is the same in another order."""
    sizes = torch.exp2(torch.randint(-30, 30, (latents, columns)).double())
    return torch.randn(latents, columns, dtype=torch.float64) * sizes


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 23, 24, 31, 40, 47, 48, 49, 64, 130])
def test_every_width(isa: str, columns: int) -> None:
    rows, given = codes(), panel(97, columns)
    assert same_bytes(op.sparse_matmul(*rows, given), sparse_matmul(*rows, given))


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(isa: str, dtype: torch.dtype, index: torch.dtype) -> None:
    rows, given = codes(dtype=dtype, index=index), panel(97, 11)
    assert same_bytes(op.sparse_matmul(*rows, given), sparse_matmul(*rows, given))


@pytest.mark.parametrize("columns", [1, 5, 24, 70])
def test_rows_longer_than_what_is_unpacked_at_a_time(isa: str, columns: int) -> None:
    lengths = (3, 1535, 1536, 1537, 0, 4000, 700, 700, 700, 1)
    rows, given = codes(lengths, 4000), panel(4000, columns)
    assert same_bytes(op.sparse_matmul(*rows, given), sparse_matmul(*rows, given))


def test_many_rows_of_one_entry(isa: str) -> None:
    rows, given = codes((1,) * 500, 31), panel(31, 3)
    assert same_bytes(op.sparse_matmul(*rows, given), sparse_matmul(*rows, given))


@pytest.mark.parametrize("run", implementations("sparse_matmul"))
def test_threads_and_splits_of_the_rows(run: Any) -> None:
    rows, given = codes(LENGTHS * 300, 97), panel(97, 24)
    wanted = sparse_matmul(*rows, given)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert same_bytes(run(*rows, given), wanted)
    finally:
        torch.set_num_threads(before)
    held = SparseCodes(*rows, 97)
    parts = [ops.sparse_matmul(held[at : at + 700], given) for at in range(0, len(held), 700)]
    assert same_bytes(torch.cat(parts), wanted)


@pytest.mark.parametrize("run", implementations("sparse_matmul"))
def test_views_of_panels_and_rows(run: Any) -> None:
    indptr, indices, values = codes()
    given = panel(97, 20)
    for view in (
        given[:, 3:14],
        given[:, ::2],
        given.T.contiguous().T,
        torch.zeros(97, 4).double().expand(97, 4),
    ):
        assert same_bytes(run(indptr, indices, values, view), sparse_matmul(indptr, indices, values, view))
    spread = torch.stack([values, values], 1)[:, 0]
    assert same_bytes(run(indptr, indices, spread, given), sparse_matmul(indptr, indices, values, given))


@pytest.mark.parametrize("run", implementations("sparse_matmul"))
def test_nan_infinity_and_the_sign_of_zero(run: Any) -> None:
    indptr, indices, values = codes(dtype=torch.float64)
    given = panel(97, 9)
    values[::7], values[1::11], values[3::13] = 0.0, -0.0, float("inf")
    values[5], values[40] = float("nan"), -float("nan")
    given[::5, 0], given[::3, 1], given[::9, 2] = float("inf"), -float("nan"), -0.0
    got = run(indptr, indices, values, given)
    assert same_bytes(got, sparse_matmul(indptr, indices, values, given))
    assert bool(got.isnan().any())
    assert bool((~got.isnan()).any())
    # Entries that are not stored do not meet what stands in the panel.
    assert not run(torch.tensor([0, 0]), indices[:0], values[:0], given * float("nan")).any()


@pytest.mark.parametrize("run", implementations("sparse_matmul"))
@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 5, 0), (0, 0, 0), (3, 0, 2)])
def test_nothing(run: Any, shape: tuple[int, int, int]) -> None:
    n, latents, columns = shape
    rows = torch.zeros(n + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0)
    got = run(*rows, torch.randn(latents, columns, dtype=torch.float64))
    assert same_bytes(got, torch.zeros(n, columns, dtype=torch.float64))


@pytest.mark.names_bad_data
@pytest.mark.parametrize("run", implementations("sparse_matmul"))
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_latents_out_of_range_are_named(run: Any, index: torch.dtype) -> None:
    lengths = (0, 2, 3, 1, 2000, 1)
    for bad in (1, 4, 1800, 2006):
        indptr, indices, values = codes(lengths, 2000)
        indices[bad] = 2000
        row = int(torch.searchsorted(indptr, bad, right=True)) - 1
        message = rf"codes_indices holds 2000 in row {row}, which is outside 0\.\.1999"
        with pytest.raises(IndexError, match=message):
            run(indptr, indices.to(index), values, panel(2000, 3))
    if index != torch.uint16:
        indices[2006], indices[5] = 3, -7
        with pytest.raises(IndexError, match="codes_indices holds -7 in row 3"):
            run(indptr, indices.to(index), values, panel(2000, 3))
    with pytest.raises(IndexError, match="codes_indices holds"):
        run(*codes(lengths, 2000), panel(0, 3))


@pytest.mark.names_bad_data
@pytest.mark.parametrize("run", implementations("sparse_matmul"))
def test_pointers_that_do_not_rise_are_named(run: Any) -> None:
    _, indices, values = codes((2, 2))
    for indptr in ([0, 3, 2, 4], [1, 2, 4], [0, 2, 3], [0, 2, 5], [0, -1, 4]):
        with pytest.raises(ValueError, match="codes_indptr must rise from 0 to nnz=4"):
            run(torch.tensor(indptr), indices, values, panel(97, 3))


def test_what_users_are_told() -> None:
    held = SparseCodes(*codes(), 97)
    with pytest.raises(ValueError, match=r"panel must have shape \[F, C\] with F=97, got \[96, 2\]"):
        ops.sparse_matmul(held, panel(96, 2))
    with pytest.raises(ValueError, match=r"panel must have shape \[F, C\], got \[97\]"):
        ops.sparse_matmul(held, panel(97, 1)[:, 0])
    with pytest.raises(TypeError, match=r"panel must be float64, got torch\.float32"):
        ops.sparse_matmul(held, panel(97, 2).float())
    with pytest.raises(TypeError, match="codes must be SparseCodes, got Tensor"):
        ops.sparse_matmul(panel(3, 97), panel(97, 2))  # type: ignore[arg-type]


def test_the_public_function_is_the_product() -> None:
    dense = torch.randn(30, 97) * (torch.rand(30, 97) < 0.3)
    held, given = SparseCodes.from_dense(dense), panel(97, 6)
    got = ops.sparse_matmul(held, given.requires_grad_())
    assert not got.requires_grad
    given = given.detach()
    assert np.allclose(
        got.numpy(), dense.double().numpy() @ given.numpy(), rtol=1e-12, atol=1e-12 * given.abs().amax()
    )


def test_torch_checks_it() -> None:
    for index in INDICES[1:]:
        opcheck(torch.ops.finescope.sparse_matmul.default, (*codes(index=index), panel(97, 5)))


def test_the_default_body_needs_little_memory() -> None:
    rows, given = codes((20,) * 50_000, 97), panel(97, 40)
    with Watch() as watch:
        DEFAULTS["sparse_matmul"](*rows, given)
    assert watch.seen
    assert watch.largest <= 50_000 * 40  # the result

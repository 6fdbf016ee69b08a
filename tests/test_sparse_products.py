"""sparse_products: the bytes of sparse_matmul with the queries as columns, whatever runs it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from finescope import SparseCodes, ops
from support.backends import implementations, op
from support.decode_oracle import sparse_matmul
from support.equivalence import same_bytes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INDICES = [torch.uint16, torch.int32, torch.int64]
LENGTHS = (0, 1, 2, 3, 5, 8, 13, 40, 0, 96, 97, 0)
F = 97


def codes(
    lengths: tuple[int, ...] = LENGTHS,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int32,
    latents: int = F,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of these lengths, whose values are of very different sizes."""
    indptr = torch.tensor([0, *itertools.accumulate(lengths)])
    held = [torch.randperm(latents)[:length].sort().values for length in lengths]
    sizes = torch.exp2(torch.randint(-10, 10, (int(indptr[-1]),)).double())
    return indptr, torch.cat(held).to(index), (torch.randn(int(indptr[-1])).double() * sizes).to(dtype)


def wanted(queries: tuple[Tensor, Tensor, Tensor], rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The products one after the other in NumPy."""
    indptr, indices, values = queries
    panel = torch.zeros(F, len(indptr) - 1, dtype=torch.float64)
    for q in range(len(indptr) - 1):
        for i in range(int(indptr[q]), int(indptr[q + 1])):
            panel[int(indices[i]), q] += values[i]
    return sparse_matmul(*rows, panel).T.contiguous()


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(isa: str, dtype: torch.dtype, index: torch.dtype) -> None:
    queries, rows = codes(LENGTHS, torch.float64, index), codes(dtype=dtype, index=index)
    assert same_bytes(op.sparse_products(*queries, *rows, F), wanted(queries, rows))


@pytest.mark.parametrize("run", implementations("sparse_products"))
def test_every_implementation(run) -> None:
    for count in (0, 1, 7, 30):
        queries, rows = codes((5,) * count, torch.float64) if count else (
            torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0).double()
        ), codes()  # fmt: skip
        assert same_bytes(run(*queries, *rows, F), wanted(queries, rows))
    nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0)
    assert run(*codes((3, 4), torch.float64), *nothing, F).shape == (2, 0)


@pytest.mark.parametrize("run", implementations("sparse_products"))
def test_values_that_are_not_finite_make_a_row_nan_and_no_other(run) -> None:
    queries, rows = codes((4,) * 9, torch.float64), codes((6,) * 40)
    clean = run(*queries, *rows, F)
    for at, value in ((3, float("nan")), (100, float("inf")), (201, float("-inf"))):
        rows[2][at] = value
    found = run(*queries, *rows, F)
    lost = torch.tensor([0, 100 // 6, 201 // 6])
    assert found[:, lost].isnan().all()
    kept = torch.ones(40, dtype=torch.bool).index_fill(0, lost, False)
    assert same_bytes(found[:, kept], clean[:, kept])
    huge = codes((97,), torch.float64)
    huge[2][:] = 1e200
    assert run(*huge, *huge, F).item() == float("inf")


def test_more_rows_than_are_turned_over_at_a_time_on_any_number_of_threads(isa: str) -> None:
    lengths = tuple(torch.randint(0, 9, (4500,)).tolist())
    queries, rows = codes((20,) * 12, torch.float64), codes(lengths)
    expected = wanted(queries, rows)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same_bytes(op.sparse_products(*queries, *rows, F), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("run", implementations("sparse_products"))
def test_a_latent_out_of_range_is_named(run) -> None:
    queries, rows = codes((2, 2), torch.float64), codes((2, 3))
    rows[1][3] = 97
    with pytest.raises(IndexError, match=r"c_indices holds 97 in row 1, which is outside 0\.\.96"):
        run(*queries, *rows, F)
    queries[1][1] = -1
    with pytest.raises(IndexError, match="q_indices holds -1 in row 0"):
        run(*queries, *rows, F)


def test_the_public_function_and_torchs_own_checks() -> None:
    queries, rows = (SparseCodes(*codes((9, 3, 0), dtype), F) for dtype in (torch.float64, torch.float32))
    assert same_bytes(
        ops.sparse_products(queries, rows), ops.sparse_matmul(rows, queries.to_dense().T.contiguous()).T
    )
    with pytest.raises(TypeError, match="q_values must be float64"):
        ops.sparse_products(rows, rows)
    with pytest.raises(ValueError, match="queries have F=97 latents but corpus has F=96"):
        ops.sparse_products(queries, SparseCodes(*codes((2,), latents=96), 96))
    opcheck(torch.ops.finescope.sparse_products.default, (*codes((2, 5), torch.float64), *codes(), F))

"""Every compiled instruction set against definitions written out in NumPy, byte for byte, around lane sizes.

A wrong tail loop, a fused multiply-add or a reordered sum shows only at some widths and on some instruction
sets, so each set that this CPU has is forced in turn, in one process.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finescope.ops import decode
from support import decode_oracle as oracle
from support.backends import op
from support.equivalence import same_bytes

pytestmark = pytest.mark.requires_native

WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def problem(B: int, K: int, F: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    values = torch.randn(B, K, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    indices = torch.randint(0, F, (B, K))
    return values, indices, torch.randn(F, D).to(dtype), torch.randn(D).to(dtype), torch.randn(B, D).to(dtype)


def grads_fit(values: Tensor, indices: Tensor, weight: Tensor, rows: Tensor) -> bool:
    """Whether both gradients from one pass are those that the two operations are defined by."""
    dots, sums = op.decode_grads(values, indices, weight, rows)
    return same_bytes(dots, oracle.sampled_dot(rows, indices, weight)) and same_bytes(
        sums, oracle.scatter_rows(values, indices, rows, weight.shape[0])
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width(isa: str, dtype: torch.dtype) -> None:
    for D in WIDTHS:
        values, indices, weight, bias, rows = problem(3, 5, 11, D, dtype)
        for added in (None, bias):
            got = op.sparse_decode(values, indices, weight, added)
            assert same_bytes(got, oracle.sparse_decode(values, indices, weight, added)), D
        got = op.sampled_dot(rows, indices, weight)
        assert same_bytes(got, oracle.sampled_dot(rows, indices, weight)), D
        got = op.scatter_rows(values, indices, rows, 11)
        assert same_bytes(got, oracle.scatter_rows(values, indices, rows, 11)), D
        assert grads_fit(values, indices, weight, rows), D
        assert same_bytes(
            op.scatter_values(values, indices, 11), oracle.scatter_values(values, indices, 11)
        ), D


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [513, 1025, 1100])
def test_rows_wider_than_a_block_of_columns(isa: str, D: int, dtype: torch.dtype) -> None:
    values, indices, weight, bias, rows = problem(3, 13, 11, D, dtype)
    for added in (None, bias):
        got = op.sparse_decode(values, indices, weight, added)
        assert same_bytes(got, oracle.sparse_decode(values, indices, weight, added))
    assert grads_fit(values, indices, weight, rows)


def test_gradients_take_the_room_of_others_but_never_of_live_ones(isa: str) -> None:
    values, indices, _weight, _, rows = problem(40, 9, 6000, 512)
    wanted = oracle.scatter_rows(values, indices, rows, 6000)
    alive = []
    for _ in range(7):  # more than are kept
        for _ in range(2):
            alive.append(op.scatter_rows(values, indices, rows, 6000))
            op.scatter_rows(values * 2, indices, rows, 6000)
    assert len({gradient.data_ptr() for gradient in alive}) == len(alive)
    assert all(same_bytes(gradient, wanted) for gradient in alive)
    alive.clear()
    assert same_bytes(op.scatter_rows(values, indices, rows, 6000), wanted)


@pytest.mark.parametrize("K", [0, 1, 2, 3, 4, 5, 7, 8, 9, 33])
def test_every_number_kept(isa: str, K: int) -> None:
    values, indices, weight, bias, rows = problem(4, K, 6, 40)
    assert same_bytes(
        op.sparse_decode(values, indices, weight, bias), oracle.sparse_decode(values, indices, weight, bias)
    )
    assert same_bytes(op.sampled_dot(rows, indices, weight), oracle.sampled_dot(rows, indices, weight))
    assert same_bytes(
        op.scatter_rows(values, indices, rows, 6), oracle.scatter_rows(values, indices, rows, 6)
    )
    assert grads_fit(values, indices, weight, rows)


@pytest.mark.parametrize("values_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
def test_mixed_dtypes(device: str, values_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    values, indices, weight, bias, rows = problem(5, 4, 9, 21)
    values, weight, rows = values.to(values_dtype), weight.to(weight_dtype), rows.to(values_dtype)
    assert same_bytes(
        op.sparse_decode(values, indices, weight, bias), oracle.sparse_decode(values, indices, weight, bias)
    )
    assert same_bytes(op.sampled_dot(rows, indices, weight), oracle.sampled_dot(rows, indices, weight))
    assert grads_fit(values, indices, weight, rows)
    rows = rows.to(weight_dtype)
    assert grads_fit(values, indices, weight, rows)
    assert same_bytes(
        op.scatter_rows(values, indices, rows, 9), oracle.scatter_rows(values, indices, rows, 9)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_rounding(isa: str, dtype: torch.dtype) -> None:
    """Loads of every 16-bit pattern, and stores of ties, subnormals, overflow, infinities and NaN."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).reshape(16, -1)
    ones, rows = torch.ones(16, 1), torch.arange(16).reshape(16, 1)
    got = op.scatter_rows(ones, rows, every, 16)  # loads as float32, sums from +0, stores float32
    expected = every.float() + 0.0
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert same_bytes(got[~nan], expected[~nan])
    # Stores: scale each pattern so that the result falls between representable numbers.
    for scale in (1.0, 1 + 2**-9, 1 + 2**-12, 1 / 3, 2.0**-20, 2.0**12):
        values = torch.full((16, 1), scale)
        got = op.sparse_decode(values, rows, every, None)
        expected = (every.float() * scale + 0.0).to(dtype)
        nan = expected.isnan()
        assert torch.equal(got.isnan(), nan), scale
        assert same_bytes(got[~nan], expected[~nan]), scale
        # One canonical NaN on every instruction set.
        assert got[nan].view(torch.int16).unique().numel() == 1, scale


def test_specials_pass_through(isa: str) -> None:
    weight = torch.tensor([[float("inf"), 1.0, -0.0], [float("nan"), 2.0, 0.0], [1e38, 3e-45, 5.0]])
    values = torch.tensor([[1.0, 0.0], [1e30, -1.0]])
    indices = torch.tensor([[0, 1], [2, 0]])
    got, expected = (f(values, indices, weight, None) for f in (op.sparse_decode, oracle.sparse_decode))
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


def test_layouts(isa: str) -> None:
    """Transposed, strided, expanded and misaligned inputs give what their contiguous copies give."""
    values, indices, weight, bias, rows = problem(6, 4, 10, 50)
    expected = op.sparse_decode(values, indices, weight, bias)
    padded = torch.randn(10, 64)
    padded[:, 7:57] = weight
    strided_bias = torch.stack([bias, bias], 1)[:, 0]
    assert same_bytes(op.sparse_decode(values, indices, padded[:, 7:57], strided_bias), expected)
    assert same_bytes(op.sparse_decode(values, indices, weight.t().contiguous().t(), bias), expected)
    assert same_bytes(
        op.sparse_decode(values.t().contiguous().t(), indices.t().contiguous().t(), weight, bias), expected
    )
    doubled = torch.stack([weight, weight], 1).reshape(20, 50)[::2]
    assert same_bytes(op.sparse_decode(values, indices, doubled, bias), expected)
    same_row = rows[:1].expand(6, 50)
    for f, g in ((op.sampled_dot, oracle.sampled_dot),):
        assert same_bytes(f(same_row, indices, padded[:, 7:57]), g(same_row, indices, weight))
    assert same_bytes(
        op.scatter_rows(values[:, :1].expand(6, 4), indices, same_row, 10),
        oracle.scatter_rows(values[:, :1].expand(6, 4), indices, same_row, 10),
    )
    one_column = torch.randn(1, 10).t()  # [10, 1]: its strides say nothing
    assert same_bytes(
        op.sparse_decode(values, indices, one_column, None),
        oracle.sparse_decode(values, indices, one_column, None),
    )


@pytest.mark.parametrize(
    ("B", "K", "F", "D"), [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 4, 0), (0, 0, 0, 0), (2, 0, 0, 3)]
)
def test_empty(isa: str, B: int, K: int, F: int, D: int) -> None:
    values, rows, weight = torch.randn(B, K), torch.randn(B, D), torch.randn(F, D)
    indices = torch.zeros(B, K, dtype=torch.int64)
    bias = torch.randn(D)
    assert same_bytes(
        op.sparse_decode(values, indices, weight, bias), oracle.sparse_decode(values, indices, weight, bias)
    )
    assert op.sampled_dot(rows, indices, weight).shape == (B, K)
    assert same_bytes(
        op.scatter_rows(values, indices, rows, F), oracle.scatter_rows(values, indices, rows, F)
    )
    assert same_bytes(op.scatter_values(values, indices, F), oracle.scatter_values(values, indices, F))


def test_one_latent_in_every_row(isa: str) -> None:
    """The longest possible segment beside empty ones."""
    values, _, _, _, rows = problem(300, 3, 1, 20)
    indices = torch.tensor([4, 4, 9]).expand(300, 3)
    assert same_bytes(
        op.scatter_rows(values, indices, rows, 12), oracle.scatter_rows(values, indices, rows, 12)
    )


@pytest.mark.names_bad_data
@pytest.mark.parametrize("bad", [-1, 9, 1 << 40, -(1 << 62)])
def test_index_out_of_range_is_named_before_any_read(isa: str, bad: int) -> None:
    values, indices, weight, _, rows = problem(40, 9, 9, 16)
    indices[31, 5] = bad
    calls = [
        lambda: op.sparse_decode(values, indices, weight, None),
        lambda: op.sampled_dot(rows, indices, weight),
        lambda: op.scatter_rows(values, indices, rows, 9),
        lambda: op.scatter_values(values, indices, 9),
    ]
    for call in calls:
        with pytest.raises(IndexError, match=rf"indices holds {bad} at \[31, 5\], which is outside 0..8"):
            call()


def test_arguments_that_do_not_fit() -> None:
    values, indices, weight, bias, rows = problem(3, 2, 5, 4)
    cases = [
        (lambda: op.sparse_decode(values[0], indices, weight, None), "must have the same shape"),
        (lambda: op.sparse_decode(values, indices[:2], weight, None), "must have the same shape"),
        (lambda: op.sparse_decode(values, indices.int(), weight, None), "indices must be int64, not int32"),
        (lambda: op.sparse_decode(values, indices, weight[0], None), "weight must have 2 dimensions"),
        (lambda: op.sparse_decode(values, indices, weight, bias[:3]), r"bias \[3\] must have shape \[4\]"),
        (lambda: op.sparse_decode(values, indices, weight.long(), None), "weight must be float32"),
        (lambda: op.sampled_dot(rows[:, :3], indices, weight), r"rows \[3, 3\] must have shape \[3, 4\]"),
        (lambda: op.sampled_dot(rows[:2], indices, weight), r"rows \[2, 4\] must have shape \[3, 4\]"),
        (lambda: op.scatter_rows(values, indices, rows[:2], 5), "must have 3 rows"),
        (lambda: op.scatter_rows(values, indices, rows, -1), "num_latents must not be negative"),
        (lambda: op.scatter_values(values.long(), indices, 5), "values must be float32"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_default_bodies_agree() -> None:
    """Against the pure-torch bodies: decode and dot in the same bytes, scatters to rounding."""
    values, indices, weight, bias, rows = problem(64, 8, 100, 48)
    assert same_bytes(
        decode._sparse_decode(values, indices, weight, bias), op.sparse_decode(values, indices, weight, bias)
    )
    assert same_bytes(decode._sampled_dot(rows, indices, weight), op.sampled_dot(rows, indices, weight))
    torch.testing.assert_close(
        decode._scatter_rows(values, indices, rows, 100), op.scatter_rows(values, indices, rows, 100)
    )
    torch.testing.assert_close(
        decode._scatter_values(values, indices, 100), op.scatter_values(values, indices, 100)
    )

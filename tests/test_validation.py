"""Every complaint, once, with the words a user sees: the argument, what came, what was wanted.

The same words must come from the public function, the default body and the fake that torch.compile uses; and,
for what only data shows, from the compiled kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from finescope import ops
from finescope.codes import SparseCodes
from finescope.ops.registry import DEFAULTS

X, W, B = torch.zeros(3, 4), torch.zeros(6, 4), torch.zeros(6)
V, IDX = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)
OFFSETS = torch.tensor([0, 1, 3])
Q = (torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([1.0]))
C = (torch.tensor([0, 1, 2]), torch.tensor([2, 3]), torch.tensor([1.0, 2.0]))


def _case(name: str, args: tuple[Any, ...], error: type[Exception], message: str, **options: Any) -> Any:
    return pytest.param(name, args, options, error, message, id=f"{name}: {message[:60]}")


SHAPES = [
    _case("topk_encode", (X[0], W, B, 1), ValueError, "x must have shape [B, D], got [4]"),
    _case("topk_encode", (X, W[0], B, 1), ValueError, "weight must have shape [F, D], got [4]"),
    _case(
        "topk_encode",
        (X, W[:, :3], B, 1),
        ValueError,
        "weight must have shape [F, D] with D=4 like x [3, 4], got [6, 3]",
    ),
    _case("topk_encode", (X, W, B[:5], 1), ValueError, "bias must have shape [F] with F=6, got [5]"),
    _case("topk_encode", (X, W, W, 1), ValueError, "bias must have shape [F] with F=6, got [6, 4]"),
    _case("topk_encode", (X, W, B, 7), ValueError, "k must be at most F=6, got 7"),
    _case("topk_encode", (X, W, B, -1), ValueError, "k must be at least 0, got -1"),
    _case(
        "topk_encode",
        (X.long(), W, B, 1),
        TypeError,
        "x must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    _case(
        "topk_encode",
        (X, W.bool(), B, 1),
        TypeError,
        "weight must be float16, bfloat16, float32 or float64, got torch.bool",
    ),
    _case(
        "topk_encode",
        (X, W, B, 1, "fp8"),
        ValueError,
        "screen must be one of 'auto', 'int8', 'bf16', 'float32', 'none', got 'fp8'",
    ),
    _case("topk_encode", (X, W.to("meta"), B, 1), ValueError, "weight is on meta but x is on cpu"),
    _case("sparse_decode", (V[0], IDX, W, None), ValueError, "values must have shape [B, k], got [2]"),
    _case(
        "sparse_decode",
        (V, IDX[:2], W, None),
        ValueError,
        "indices must have shape [3, 2] like values, got [2, 2]",
    ),
    _case("sparse_decode", (V, IDX.int(), W, None), TypeError, "indices must be int64, got torch.int32"),
    _case("sparse_decode", (V, IDX, W, B), ValueError, "bias must have shape [D] with D=4, got [6]"),
    _case("sparse_decode", (V.int(), IDX, W, None), TypeError, "values must be float16"),
    _case(
        "sampled_dot",
        (X, IDX[:2], W),
        ValueError,
        "indices must have shape [B, k] with B=3 like rows [3, 4], got [2, 2]",
    ),
    _case(
        "sampled_dot",
        (X, IDX, W[:, :2]),
        ValueError,
        "weight must have shape [F, D] with D=4 like rows [3, 4], got [6, 2]",
    ),
    _case(
        "scatter_rows",
        (V, IDX, X[:2], 6),
        ValueError,
        "rows must have shape [B, D] with B=3 like values [3, 2], got [2, 4]",
    ),
    _case("scatter_rows", (V, IDX, X, -6), ValueError, "num_latents must be at least 0, got -6"),
    _case("scatter_values", (V, IDX, -1), ValueError, "num_latents must be at least 0, got -1"),
    _case(
        "pool_codes",
        (V, IDX, OFFSETS[None], "mean", 2),
        ValueError,
        "offsets must have shape [N+1], got [1, 3]",
    ),
    _case("pool_codes", (V, IDX, OFFSETS[:0], "mean", 2), ValueError, "offsets must have shape [N+1], got"),
    _case(
        "pool_codes", (V, IDX, OFFSETS.int(), "mean", 2), TypeError, "offsets must be int64, got torch.int32"
    ),
    _case(
        "pool_codes",
        (V, IDX, OFFSETS, "median", 2),
        ValueError,
        "reduce must be one of 'mean', 'max', 'sum', 'sqrt_mean', 'count', got 'median'",
    ),
    _case("pool_codes", (V, IDX, OFFSETS, "mean", -2), ValueError, "keep must be at least 0, got -2"),
    _case("cosine_topk", (X[0], W, 1), ValueError, "queries must have shape [Q, D], got [4]"),
    _case(
        "cosine_topk",
        (X, W[:, :3], 1),
        ValueError,
        "corpus must have shape [N, D] with D=4 like queries [3, 4], got [6, 3]",
    ),
    _case("cosine_topk", (X, W, -1), ValueError, "k must be at least 0, got -1"),
    _case("cosine_topk", (X, W, 1, "l2"), ValueError, "metric must be one of 'cosine', 'ip', got 'l2'"),
    _case(
        "cosine_topk",
        (X, W, 1),
        ValueError,
        "mask must have shape [N] with N=6, got [5]",
        mask=torch.ones(5, dtype=torch.bool),
    ),
    _case("cosine_topk", (X, W, 1), TypeError, "mask must be bool, got torch.float32", mask=torch.ones(6)),
    _case(
        "cosine_topk",
        (X, W, 1),
        ValueError,
        "exclude must have shape [Q, E] with Q=3, got [2, 2]",
        exclude=IDX[:2],
    ),
    _case("cosine_topk", (X, W, 1), TypeError, "exclude must be int64, got torch.int32", exclude=IDX.int()),
    _case("cosine_topk", (X, W, 1), ValueError, "id_offset must be at least 0, got -5", id_offset=-5),
    _case("pair_scores", (X, W, IDX[:2]), ValueError, "ids must have shape [Q, k] with Q=3, got [2, 2]"),
    _case("pair_scores", (X, W, IDX.int()), TypeError, "ids must be int64, got torch.int32"),
    _case("sparse_cosine_topk", (*Q, *C, 5, -1), ValueError, "k must be at least 0, got -1"),
    _case(
        "sparse_cosine_topk",
        (Q[0].int(), *Q[1:], *C, 5, 1),
        TypeError,
        "q_indptr must be int64, got torch.int32",
    ),
    _case(
        "sparse_cosine_topk",
        (*Q, *C[:2], C[2][:1], 5, 1),
        ValueError,
        "c_values must have shape [2] like c_indices, got [1]",
    ),
    _case(
        "sparse_cosine_topk",
        (*Q, C[0], C[1].float(), C[2], 5, 1),
        TypeError,
        "c_indices must be uint16, int32 or int64, got torch.float32",
    ),
    _case(
        "sparse_pair_scores", (*Q, *C, 5, IDX), ValueError, "ids must have shape [Q, k] with Q=1, got [3, 2]"
    ),
]

DATA = [
    _case(
        "sparse_decode", (V, IDX + 6, W, None), IndexError, "indices holds 6 at [0, 0], which is outside 0..5"
    ),
    _case(
        "sparse_decode",
        (V, IDX - 1, W, None),
        IndexError,
        "indices holds -1 at [0, 0], which is outside 0..5",
    ),
    _case("sampled_dot", (X, IDX + 2**40, W), IndexError, "indices holds 1099511627776 at [0, 0], which is"),
    _case("scatter_rows", (V, IDX + 6, X, 6), IndexError, "indices holds 6 at [0, 0], which is outside 0..5"),
    _case("scatter_values", (V, IDX - 3, 6), IndexError, "indices holds -3 at [0, 0], which is outside 0..5"),
    _case(
        "pool_codes",
        (V, IDX, OFFSETS + 1, "mean", 2),
        ValueError,
        "offsets must run from 0 to B=3, got 1 to 4",
    ),
    _case(
        "pool_codes",
        (V, IDX, torch.tensor([0, 3, 1, 3]), "mean", 2),
        ValueError,
        "offsets falls after document 1",
    ),
    _case(
        "pool_codes",
        (V + 1, IDX - 1, OFFSETS, "mean", 2),
        IndexError,
        "indices holds -1 with a positive value",
    ),
    _case("pair_scores", (X, W, IDX + 6), IndexError, "ids holds 6 at [0, 0], which is outside -1..5"),
    _case("pair_scores", (X, W, IDX - 2), IndexError, "ids holds -2 at [0, 0], which is outside -1..5"),
    _case(
        "sparse_cosine_topk", (*Q, *C, 3, 1), IndexError, "c_indices holds 3 in row 1, which is outside 0..2"
    ),
    _case(
        "sparse_cosine_topk", (Q[0] + 1, *Q[1:], *C, 5, 1), ValueError, "q_indptr must rise from 0 to nnz=1"
    ),
]


def _public(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if name == "topk_encode":
        return ops.topk_encode(*args[:4], screen=args[4] if len(args) > 4 else None)
    if name == "pool_codes":
        return ops.pool_codes(*args[:3], reduce=args[3], keep=args[4])
    if name in ("cosine_topk", "pair_scores"):
        count = 3
        return getattr(ops, name)(
            *args[:count], **dict(zip(["metric"], args[count:], strict=False)), **options
        )
    if name == "sparse_decode":
        return ops.sparse_decode(*args)
    return DEFAULTS[name](*args, **options)  # called by other operations only


@pytest.mark.parametrize(("name", "args", "options", "error", "message"), SHAPES)
def test_what_can_be_seen_without_data(
    name: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    pattern = re.escape(message)
    with pytest.raises(error, match=pattern):
        _public(name, args, options)
    with pytest.raises(error, match=pattern):
        DEFAULTS[name](*args, **options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(value) if isinstance(value, Tensor) else value for value in args]
        also = {
            key: mode.from_tensor(value) if isinstance(value, Tensor) else value
            for key, value in options.items()
        }
        with pytest.raises(error, match=pattern):
            getattr(torch.ops.finescope, name)(*fake, **also)


@pytest.mark.parametrize(("name", "args", "options", "error", "message"), DATA)
def test_what_only_data_shows(
    name: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for run in (DEFAULTS[name], getattr(torch.ops.finescope, name)):
        with pytest.raises(error, match=re.escape(message)):
            run(*args, **options)


@pytest.mark.parametrize(
    "call", [lambda c, d: ops.sparse_cosine_topk(c, d, 2), lambda c, d: ops.sparse_pair_scores(c, d, IDX)]
)
def test_codes(call: Callable[[Any, Any], Any]) -> None:
    codes, other = SparseCodes.from_dense(torch.ones(3, 4)), SparseCodes.from_dense(torch.ones(3, 5))
    with pytest.raises(ValueError, match="queries have F=4 latents but corpus has F=5"):
        call(codes, other)
    with pytest.raises(TypeError, match="corpus must be SparseCodes, got Tensor"):
        call(codes, torch.ones(3, 4))
    with pytest.raises(TypeError, match="queries must be SparseCodes, got Tensor"):
        call(torch.ones(3, 4), codes)


def test_arrays_of_other_libraries_are_named() -> None:
    rows = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(TypeError, match=r"x must be a torch tensor \[B, D\], got ndarray"):
        ops.topk_encode(rows, rows, None, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"queries must be a torch tensor \[Q, D\], got ndarray"):
        ops.cosine_topk(rows, torch.zeros(2, 3), 1)  # type: ignore[arg-type]

"""Rows that are hard for a search or an encoder, in every dtype; and as CSR."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = [
    "gaussian",
    "grid",
    "duplicates",
    "equal",
    "outliers",
    "heavy",
    "tiny",
    "huge",
    "subnormal",
    "mean",
    "near",
]


def rows(kind: str, count: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Rows of data that is hard in one way each."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=g, dtype=torch.float64)
    top = 1e4 if dtype == torch.float16 else 1e18
    if kind == "grid":  # many exact ties
        x = torch.randint(-2, 3, (count, width), generator=g).double()
    elif kind == "duplicates":
        x = x[torch.randint(0, max(1, count // 8), (count,), generator=g)] if count else x
    elif kind == "equal":
        x = x[:1].expand(count, width)
    elif kind == "outliers":  # a few dimensions 100 times the rest, as in residual streams
        x = x * torch.where(torch.arange(width) % 50 == 3, 100.0, 1.0)
    elif kind == "heavy":  # rows of very different sizes
        x = x * torch.exp2(torch.randint(-12, 13, (count, 1), generator=g).double())
    elif kind == "tiny":
        x = x * (1e-4 if dtype == torch.float16 else 1e-30)
    elif kind == "huge":
        x = x * top
    elif kind == "subnormal":
        x = x * (1e-7 if dtype == torch.float16 else 1e-40)
    elif kind == "mean":
        x = x + 30.0
    elif kind == "near":  # one row, changed by single units in the last place
        x = x[:1] * (1 + torch.randint(-2, 3, (count, width), generator=g) * 2.0**-23)
    return x.to(dtype)


def csr(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arrays of a dense matrix's entries: indptr, indices, values."""
    held = SparseCodes.from_dense(dense)
    return held.indptr, held.indices, held.values

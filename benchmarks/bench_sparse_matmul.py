"""``sparse_matmul`` against scipy, whose matrix holds its values in float64 already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import data, harness
from finescope.ops import sparse_matmul


@pytest.mark.parametrize(
    ("n", "f", "c"),
    [
        pytest.param(n, f, c, id=f"N{n}-M100-F{f}-C{c}")
        for n, f, c in ((200_000, 8192, 24), (200_000, 8192, 1), (200_000, 65536, 24))
    ],
)
def bench_sparse_matmul(benchmark: Any, n: int, f: int, c: int) -> None:
    codes = data.codes(n, 100, f)
    panel = torch.randn(f, c, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs, dense = codes.to_scipy().astype(np.float64), panel.numpy()
    np.testing.assert_allclose(sparse_matmul(codes[:100], panel).numpy(), theirs[:100] @ dense, rtol=1e-9)
    harness.compare(benchmark, lambda: sparse_matmul(codes, panel), {"scipy": lambda: theirs @ dense})

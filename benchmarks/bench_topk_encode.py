"""The fused encoder against torch's linear + relu + topk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import data, harness
from finescope.ops import topk_encode

# B, D, F, K: the sizes of the issue first, then the rest of the grid.
SIZES = [
    (4096, 512, 16384, 32),
    (1024, 512, 16384, 32),
    (512, 2048, 65536, 64),
    (1, 512, 16384, 32),
    (2048, 384, 16384, 16),
    (256, 4096, 16384, 64),
    (1024, 768, 131072, 256),
]


def float64_oracle(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest rectified pre-activations in float64."""
    return torch.topk(torch.relu(x.double() @ weight.double().T + bias.double()), k).values


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int, screen: str) -> None:
    """Hold a few rows against float64: no tolerance but the last rounding."""
    some = x[:: max(1, len(x) // 16)][:16]
    values, _ = topk_encode(some, weight, bias, k, screen=screen)
    expected = float64_oracle(some, weight, bias, k)
    torch.testing.assert_close(values.double(), expected, rtol=2**-23, atol=0)


@pytest.mark.parametrize("kind", data.KINDS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "B{}-D{}-F{}-K{}".format(*size))
def bench_topk_encode(benchmark: Any, size: tuple[int, int, int, int], kind: str) -> None:
    b, d, f, k = size
    if kind != "gaussian" and size not in SIZES[:3]:
        pytest.skip("the grid is Gaussian; the sizes of the issue are measured on both")
    x, (weight, bias) = data.rows(kind, b, d), data.encoder(f, d)
    for screen in ("auto", "float32"):
        check(x, weight, bias, k, screen)
    half, half_weight, half_bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    rounds = 5 if b * d * f > 1 << 34 else 15 if b > 1 else 101
    harness.compare(
        benchmark,
        lambda: topk_encode(x, weight, bias, k),
        {
            "ours, float32 screen": lambda: topk_encode(x, weight, bias, k, screen="float32"),
            "torch float32": lambda: torch.topk(torch.relu(torch.nn.functional.linear(x, weight, bias)), k),
            "torch bfloat16": lambda: torch.topk(
                torch.relu(torch.nn.functional.linear(half, half_weight, half_bias)), k
            ),
        },
        rounds,
    )

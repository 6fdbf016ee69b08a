"""The fused encoder against torch's linear + relu + topk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from benchmarks import data, grid, harness, truth
from finescope.ops import PackedMatrix, topk_encode


def check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int, screen: str) -> None:
    """Hold a few rows against float64."""
    some = x[:: max(1, len(x) // 16)][:16]
    values, latents = topk_encode(some, weight, bias, k, screen=screen)
    truth.check_topk(values, latents, truth.activations(some, weight, bias))


@pytest.mark.parametrize(
    ("kind", "size"), grid.cases(grid.ENCODER, grid.ENCODER_BIG, grid.ENCODER_KINDS, "BDFK")
)
def bench_topk_encode(benchmark: Any, kind: str, size: tuple[int, int, int, int]) -> None:
    b, d, f, k = size
    x = data.rows(kind, b, d)
    weight, bias = data.encoder(f, d, rows=data.rows(kind, 32768, d, seed=5) if kind == "real" else None)
    for screen in ("auto", "float32"):
        check(x, weight, bias, k, screen)
    half, half_weight, half_bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    packed = PackedMatrix(weight, metric="encode")
    harness.compare(
        benchmark,
        lambda: topk_encode(x, weight, bias, k),
        {
            "ours, packed before": lambda: packed.topk_encode(x, bias, k),
            "ours, float32 screen": lambda: topk_encode(x, weight, bias, k, screen="float32"),
            "torch float32": lambda: torch.topk(torch.relu(linear(x, weight, bias)), k),
            "torch bfloat16": lambda: torch.topk(torch.relu(linear(half, half_weight, half_bias)), k),
        },
        limit=harness.Limit(b * d * f, d, weight if b < 8 else None),
    )

"""``sparse_decode`` and its backward against ``torch.nn.functional.embedding_bag``.

Latents are drawn evenly, or as those of a trained SAE are: the r-th most common one in proportion to 1/r.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks import harness
from finescope.ops import sparse_decode

B, D, F = 2048, 512, 16384


def problem(K: int, latents: str) -> tuple[Tensor, Tensor, Tensor]:
    """Values [B,K], latents [B,K] and decoder rows [F,D]."""
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(F, D)).requires_grad_()
    indices = torch.randint(0, F, (B, K))
    if latents == "zipf":
        frequency = 1 / torch.arange(1, F + 1)[torch.randperm(F)]
        indices = torch.multinomial(frequency.expand(B, F), K)
    return torch.rand(B, K).requires_grad_(), indices, weight


def peer(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """The same sum by torch."""
    return embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


@pytest.mark.parametrize("latents", ["even", "zipf"])
@pytest.mark.parametrize("K", [32, 128])
def bench_sparse_decode(benchmark: Any, K: int, latents: str) -> None:
    values, indices, weight = problem(K, latents)
    with torch.no_grad():
        ours = sparse_decode(values, indices, weight, None)
        torch.testing.assert_close(ours, peer(values, indices, weight), rtol=1e-4, atol=1e-5)
        harness.compare(
            benchmark,
            lambda: sparse_decode(values, indices, weight, None),
            {"embedding_bag": lambda: peer(values, indices, weight)},
            rounds=31,
        )


@pytest.mark.parametrize("latents", ["even", "zipf"])
@pytest.mark.parametrize("K", [32, 128])
def bench_sparse_decode_backward(benchmark: Any, K: int, latents: str) -> None:
    values, indices, weight = problem(K, latents)
    grad = torch.randn(B, D)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, (values, weight), grad, retain_graph=True)

    ours, theirs = sparse_decode(values, indices, weight, None), peer(values, indices, weight)
    for left, right in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    harness.compare(
        benchmark, lambda: gradients(ours), {"embedding_bag": lambda: gradients(theirs)}, rounds=11
    )

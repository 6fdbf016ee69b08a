"""Data made of known directions, which a dictionary must find again."""

from __future__ import annotations

import torch
from torch import Tensor

D, F, K = 192, 256, 8


def dictionary_data(count: int) -> tuple[Tensor, Tensor]:
    """Sums of K of F random unit directions with weights in [0.5, 1.5], off centre: [count,D], [F,D]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    chosen = torch.rand(count, F, generator=generator).topk(K, dim=1).indices
    weights = torch.rand(count, K, generator=generator) + 0.5
    sums = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    return sums + 0.5 * torch.randn(D, generator=generator), directions

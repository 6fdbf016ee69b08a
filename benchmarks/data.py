"""Inputs of the benchmarks: Gaussian, heavy-tailed as in residual streams, and sparse codes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finescope import SparseCodes

KINDS = ("gaussian", "heavy-tailed")


def rows(kind: str, n: int, d: int, seed: int = 0) -> Tensor:
    """[n,d] float32. "heavy-tailed": six coordinates a hundred times the others, and a common mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "heavy-tailed":
        outliers = torch.randperm(d, generator=torch.Generator().manual_seed(7))[:6]
        x[:, outliers] *= 100.0
        x += torch.randn(d, generator=torch.Generator().manual_seed(8))
    return x


def encoder(f: int, d: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Weight [f,d] with rows of about unit length, and bias [f]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(f, d, generator=generator) / d**0.5
    return weight, torch.randn(f, generator=generator) * 0.01


def codes(n: int, nnz: int, f: int, seed: int = 0) -> SparseCodes:
    """n codes of nnz entries each; latents are as unequally common as in a trained autoencoder (Zipf)."""
    generator = np.random.default_rng(seed)
    common = 1.0 / np.arange(1, f + 1) ** 0.6
    edges = np.cumsum(common / common.sum())
    # Draws with replacement, repeated latents moved on to the next free one: cheap, and nnz is exact.
    drawn = np.sort(np.searchsorted(edges, generator.random((n, nnz), dtype=np.float32)), axis=1)
    step = np.arange(nnz)
    drawn = np.maximum.accumulate(drawn - step, axis=1) + step
    drawn = np.minimum(drawn, f - nnz + step)
    indices = generator.permutation(f).astype(np.int32)[drawn]
    order = np.argsort(indices, axis=1)
    values = generator.gamma(2.0, 1.0, size=(n, nnz)).astype(np.float16)
    return SparseCodes(
        torch.arange(0, n * nnz + 1, nnz, dtype=torch.int64),
        torch.from_numpy(np.take_along_axis(indices, order, axis=1).reshape(-1)),
        torch.from_numpy(np.take_along_axis(values, order, axis=1).reshape(-1)),
        f,
    )

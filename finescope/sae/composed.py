"""Forward pass and loss terms of an SAE made of separate differentiable operations.

This is the definition; :mod:`finescope.sae.fused` computes the same with one backward. It is also what runs
where that can't: gradients of the activations, mixed dtypes, autocast, second derivatives, and where no
gradient is asked for, so that none needs preparing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finescope.ops import sparse_decode
from finescope.sae import losses
from finescope.sae.functional import encode_centred


class Options(NamedTuple):
    """What the terms depend on besides tensors."""

    k: int
    """K, the latents of the code."""
    wide: int
    """K' ≥ K, the latents of the encoding: 4K with MultiTopK."""
    multi_topk: bool
    """Whether there is a MultiTopK term."""
    k_aux: int | None
    """Dead latents that AuxK lets take part per token; None for D/2."""


class SaeTerms(NamedTuple):
    """Reconstruction, code and loss terms over flat rows; see ``ForwardOutput``."""

    out: Tensor
    """[B,D]"""
    values: Tensor
    """[B,K]"""
    indices: Tensor
    """[B,K]"""
    fvu: Tensor
    mse: Tensor
    l1: Tensor
    multi_topk: Tensor
    auxk: Tensor


def decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``sparse_decode``; under autocast the rows of ``weight`` are read in the autocast dtype."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        weight = weight.to(torch.get_autocast_dtype(kind))
    return sparse_decode(values, indices, weight, bias)


def forward(
    x: Tensor,
    b_dec: Tensor,
    weight: Tensor,
    bias: Tensor,
    decoder: Tensor,
    dead: Tensor | None,
    options: Options,
    whole: losses.Whole | None = None,
) -> SaeTerms:
    """Encode and decode ``x`` and return every term.

    Args:
        x: activations [B,D].
        b_dec: centre [D].
        weight: encoder rows [F,D].
        bias: encoder bias [F].
        decoder: decoder rows [F,D].
        dead: the n latents that AuxK revives, int64 [n]; None for none.
        options: numbers of latents.
        whole: of the batch that ``x`` is a part of, if it is.
    """
    k, wide = options.k, options.wide
    values, indices = encode_centred(x, b_dec, weight, bias, wide)
    out = decode(values[:, :k], indices[:, :k], decoder, b_dec)

    target = x.to(torch.promote_types(x.dtype, torch.float32))
    residual = target - out
    variance = losses.total_variance(target) if whole is None else whole.variance
    count = None if whole is None else whole.real
    multi_topk = auxk = variance.new_zeros(())
    if wide > k:
        # The larger reconstruction continues the smaller one, so that its first K rows aren't gathered
        # twice, in the backward either.
        rest = decode(values[:, k:], indices[:, k:], decoder, None)
        multi_topk = losses.fvu(residual - rest, variance)
    elif options.multi_topk:
        multi_topk = losses.fvu(residual, variance)  # K is F already
    if dead is not None and len(dead):
        rows = (parameter.index_select(0, dead).to(x.dtype) for parameter in (weight, bias, decoder))
        auxk = losses.auxk(x, b_dec, residual, losses.AuxWeights(*rows), variance, options.k_aux)
    return SaeTerms(
        out,
        values[:, :k],
        indices[:, :k],
        losses.fvu(residual, variance),
        losses.normalised_mse(residual, target, count),
        losses.l1(values[:, :k], target, count),
        multi_topk,
        auxk,
    )

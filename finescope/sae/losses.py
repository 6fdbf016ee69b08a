"""The terms of a sparse autoencoder's loss. All are scalars that gradients flow through.

Throughout, x [B,D] are the activations of a batch, x̂ [B,D] their reconstruction and e = x − x̂.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from finescope.ops import sparse_decode
from finescope.sae.functional import encode_centred

MULTI_TOPK_FACTOR = 4
"""MultiTopK also reconstructs from this many times K latents (Gao et al., 2024, §A.2)."""
MULTI_TOPK_WEIGHT = 1 / 8
"""Weight of that second reconstruction in the loss."""

# AuxK over at most this many times k_aux dead latents is a dense product with [B, n_dead]; above that the
# sparse operations do less work, and the matrix would grow towards [B,F].
_DENSE_AUX_FACTOR = 8


class Terms(Protocol):
    """The loss terms of a forward pass, all scalars; ``ForwardOutput`` has them."""

    @property
    def fvu(self) -> Tensor: ...
    @property
    def reconstruction_loss(self) -> Tensor: ...
    @property
    def l1_loss(self) -> Tensor: ...
    @property
    def auxk_loss(self) -> Tensor: ...
    @property
    def multi_topk_fvu(self) -> Tensor: ...


class Whole(NamedTuple):
    """What the terms of some tokens of a batch are divided by, so that those of all its parts add up."""

    variance: Tensor
    """:func:`total_variance` of the batch."""
    real: Tensor
    """How many of its tokens aren't zero; at least 1."""


class AuxWeights(NamedTuple):
    """The rows of encoder and decoder that belong to the dead latents (n of them)."""

    encoder: Tensor
    """[n,D]"""
    bias: Tensor
    """[n]"""
    decoder: Tensor
    """[n,D]"""


def total_variance(x: Tensor) -> Tensor:
    """Return Σ ‖x_b − mean(x)‖², the denominator of every fraction below; never zero.

    A batch without variance (one token, or equal tokens) has no fraction of variance: Σ ‖x_b‖² stands in, and
    1 where that is zero as well.
    """
    return denominator((x - x.mean(0)).square().sum(), x.square().sum(), x.dtype)


def denominator(variance: Tensor, energy: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the variance of a batch of element type ``dtype``, or what stands in; see above."""
    # Equal tokens leave rounding noise of about eps² · energy, which isn't a variance.
    noise = (8 * torch.finfo(dtype).eps) ** 2
    found = torch.where(variance > noise * energy, variance, energy)
    return torch.where(found == 0, torch.ones_like(found), found)


def fvu(residual: Tensor, variance: Tensor) -> Tensor:
    """Return the fraction of variance unexplained, Σ ‖e_b‖² / Σ ‖x_b − mean(x)‖²; residual e [B,D]."""
    return residual.square().sum() / variance


def normalised_mse(residual: Tensor, x: Tensor, count: Tensor | None = None) -> Tensor:
    """Return mean_b( ‖e_b‖² / ‖x_b‖² ), the supplement's reconstruction loss; zero rows of x are left out.

    The mean is over ``count`` rows where that is given.
    """
    energy = x.square().sum(-1)
    real = energy > 0
    ratio = residual.square().sum(-1) / torch.where(real, energy, 1.0)
    return torch.where(real, ratio, 0.0).sum() / (real.sum().clamp_min(1) if count is None else count)


def l1(values: Tensor, x: Tensor, count: Tensor | None = None) -> Tensor:
    """Return mean_b( Σ_j |a_bj| / ‖x_b‖ ) over the kept codes ``values`` [B,K]; zero rows of x are left out.

    The mean is over ``count`` rows where that is given.

    The supplement sums over all F pre-activations. Those that TopK drops have no part in the code, and to
    keep them would take the [B,F] matrix; the penalty here is on the code itself.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1)
    real = norm > 0
    ratio = values.abs().sum(-1) / torch.where(real, norm, 1.0)
    return torch.where(real, ratio, 0.0).sum() / (real.sum().clamp_min(1) if count is None else count)


def auxk(
    x: Tensor,
    b_dec: Tensor,
    residual: Tensor,
    weights: AuxWeights,
    variance: Tensor,
    k_aux: int | None = None,
) -> Tensor:
    """Return AuxK: how badly the strongest dead latents reconstruct what the living ones left over.

    scale · Σ ‖ê_b − sg(e_b)‖² / variance with k_aux = D/2 unless given, scale = min(n_dead / k_aux, 1) and
    ê the sum of the min(k_aux, n_dead) strongest dead latents, without b_dec, which e no longer contains
    (Gao et al., 2024, §A.2). Only the residual is detached: the gradient reaches encoder, bias, decoder and
    b_dec. A compact problem over the dead latents' own rows; nothing here has the size of F.

    Args:
        x: activations [B,D].
        b_dec: centre [D].
        residual: e [B,D] of the main reconstruction; detached here.
        weights: rows of the n dead latents.
        variance: denominator from :func:`total_variance`.
        k_aux: dead latents that take part per token. Few make them specialise sooner: where all take part,
            each learns a blend of what is missing.
    """
    dead, width = weights.encoder.shape
    budget = aux_budget(width, k_aux)
    keep = min(budget, dead)
    if aux_is_dense(dead, budget):
        acts = torch.relu(linear(x - b_dec, weights.encoder, weights.bias))
        if dead > keep:
            values, indices = acts.topk(keep, dim=1)
            acts = torch.zeros_like(acts).scatter(1, indices, values)
        reconstruction = acts.to(weights.decoder.dtype) @ weights.decoder
    else:
        values, indices = encode_centred(x, b_dec, weights.encoder, weights.bias, keep)
        reconstruction = sparse_decode(values, indices, weights.decoder, None)
    scale = min(dead / budget, 1.0)
    return scale * fvu(reconstruction.to(residual.dtype) - residual.detach(), variance)


def aux_budget(width: int, k_aux: int | None) -> int:
    """Return how many dead latents may take part per token: D/2 unless told."""
    return max(1, width // 2) if k_aux is None else k_aux


def aux_is_dense(dead: int, budget: int) -> bool:
    """Return whether AuxK over ``dead`` latents is cheaper as products with a [B,n_dead] matrix."""
    return dead <= _DENSE_AUX_FACTOR * budget


def total(terms: Terms, main: str, l1_weight: float, auxk_alpha: float) -> Tensor:
    """Return the loss: main term + l1_weight · L1 + auxk_alpha · AuxK + MultiTopK / 8.

    ``main`` is ``fvu`` or ``normalized_mse``. Terms that are off are zero already.
    """
    loss = terms.fvu if main == "fvu" else terms.reconstruction_loss
    return (
        loss
        + l1_weight * terms.l1_loss
        + auxk_alpha * terms.auxk_loss
        + MULTI_TOPK_WEIGHT * terms.multi_topk_fvu
    )

"""Where training starts: the centre of the data, and an encoder whose codes have the right size."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.ops import sparse_decode, topk_encode
from finescope.sae.architectures.base import Autoencoder

SAMPLE_TOKENS = 32_768
"""Tokens that the initialisation looks at (Gao et al., 2024, §A.1)."""
_SCALE_TOKENS = 2_048


def geometric_median(points: Tensor, *, max_steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return the point that minimises the sum of distances to ``points``.

    Weiszfeld's iteration from the mean: y ← Σ x_i/‖x_i − y‖ / Σ 1/‖x_i − y‖. Unlike the mean it isn't dragged
    along by the few tokens with huge activations that language models have.

    Args:
        points: [N,D] floating point, N ≥ 1.
        max_steps: iterations at most.
        tolerance: stop once a step moves y by less than this fraction of the mean distance.

    Returns:
        [D] in the dtype of ``points``.

    Raises:
        ValueError: ``points`` isn't a matrix with at least one row.
    """
    if points.dim() != 2 or len(points) == 0:
        raise ValueError(f"points must be [N,D] with N at least 1, got {tuple(points.shape)}")
    dtype = points.dtype
    points = points.to(torch.promote_types(dtype, torch.float32))
    centre = points.mean(0)
    # Around the mean, so that squares of distances may be expanded into two matrix-vector products.
    points = points - centre
    squares = points.square().sum(1)
    median = torch.zeros_like(centre)
    for _ in range(max_steps):
        distances = (squares - 2 * (points @ median) + median.square().sum()).clamp_min_(0).sqrt_()
        spread = float(distances.mean())
        if spread == 0:
            break
        weights = distances.clamp_min_(1e-6 * spread).reciprocal_()
        weights /= weights.sum()
        moved = weights @ points
        step = float((moved - median).norm())
        median = moved
        if step <= tolerance * spread:
            break
    return (median + centre).to(dtype)


@torch.no_grad()
def initialise_from_data(sae: Autoencoder, sample: Tensor) -> None:
    """Set ``b_dec`` to the geometric median of ``sample`` [n,D] and scale the encoder to the data.

    The encoder's rows are multiplied by the factor that makes the first reconstructions, from the K strongest
    latents, explain most variance (least squares). While the biases are zero that changes the size of the
    codes but not their latents. What an architecture has besides is set by what then is there.
    """
    points = sample.to(device=sae.device, dtype=sae.dtype)
    sae.b_dec.copy_(geometric_median(points))
    few = points[:_SCALE_TOKENS]
    target = (few - sae.b_dec).double()
    codes = topk_encode(
        few - sae.b_dec, sae.encoder.weight, sae.encoder.bias, min(sae.cfg.k, sae.num_latents)
    )
    reconstruction = sparse_decode(*codes, sae.W_dec).double()
    energy = reconstruction.square().sum()
    factor = float((target * reconstruction).sum() / energy) if float(energy) > 0 else 1.0
    if factor > 0 and factor != float("inf"):
        sae.encoder.weight.mul_(factor)
    sae.start_from(few)

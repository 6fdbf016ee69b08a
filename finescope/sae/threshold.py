"""Latents above thresholds as a library that computes in a narrow element type finds them."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import threshold_encode
from finescope.sae.ragged import chosen


def threshold_encode_rounded(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor | float, kind: torch.dtype
) -> SparseCodes:
    """Return the latents with ``round(round(x @ weight.T) + bias) > threshold``, and that as their values.

    So does a library that computes in a narrow element type.

    Args:
        x: activations [B,D].
        weight: encoder [F,D].
        bias: [F].
        threshold: [F], or one number for all; not negative.
        kind: the narrow type.
    """
    # Each rounding moves a number by less than half of this times itself.
    room = 4 * torch.finfo(kind).eps
    limits = torch.as_tensor(threshold, dtype=torch.float64, device=x.device).expand(len(weight))
    least = limits * (1 - room) - room * bias.double().abs()
    ones, none = torch.ones_like(limits), torch.zeros_like(limits)
    found = threshold_encode(x, weight, bias, least, scale=ones, offset=none)
    latents = found.indices.to(torch.int64)
    values = (found.values.to(kind) + bias.to(kind)[latents]).to(found.values.dtype)
    return chosen(
        SparseCodes(found.indptr, found.indices, values, found.num_latents, check=False),
        ~(values <= limits[latents]),
    )

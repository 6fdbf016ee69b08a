"""Latents above thresholds as a library that computes in a narrow element type finds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.ragged import chosen


def rounded(
    encode: Callable[..., SparseCodes], bias: Tensor, threshold: Tensor | float, kind: torch.dtype
) -> SparseCodes:
    """Return the latents with ``round(round(x @ weight.T) + bias) > threshold``, and that as their values.

    So does a library that computes in a narrow element type.

    Args:
        encode: ``threshold_encode`` of activations [B,D] and an encoder [F,D], which takes the rest.
        bias: [F].
        threshold: [F], or one number for all; not negative.
        kind: the narrow type.
    """
    # Each rounding moves a number by less than half of this times itself.
    room = 4 * torch.finfo(kind).eps
    limits = torch.as_tensor(threshold, dtype=torch.float64, device=bias.device).expand(len(bias))
    least = limits * (1 - room) - room * bias.double().abs()
    ones, none = torch.ones_like(limits), torch.zeros_like(limits)
    found = encode(bias, least, scale=ones, offset=none)
    latents = found.indices.to(torch.int64)
    values = (found.values.to(kind) + bias.to(kind)[latents]).to(found.values.dtype)
    return chosen(
        SparseCodes(found.indptr, found.indices, values, found.num_latents, check=False),
        ~(values <= limits[latents]),
    )

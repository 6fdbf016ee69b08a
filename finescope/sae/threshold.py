"""Every latent whose pre-activation exceeds its threshold, as sparse rows: in bounded memory, decided in
float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks
from finescope.ops.dense import Encode
from finescope.ops.engine import BLOCK_ELEMENTS, NEVER
from finescope.ops.fixed_order import pair_dots
from finescope.sae.ragged import chosen


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor | float,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> SparseCodes:
    """Return the latents with ``x @ weight.T + bias > threshold``, without storing the [B,F] matrix.

    Which latents are kept, and their values, are those of float64 in the fixed order; values are rounded
    once.

    Args:
        x: activations [B,D], any floating dtype.
        weight: encoder [F,D], any floating dtype.
        bias: [F], or None.
        threshold: [F], or one number for all.
        scale: [F] with ``offset`` [F]: values are ``scale · (x @ weight.T) + offset`` instead of the
            pre-activation.
        offset: see there.

    Returns:
        codes [B,F], latents ascending, float32 (float64 if any input is). A row of ``x`` with a NaN or an
        infinity holds one NaN, at latent 0.
    """
    checks.topk_encode(x, weight, bias, 0, "none")
    dtype = checks.result_dtype(x, weight, bias)
    latents = weight.shape[0]
    limits = torch.as_tensor(threshold, dtype=torch.float64, device=x.device).expand(latents)
    problem = Encode(x, weight, bias, NEVER)
    finite = problem.weight_norm.isfinite().all()
    bad = ~(problem.x_norm.isfinite() & (finite if bias is None else finite & bias.isfinite().all()))
    tall = max(1, min(len(x), max(256, BLOCK_ELEMENTS // max(1, latents))))
    wide = max(1, min(latents, BLOCK_ELEMENTS // tall, problem.max_columns))
    places = [torch.zeros(0, dtype=torch.int64, device=x.device)]  # row · F + latent, ascending
    values = [torch.zeros(0, dtype=dtype, device=x.device)]
    for first in range(0, len(x) if latents else 0, tall):
        rows = slice(first, min(first + tall, len(x)))
        blocks = (slice(start, min(start + wide, latents)) for start in range(0, latents, wide))
        found = [_exceed(problem, rows, cols, limits, bad) for cols in blocks]
        place, dots = (torch.cat(parts) for parts in zip(*found, strict=True))
        place, order = place.sort()
        dots, column = dots[order], place % latents
        if scale is not None and offset is not None:
            dots = dots * scale.double()[column] + offset.double()[column]
        elif bias is not None:
            dots = dots + bias.double()[column]
        places.append(place)
        values.append(dots.to(dtype))
    place = torch.cat(places)
    starts = torch.arange(len(x) + 1, device=x.device) * latents
    indptr = torch.searchsorted(place, starts) if latents else starts
    return SparseCodes(
        indptr, (place % max(1, latents)).to(torch.int32), torch.cat(values), latents, check=False
    )


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


def _exceed(problem: Encode, rows: slice, cols: slice, limits: Tensor, bad: Tensor) -> tuple[Tensor, Tensor]:
    """Return places (row · F + latent) and exact dots of the entries of a block that exceed their limits."""
    screened = problem.screen(rows, cols)
    reach = screened.double() + problem.bound(rows, screened)
    candidates = ~(reach <= limits[cols])  # NaN: a screen that overflowed proves nothing
    candidates &= ~bad[rows, None]
    row, column = candidates.nonzero(as_tuple=True)
    row, column = row + rows.start, column + cols.start
    dots = pair_dots(problem.x, row, problem.weight, column[:, None]).squeeze(1)
    sums = dots if problem.bias is None else dots + problem.bias.double()[column]
    kept = sums > limits[column]
    place, dots = (row * problem.cols + column)[kept], dots[kept]
    broken = bad[rows].nonzero().squeeze(1)
    if cols.start == 0 and len(broken):
        # Whoever trains must see it, as in topk_encode.
        place = torch.cat([place, (broken + rows.start) * problem.cols])
        dots = torch.cat([dots, torch.full_like(broken, math.nan, dtype=dots.dtype)])
    return place, dots

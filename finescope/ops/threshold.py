"""Default body of ``threshold_encode``: blocks of scores, of which those that may exceed are made exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finescope.ops import checks
from finescope.ops.dense import Encode
from finescope.ops.engine import NEVER
from finescope.ops.fixed_order import pair_dots
from finescope.ops.registry import default
from finescope.ops.schemas import call

# Scores that are looked at together; several float64 numbers are held for each.
_BLOCK = 1 << 19


@default("threshold_encode")
def _threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    screen: str,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.threshold_encode(x, weight, bias, threshold, scale, offset, screen)
    dtype, latents, limits = checks.result_dtype(x, weight, bias), weight.shape[0], threshold.double()
    problem = Encode(x, weight, bias, NEVER)
    finite = problem.weight_norm.isfinite().all()
    if bias is not None:
        finite = finite & bias.isfinite().all()
    bad = ~(problem.x_norm.isfinite() & finite)
    tall = max(1, min(len(x), max(64, _BLOCK // max(1, latents))))
    wide = max(1, min(latents, _BLOCK // tall, problem.max_columns))
    indices = [torch.zeros(0, dtype=torch.int32, device=x.device)]
    values = [torch.zeros(0, dtype=dtype, device=x.device)]
    lengths = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for first in range(0, len(x) if latents else 0, tall):
        rows = slice(first, min(first + tall, len(x)))
        blocks = (slice(start, min(start + wide, latents)) for start in range(0, latents, wide))
        found = [_exceeding(problem, rows, cols, limits, bad) for cols in blocks]
        place, dots = (torch.cat(parts) for parts in zip(*found, strict=True))
        place, order = place.sort()
        dots, column = dots[order], place % latents
        lengths[rows] = torch.bincount(place // latents, minlength=rows.stop - first)
        if scale is not None and offset is not None:
            dots = scale.double()[column] * dots + offset.double()[column]
        elif bias is not None:
            dots = dots + bias.double()[column]
        indices.append(column.to(torch.int32))
        values.append(dots.to(dtype))
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return torch.cat(values), torch.cat(indices), indptr


def _exceeding(
    problem: Encode, rows: slice, cols: slice, limits: Tensor, bad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return places (row of the block · F + latent) and exact dots of the entries that exceed."""
    screened = problem.screen(rows, cols)
    reach = problem.bound(rows, screened).add_(screened)
    # A NaN, of a screen that overflowed, proves nothing.
    row, column = (~(reach <= limits[cols]) & ~bad[rows, None]).nonzero(as_tuple=True)
    column = column + cols.start
    dots = pair_dots(problem.x, row + rows.start, problem.weight, column[:, None]).squeeze(1)
    sums = dots if problem.bias is None else dots + problem.bias.double()[column]
    kept = sums > limits[column]
    place, dots = (row * problem.cols + column)[kept], dots[kept]
    if cols.start == 0:
        # Whoever trains must see rows that are not finite, as in topk_encode.
        broken = bad[rows].nonzero().squeeze(1)
        place = torch.cat([place, broken * problem.cols])
        dots = torch.cat([dots, torch.full_like(broken, math.nan, dtype=dots.dtype)])
    return place, dots


@default("threshold_encode_packed")
def _threshold_encode_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.packed(packed)
    return call("threshold_encode", x, weight, bias, threshold, scale, offset, "auto")  # type: ignore[no-any-return]

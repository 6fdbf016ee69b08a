"""Inner products in the fixed order that defines every dense score of the package.

The dot product of two rows of width D is summed in 16 float64 lanes: lane j takes d = j, j+16, j+32, … in
ascending d; then lanes j and j+8 are added, j and j+4, j and j+2, and the last two. Products of numbers with
at most 24 significant bits are exact in float64, so it does not matter whether a machine fuses multiply and
add; float64 inputs are multiplied, rounded, then added. Every backend follows this order, so scores have the
same bytes everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
# Products held in float64 at once (4 MiB: small enough to stay in cache, large enough to hide call overhead).
PAIR_ELEMENTS = 1 << 19


def _sum_lanes(products: Tensor) -> Tensor:
    """Sum the rows of products [P, multiple of 16] in the fixed order. Returns float64 [P]."""
    steps = products.view(products.shape[0], -1, LANES)
    lanes = products.new_zeros((products.shape[0], LANES))
    for step in range(steps.shape[1]):
        lanes += steps[:, step]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Multiply rows elementwise in float64 and pad them with zeros to whole lanes.

    Args:
        left: [P,1,D] or [P,C,D].
        right: [P,C,D].
    """
    pairs, count, width = right.shape
    padded = max(1, -(-width // LANES)) * LANES
    left, right = left.double(), right.double()
    if padded == width:
        return (left * right).view(pairs * count, padded)
    products = right.new_zeros((pairs, count, padded))
    torch.mul(left, right, out=products[:, :, :width])
    return products.view(pairs * count, padded)


def pair_dots(x: Tensor, rows: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """Return ``<x[rows[p]], weight[columns[p, c]]>`` in the fixed order.

    Args:
        x: floating [B,D].
        rows: int64 [P], positions in x.
        weight: floating [F,D].
        columns: int64 [P,C], positions in weight.

    Returns:
        float64 [P,C].
    """
    pairs, count = columns.shape
    out = torch.empty((pairs, count), dtype=torch.float64, device=x.device)
    width = max(1, x.shape[1])
    wide = max(1, min(count, PAIR_ELEMENTS // width))
    tall = max(1, PAIR_ELEMENTS // (width * wide))
    for first in range(0, pairs, tall):
        left = x.index_select(0, rows[first : first + tall]).unsqueeze(1)
        for start in range(0, count, wide):
            chosen = columns[first : first + tall, start : start + wide]
            right = weight.index_select(0, chosen.reshape(-1)).view(*chosen.shape, weight.shape[1])
            out[first : first + tall, start : start + wide] = _sum_lanes(_products(left, right)).view(
                chosen.shape
            )
    return out


def squared_norms(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return ``<matrix[r], matrix[r]>`` in the fixed order for each r of rows [P]. float64 [P]."""
    out = torch.empty(rows.shape, dtype=torch.float64, device=matrix.device)
    tall = max(1, PAIR_ELEMENTS // max(1, matrix.shape[1]))
    for first in range(0, rows.shape[0], tall):
        chosen = matrix.index_select(0, rows[first : first + tall]).unsqueeze(1)
        out[first : first + tall] = _sum_lanes(_products(chosen, chosen))
    return out

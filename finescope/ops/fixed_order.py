"""Inner products in the fixed order that defines every dense score of the package.

The dot product of two rows of width D is summed in 16 float64 lanes: lane j takes d = j, j+16, j+32, … in
ascending d; then lanes j and j+8 are added, j and j+4, j and j+2, and the last two. Products of numbers with
at most 24 significant bits are exact in float64, so it does not matter whether a machine fuses multiply and
add; float64 inputs are multiplied, rounded, then added. Every backend follows this order, so scores have the
same bytes everywhere.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LANES = 16
# Products held in float64 at once: 2 MiB, which mostly stays in a core's second-level cache.
PAIR_ELEMENTS = 1 << 18


class _Lanes:
    """Room for the products of up to ``pairs`` pairs of rows, reused from one block to the next."""

    def __init__(self, pairs: int, width: int, device: torch.device) -> None:
        self.width = width
        # Lanes that D does not fill stay zero, and adding zero changes no sum.
        steps = -(-width // LANES)
        self.products = torch.zeros((pairs, steps * LANES), dtype=torch.float64, device=device)
        self.lanes = torch.empty((pairs, LANES), dtype=torch.float64, device=device)

    def load(self, rows: Tensor) -> Tensor:
        """Copy rows [P,D], converting them. Returns the place they are in, float64 [P,D]."""
        return self.products[: rows.shape[0], : self.width].copy_(rows)

    def sum(self, pairs: int) -> Tensor:
        """Sum the products of the first ``pairs`` pairs in the fixed order. Returns float64 [P]."""
        lanes = self.lanes[:pairs].zero_()
        for first in range(0, self.products.shape[1], LANES):
            lanes += self.products[:pairs, first : first + LANES]
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half:]
        return lanes[:, 0]


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
    width = x.shape[1]
    out = torch.zeros((pairs, count), dtype=torch.float64, device=x.device)
    if not (out.numel() and width):
        return out
    wide = max(1, min(count, PAIR_ELEMENTS // width))
    tall = max(1, min(pairs, PAIR_ELEMENTS // (width * wide)))
    lanes = _Lanes(tall * wide, width, x.device)
    gathered = weight.new_empty((tall * wide, width))
    for first in range(0, pairs, tall):
        left = x.index_select(0, rows[first : first + tall]).double().unsqueeze(1)
        for start in range(0, count, wide):
            chosen = columns[first : first + tall, start : start + wide]
            right = gathered[: chosen.numel()]
            torch.index_select(weight, 0, chosen.reshape(-1), out=right)
            lanes.load(right).view(*chosen.shape, width).mul_(left)
            out[first : first + tall, start : start + wide] = lanes.sum(chosen.numel()).view(chosen.shape)
    return out


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root of float64 numbers.

    torch hands contiguous CPU tensors to a vector library whose square root may be one unit off in the last
    place; NumPy and CUDA use the machine's instruction, which is exact.
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def squared_norms(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return ``<matrix[r], matrix[r]>`` in the fixed order for each r of rows [P]. float64 [P]."""
    width = matrix.shape[1]
    out = torch.zeros(rows.shape, dtype=torch.float64, device=matrix.device)
    if not (out.numel() and width):
        return out
    tall = max(1, min(rows.shape[0], PAIR_ELEMENTS // width))
    lanes = _Lanes(tall, width, matrix.device)
    for first in range(0, rows.shape[0], tall):
        chosen = matrix.index_select(0, rows[first : first + tall])
        lanes.load(chosen).square_()
        out[first : first + tall] = lanes.sum(chosen.shape[0])
    return out

"""Dense vectors as codes that hold all their entries, as they are, about their mean, or whitened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BLOCK_ROWS,
    FloatArray,
    IntArray,
    MappedCodes,
    iter_blocks,
    product,
    values64,
    with_values,
)
from finescope.storage.mapping import advise

WHITENED_ROWS = 16_384
"""Rows whose covariance is taken, at most."""
SHRINKAGE = 0.3
"""Of the median variance, added to all."""
TURNED_ROWS, TURNED_COLUMNS, TURNED_NUMBERS = 1024, 192, 3 << 16
"""Rows and columns that are turned at a time, and numbers of the columns at most: they stay in a cache."""
HELD_BYTES = 64 << 20
"""Up to here changed vectors are held in float64, and not changed anew in every pass."""


class DenseRows:
    """Dense vectors as codes that hold all D entries: what is computed for codes is computed for them."""

    def __init__(self, dense: Any):
        """Look at [N,D] vectors: a tensor, an array, or a store with ``iter_dense()``.

        Where there is a ``stream_dense()`` too, a pass takes that: it gives pages back that have been used.

        Raises:
            ValueError: they are no matrix.
        """
        parts = [part for _, part in dense.iter_dense()] if hasattr(dense, "iter_dense") else [dense]
        self._stream = getattr(dense, "stream_dense", None)
        self._parts = [torch.as_tensor(part) for part in parts]
        for part in self._parts:
            if part.dim() != 2 or part.shape[1] != self._parts[0].shape[1]:
                raise ValueError(f"dense vectors must be a matrix [N,D], got {list(part.shape)}")
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.num_latents = int(self._parts[0].shape[1])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def iter_shards(self) -> Iterator[SparseCodes]:
        """Yield the vectors, a block at a time."""
        if self._stream is not None:
            yield from map(_full, self._stream(BLOCK_ROWS))
            return
        for part in self._parts:
            yield from map(_full, part.split(BLOCK_ROWS))  # type: ignore[no-untyped-call]

    def take(self, rows: IntArray) -> SparseCodes:
        """Return some rows."""
        owner = np.searchsorted(self._ends, rows, side="right")
        found = torch.empty((len(rows), self.num_latents), dtype=self._parts[0].dtype)
        for number in np.unique(owner):
            part, mine = self._parts[number], np.flatnonzero(owner == number)
            first = int(self._ends[number]) - len(part)
            found[torch.from_numpy(mine)] = part[torch.from_numpy(rows[mine] - first)]
            if self._stream is not None:  # a file: few rows may touch all of its pages
                advise(part, "MADV_DONTNEED", inward=True)
        return _full(found)

    def mean(self) -> FloatArray:
        """Return the mean vector, float64 [D]."""
        total = np.zeros(self.num_latents)
        for _, block in iter_blocks(self):
            total += values64(block).reshape(-1, self.num_latents).sum(axis=0)
        return total / max(1, len(self))


@dataclass(frozen=True)
class Centred:
    """Vectors moved and turned: R(x − c).

    Attributes:
        centre: c, float64 [D].
        root: R transposed, float64 [D,D], upper triangular; None where they are only moved.
    """

    centre: FloatArray
    root: FloatArray | None = None

    def __call__(self, block: SparseCodes) -> SparseCodes:
        """Return rows of ``DenseRows``, moved and turned."""
        values = values64(block).reshape(-1, self.centre.size) - self.centre
        if self.root is not None:
            values = _turned(values, self.root)
        return with_values(block, torch.from_numpy(values.reshape(-1)))

    def of(self, vectors: DenseRows) -> DenseRows | MappedCodes:
        """Return vectors so changed: held where they are few, else changed as they are read."""
        if 8 * len(vectors) * vectors.num_latents > HELD_BYTES:
            return MappedCodes(vectors, self)
        blocks = [self(block).values.reshape(len(block), -1) for _, block in iter_blocks(vectors)]
        return DenseRows(torch.cat(blocks) if blocks else torch.zeros(0, vectors.num_latents))

    def state(self) -> dict[str, FloatArray]:
        """Return what has been learned of the corpus."""
        return {"centre": self.centre} | ({} if self.root is None else {"root": self.root})


def whitened(vectors: DenseRows) -> Centred:
    """Return what brings vectors to mean 0 and, nearly, to a covariance of 1 (CRDS, arXiv 2602.13773).

    Activations have a few directions along which all texts differ widely; they fill a cosine and tell little.
    With the covariance C and the median v of its diagonal, R is the inverse of the Cholesky factor of
    C + ``SHRINKAGE``·v: directions below v are held back, since there is little but noise in them, in place
    of being cut off at a number of dimensions. Any other root differs by a rotation, which no cosine sees. C
    is that of ``WHITENED_ROWS`` rows, evenly spaced; rows that aren't finite don't count.
    """
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), WHITENED_ROWS)).astype(np.int64))
    width = vectors.num_latents
    values = values64(vectors.take(rows)).reshape(-1, width)
    values = values[np.isfinite(values).all(axis=1)]
    centre = values.sum(axis=0) / max(1, len(values))
    values -= centre
    square = np.zeros((width, width))
    for low in range(0, len(values), BLOCK_ROWS):
        block = values[low : low + BLOCK_ROWS]
        square += product(_full(torch.from_numpy(np.ascontiguousarray(block.T))), block)
    square /= max(1, len(values))
    known = np.diag(square)[np.diag(square) > 0]
    floor = SHRINKAGE * float(np.median(known)) if known.size else 1.0
    square[np.diag_indices(width)] += floor
    return Centred(centre, _inverse_root(square).T.copy())


def _turned(values: FloatArray, root: FloatArray) -> FloatArray:
    """Return values @ root, float64 [n,D], for an upper triangular root: what it lacks is not multiplied."""
    found, columns = np.empty_like(values), max(1, min(TURNED_COLUMNS, TURNED_NUMBERS // len(root)))
    for left in range(0, len(root), columns):
        right = min(left + columns, len(root))
        panel = np.ascontiguousarray(root[:right, left:right])
        for low in range(0, len(values), TURNED_ROWS):
            rows = slice(low, low + TURNED_ROWS)
            part = torch.from_numpy(np.ascontiguousarray(values[rows, :right]))
            found[rows, left:right] = product(_full(part), panel)
    return found


def _inverse_root(matrix: FloatArray) -> FloatArray:
    """Return L⁻¹ of a positive definite matrix L Lᵀ [D,D], every element by the same steps on any machine."""
    left, found = matrix.copy(), np.eye(len(matrix))
    for at in range(len(left)):
        pivot = math.sqrt(left[at, at])
        found[at, : at + 1] /= pivot
        below = left[at + 1 :, at] / pivot
        left[at + 1 :, at + 1 :] -= below[:, None] * below
        found[at + 1 :, : at + 1] -= below[:, None] * found[at, : at + 1]
    return found


def _full(block: torch.Tensor) -> SparseCodes:
    rows, width = block.shape
    indptr = torch.arange(rows + 1, dtype=torch.int64) * width
    latents = torch.arange(width, dtype=torch.int32).repeat(rows)
    return SparseCodes(indptr, latents, block.reshape(-1), width, check=False)

"""Documents as points of a plane: the two main principal components of their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import Codes, row_access, rows_of, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes

MOST_POINTS = 5000
"""Rows of each kind that are drawn at most; they are the only ones that are read."""


@dataclass(frozen=True)
class Projection:
    """Points of n corpus rows that were not selected, r selected rows and q targets.

    Attributes:
        corpus: float64 [n,2].
        selected: float64 [r,2].
        targets: float64 [q,2].
        share: of the points' variance that lies in the plane, in [0, 1]; None where there is no variance.
    """

    corpus: NDArray[np.float64]
    selected: NDArray[np.float64]
    targets: NDArray[np.float64]
    share: float | None


def project(
    corpus: Codes,
    targets: SparseCodes,
    selected: NDArray[np.int64],
    *,
    weights: NDArray[np.float64] | None = None,
    seed: int = 42,
) -> Projection:
    """Project a sample of the corpus, the selected rows and the targets onto their main components.

    The components are those of the drawn rows' unit vectors in the weighted space.

    Args:
        corpus: N rows over F latents.
        targets: Q rows over the same F latents.
        selected: int64 [R], row numbers, best first; the first 5000 are drawn.
        weights: float64 [F], weights of the latents; None for none.
        seed: of the sample that is drawn when more than 5000 rows were not selected, and of the solver.
    """
    from scipy import sparse

    rows = row_access(corpus)
    others = _others(rows_of(corpus), selected, np.random.default_rng(seed))
    chosen = np.asarray(selected[:MOST_POINTS], dtype=np.int64)
    parts = [rows.take(others), rows.take(chosen), targets[:MOST_POINTS]]
    stacked = sparse.vstack([unit_rows(part, weights) for part in parts]).tocsr()
    points, share = _components(stacked, seed)
    ends = np.cumsum([len(part) for part in parts])
    return Projection(points[: ends[0]], points[ends[0] : ends[1]], points[ends[1] :], share)


def _others(total: int, selected: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Ascending numbers of rows that aren't selected, a sample of ``MOST_POINTS`` if there are more."""
    free = total - len(selected)
    picked = (
        np.arange(free)
        if free <= MOST_POINTS
        else np.sort(generator.choice(free, MOST_POINTS, replace=False))
    )
    # The i-th row that isn't selected has number i + (selected rows before it).
    ordered = np.sort(selected)
    return np.asarray(
        picked + np.searchsorted(ordered - np.arange(len(ordered)), picked, side="right"), np.int64
    )


def _components(stacked: Any, seed: int) -> tuple[NDArray[np.float64], float | None]:
    """The points, float64 [n,2], and their share of the variance; the matrix stays sparse."""
    from scipy.sparse.linalg import LinearOperator, svds

    used = np.unique(stacked.indices[stacked.data != 0])  # latents that fire nowhere add columns of zeros
    kept = stacked[:, used]
    count = kept.shape[0]
    mean = np.asarray(kept.mean(axis=0)).ravel() if count else np.zeros(used.size)
    variance = float(np.square(kept.data).sum() - count * mean @ mean)
    if min(kept.shape) <= 2 or variance <= 1e-12 * count:
        points = np.zeros((count, 2))
        points[:, : min(2, used.size)] = kept[:, :2].toarray()
        return points, None
    centred = LinearOperator(
        kept.shape,
        matvec=lambda vector: kept @ vector.ravel() - mean @ vector.ravel(),
        rmatvec=lambda vector: kept.T @ vector.ravel() - mean * vector.sum(),
        dtype=np.float64,
    )
    start = np.random.default_rng(seed).standard_normal(min(kept.shape))
    left, lengths, _ = svds(centred, k=2, v0=start)
    order = np.argsort(-lengths)
    points = left[:, order] * lengths[order]
    # A component's sign is free: its largest entry is positive.
    points *= np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    return points, float(np.square(lengths).sum() / variance)

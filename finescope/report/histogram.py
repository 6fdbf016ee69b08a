"""How many rows have which score, counted a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = tuple[NDArray[np.float64], NDArray[np.bool_] | None]

BINS = 60


@dataclass(frozen=True)
class ScoreHistogram:
    """Counts of rows by score.

    Attributes:
        edges: float64 [BINS + 1], of bins of one width from the lowest score to the highest.
        others: int64 [BINS], rows of each bin; without labels of all rows.
        positive: int64 [BINS], rows known to belong to the target domain; None without labels.
        span: lowest and highest score; None where there is no row.
        cut: lowest score that was selected; None when nothing was.
        above: rows with that score or a higher one.
    """

    edges: NDArray[np.float64]
    others: NDArray[np.int64]
    positive: NDArray[np.int64] | None
    span: tuple[float, float] | None
    cut: float | None
    above: int

    @property
    def rows(self) -> int:
        """How many rows were counted."""
        return int(self.others.sum()) + (0 if self.positive is None else int(self.positive.sum()))

    @classmethod
    def of(
        cls, blocks: Callable[[], Iterable[Scores]], cut: float | None, *, labelled: bool
    ) -> ScoreHistogram:
        """Count rows; the bins are those that NumPy's histogram has of all at once.

        Args:
            blocks: gives, as often as it is called, scores float64 [n] of rows, and which of them are known
                to belong to the target domain, bool [n]; scores that are not finite are left out.
            cut: lowest score that was selected; None when nothing was.
            labelled: whether it is known which belong to the target domain.
        """
        span: tuple[float, float] | None = None
        for scores, _ in blocks():
            held = scores[np.isfinite(scores)]
            if held.size:
                low, high = float(held.min()), float(held.max())
                span = (low, high) if span is None else (min(low, span[0]), max(high, span[1]))
        edges = np.linspace(0, 1, BINS + 1)
        if span is not None:
            edges = np.histogram_bin_edges(np.array(span), bins=BINS)
        counts, above = np.zeros((2, BINS), np.int64), 0
        for scores, positive in blocks():
            finite = np.isfinite(scores)
            inside = np.zeros(finite.shape, np.bool_) if positive is None else positive
            for place, rows in enumerate((finite & ~inside, finite & inside)):
                counts[place] += np.histogram(scores[rows], edges)[0]
            if cut is not None:
                above += int((scores[finite] >= cut).sum())
        return cls(edges, counts[0], counts[1] if labelled else None, span, cut, above)

"""Where some rows stand in the ranking of all, found by counting the others block by block.

Average precision, precision and recall depend on nothing but the places of the relevant rows, and a place is
a count: one more than the rows that stand before it. Counts add up over blocks, so that no ranking of the
whole corpus is ever held, and the blocks may come from anywhere.
"""

from __future__ import annotations

import math

import numpy as np

from finescope.curation.blocks import FloatArray, IntArray


class Ranks:
    """Places of R relevant rows by (score descending, row ascending); rows whose score is NaN have none."""

    def __init__(self, scores: FloatArray, rows: IntArray):
        """Take the relevant rows: float64 scores [R] and int64 row numbers [R]."""
        order = np.lexsort((-rows, scores))  # worst first
        order = order[: order.size - int(np.isnan(scores).sum())]
        self._scores, self._rows = scores[order], rows[order]
        self._better = np.zeros(order.size, np.int64)  # others that are better than each
        self._others = 0

    def add(self, scores: FloatArray, rows: IntArray) -> None:
        """Count other rows: float64 scores [n] and int64 row numbers [n]."""
        if np.isnan(scores).any():
            seen = ~np.isnan(scores)
            scores, rows = scores[seen], rows[seen]
        self._others += scores.size
        ordered = np.sort(scores)  # what is looked for in order, in what is ordered, is found faster
        if self._scores.size <= scores.size:
            worse = np.searchsorted(ordered, self._scores)
            if not (ordered[np.minimum(worse, ordered.size - 1)] == self._scores).any():
                self._better += scores.size - worse
                return
        beaten = self._with_ties(scores, rows)
        self._better += scores.size - np.bincount(beaten, minlength=self._scores.size + 1)[:-1].cumsum()

    def _with_ties(self, scores: FloatArray, rows: IntArray) -> IntArray:
        """How many relevant rows each other row is better than, where equal scores are settled by row."""
        beaten = np.searchsorted(self._scores, scores)
        if self._scores.size == 0 or scores.size == 0:
            return beaten
        tied = np.flatnonzero(self._scores[np.minimum(beaten, self._scores.size - 1)] == scores)
        # Among equals the higher rows come first, and a row is better than those: one sorted key says both.
        span = 1 + max(int(rows.max()), int(self._rows.max()))
        first = np.searchsorted(self._scores, self._scores)
        keys = first * span + (span - 1 - self._rows)
        beaten[tied] = np.searchsorted(keys, beaten[tied] * span + (span - 1 - rows[tied]))
        return beaten

    def places(self) -> IntArray:
        """Return the places of the relevant rows, from 1, ascending, int64 [≤R]."""
        return (self._better + np.arange(self._scores.size)[::-1])[::-1] + 1

    def metrics(self, at: tuple[int, ...]) -> dict[str, float]:
        """Return average precision, and precision, recall and lift at each k, as ``metrics.py`` defines them.

        All are NaN when no relevant row has a place.
        """
        places, everything = self.places(), self._others + self._scores.size
        count = places.size
        found = {"average_precision": float(np.mean(np.arange(1, count + 1) / places)) if count else math.nan}
        for k in at:
            hits = int(np.searchsorted(places, k, side="right"))
            precision = hits / min(k, everything) if count and k else math.nan
            found[f"precision@{k}"] = precision
            found[f"recall@{k}"] = hits / count if count else math.nan
            found[f"lift@{k}"] = precision / (count / everything) if count else math.nan
        return found

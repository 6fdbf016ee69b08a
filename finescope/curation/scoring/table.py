"""The scores of all rows, and the order that they put the rows in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finescope.curation.blocks import BoolArray, FloatArray, IntArray
from finescope.html.notebook import ROWS, notebook
from finescope.progress import counted

NOBODY: tuple[IntArray, FloatArray] = (np.empty(0, np.int64), np.empty(0))
"""The nearest targets of a table where nobody looks at them, and their cosines."""


@dataclass
class ScoreTable:
    """Scores of all N corpus rows, in row order.

    Attributes:
        score: float64 [N]; larger is nearer to the targets. 0 for a row without latents.
        nearest_target: int64 [N], the target with the largest cosine (the first of equals); -1 for rows that
            are not valid.
        nearest_similarity: float64 [N], that cosine in the weighted space, clipped to [-1, 1].
        valid: bool [N]; False for rows without any latent of positive weight or with a non-finite value. Such
            rows are never selected.
        scorer: name of the scorer.
    """

    score: FloatArray
    nearest_target: IntArray
    nearest_similarity: FloatArray
    valid: BoolArray
    scorer: str

    def __len__(self) -> int:
        return int(self.score.size)

    def __getitem__(self, rows: slice) -> ScoreTable:
        return ScoreTable(
            self.score[rows],
            self.nearest_target[rows],
            self.nearest_similarity[rows],
            self.valid[rows],
            self.scorer,
        )

    def ranking(self) -> IntArray:
        """Return the valid rows by (score descending, row ascending), int64 [≤N]."""
        return rank_rows(self.score, self.valid)

    def best(self, count: int) -> IntArray:
        """Return the first rows of the ranking, int64 [≤count], without sorting all of them."""
        kept = self.valid & ~np.isnan(self.score)
        held = self.score[kept]
        if 0 < count < held.size:
            kept &= self.score >= np.partition(held, held.size - count)[held.size - count]
        return rank_rows(self.score, kept)[:count]

    def _repr_html_(self) -> str:
        """Return the best rows, for notebooks."""
        rows = self.best(ROWS)
        ranked = int(np.count_nonzero(self.valid & ~np.isnan(self.score)))
        unranked = len(self) - ranked
        return notebook(
            f"Scores of {counted(len(self), 'row')} by {self.scorer}",
            {
                "place": np.arange(1, rows.size + 1),
                "row": rows,
                "score": self.score[rows],
                "nearest target": self.nearest_target[rows],
                "its cosine": self.nearest_similarity[rows],
            },
            said=[f"never selected, for want of a code: {counted(unranked, 'row')}"] if unranked else [],
            caption="The best rows; rows and targets are counted from 0",
            more=ranked - rows.size,
        )

    def columns(self) -> dict[str, Any]:
        """Return the per-row arrays by name, for a table of all scores."""
        return {
            "score": self.score,
            "nearest_target": self.nearest_target,
            "nearest_similarity": self.nearest_similarity,
            "valid": self.valid,
        }


def rank_rows(score: FloatArray, valid: BoolArray | None = None) -> IntArray:
    """Return row numbers by (score descending, row ascending), without rows that are NaN or not valid."""
    keep = ~np.isnan(score) if valid is None else valid & ~np.isnan(score)
    rows = np.flatnonzero(keep)
    return rows[np.argsort(-score[rows], kind="stable")].astype(np.int64)

"""Generalised Jaccard similarity of a row with the prototype of the targets (MoNA, arXiv 2503.15573 v2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finescope.curation.blocks import FloatArray, product, reciprocal, values64, with_values
from finescope.curation.scoring.base import Pick, Seen, SpaceScorer


@dataclass(frozen=True)
class Jaccard(SpaceScorer):
    """Σ min(x̂_f, p_f) / Σ max(x̂_f, p_f), with the prototype p = mean t̂.

    One pass over the entries that there are: Σ max = ‖x̂‖₁ + ‖p‖₁ − Σ min. Where the signs differ, min is 0,
    as if both signs of a latent were latents of their own. A latent's part in a score is its min / Σ max.
    """

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the similarities of n rows, float64 [n], in 0 … 1."""
        common, largest = self._common(seen, pick)
        return _sums(seen, common) * reciprocal(largest)

    def addends(self, seen: Seen, pick: Pick, mean: FloatArray) -> FloatArray:
        """Take the similarities apart, float64 [nnz]."""
        common, largest = self._common(seen, pick)
        return common * np.repeat(reciprocal(largest), np.diff(seen.unit.indptr.numpy()))

    def _common(self, seen: Seen, pick: Pick) -> tuple[FloatArray, FloatArray]:
        """min of every entry, float64 [nnz], and Σ max of every row, float64 [n]."""
        values, theirs = values64(seen.unit), pick.prototype[seen.unit.indices.numpy()]
        common = np.where(values * theirs > 0, np.minimum(np.abs(values), np.abs(theirs)), 0.0)
        return common, _sums(seen, np.abs(values) - common) + float(np.abs(pick.prototype).sum())


def _sums(seen: Seen, values: FloatArray) -> FloatArray:
    """Sum the values of each row's entries, in their order, float64 [n]."""
    ones = np.ones((seen.unit.num_latents, 1))
    return product(with_values(seen.unit, torch.from_numpy(values)), ones)[:, 0]

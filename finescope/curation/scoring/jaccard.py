"""Generalised Jaccard similarity of a row with the prototype of the targets (MoNA, arXiv 2503.15573 v2)."""

from __future__ import annotations

from collections.abc import Sequence
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

    compares = False

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the similarities of n rows, float64 [n], in 0 … 1."""
        return np.asarray(self.scores(seen, [pick])[0])

    def scores(self, seen: Seen, picks: Sequence[Pick]) -> FloatArray:
        """Return the similarities of n rows with several prototypes, float64 [picks,n]."""
        own = _Own(seen)
        found = np.empty((len(picks), len(seen.unit)))
        for row, pick in zip(found, picks, strict=True):
            common = _sums(seen, own.common(pick))
            row[:] = common * reciprocal(own.largest(pick, common))
        return found

    def addends(self, seen: Seen, pick: Pick, mean: FloatArray) -> FloatArray:
        """Take the similarities apart, float64 [nnz]."""
        own = _Own(seen)
        common = own.common(pick)
        largest = own.largest(pick, _sums(seen, common))
        return common * np.repeat(reciprocal(largest), np.diff(seen.unit.indptr.numpy()))


class _Own:
    """What is to be known of n rows whatever they are compared with."""

    def __init__(self, seen: Seen):
        self._values, self._latents = values64(seen.unit), seen.unit.indices.numpy()
        self._sizes = np.abs(self._values)
        self._negative = bool((self._values < 0).any())
        self._total = _sums(seen, self._sizes)

    def common(self, pick: Pick) -> FloatArray:
        """min of every entry, float64 [nnz]."""
        theirs = pick.prototype[self._latents]
        if not self._negative and not (pick.prototype < 0).any():
            return np.asarray(np.minimum(self._values, theirs))
        return np.where(self._values * theirs > 0, np.minimum(self._sizes, np.abs(theirs)), 0.0)

    def largest(self, pick: Pick, common: FloatArray) -> FloatArray:
        """Σ max of every row, float64 [n], of which Σ min is known."""
        return self._total + float(np.abs(pick.prototype).sum()) - common


def _sums(seen: Seen, values: FloatArray) -> FloatArray:
    """Sum the values of each row's entries, in their order, float64 [n]."""
    ones = np.ones((seen.unit.num_latents, 1))
    return product(with_values(seen.unit, torch.from_numpy(values)), ones)[:, 0]

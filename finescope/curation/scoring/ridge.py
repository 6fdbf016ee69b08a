"""A direction fitted to the targets: ridge regression of targets against rows of the corpus at large.

The rows are unlabelled: a few of them belong to the domain, which a penalty bears. Each side counts as a
whole, however many rows it has, and both are moved by m, the mean of the two means, in place of an intercept:

    u = argmin  Σ_T (⟨u, t̂ − m⟩ − 1)²/T + Σ_S (⟨u, x̂ − m⟩ + 1)²/S + α‖u‖²

A score is ⟨u, x̂⟩, so a latent's part is u_f·x̂_f. What goes together all over the corpus counts once here, and
not with every latent that takes part in it.

A row that has been fitted as one of the corpus at large would score lower than its like, so rows are divided
into folds, and u of a fold is fitted without the rows of that fold (cross-fitting; Chernozhukov et al. 2018,
"Double/debiased machine learning"). A row's fold is a hash of its code: equal rows score alike, and a row
scores the same whether the corpus holds it or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation.blocks import FloatArray, panel_columns, product, values64
from finescope.curation.scoring.base import FOLDS, Background, Pick, Seen, SpaceScorer, folds_of

STEPS = 300
"""Steps of conjugate gradients, at most; some 30 to 60 are enough."""
PRECISION = 1e-12
"""Residual, as a share of the right side, at which they end."""


@dataclass(frozen=True)
class Ridge(SpaceScorer):
    """⟨u, x̂⟩ with the u that is fitted to the other folds.

    Attributes:
        penalty: α.
    """

    penalty: float = 0.004
    compares = False

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]."""
        return np.asarray(self.scores(seen, [pick])[0])

    def scores(self, seen: Seen, picks: Sequence[Pick]) -> FloatArray:
        """Return the scores of n rows by several picks, float64 [picks,n]."""
        found = np.empty((len(picks), len(seen.block)))
        folds = folds_of(seen.block)
        by_fold = np.argsort(folds, kind="stable")
        block, ends = seen.block[by_fold], np.searchsorted(folds[by_fold], np.arange(FOLDS), side="right")
        step = panel_columns(FOLDS * block.num_latents, len(picks))
        for low in range(0, len(picks), step):
            some = picks[low : low + step]
            panels = seen.made_of(self, some, partial(self._panels, seen, some))
            for fold, end in enumerate(ends):
                rows = slice(ends[fold - 1] if fold else 0, end)
                found[low : low + step, by_fold[rows]] = product(block[rows], panels[fold]).T
        return seen.scaled(found)

    def _panels(self, seen: Seen, picks: Sequence[Pick]) -> list[FloatArray]:
        """The directions of every fold side by side, weighted, float64 [F,P]."""
        panels = [np.stack(of_fold, axis=1) for of_fold in zip(*map(self.directions, picks), strict=True)]
        return panels if seen.weights is None else [panel * seen.weights[:, None] for panel in panels]

    def addends(self, seen: Seen, pick: Pick, mean: FloatArray) -> FloatArray:
        """Take the scores apart, float64 [nnz]."""
        folds = np.repeat(folds_of(seen.block), np.diff(seen.block.indptr.numpy()))
        directions = self.directions(pick)[folds, seen.unit.indices.numpy()]
        return np.asarray(values64(seen.unit) * directions)

    def directions(self, pick: Pick) -> FloatArray:
        """Return the u of every fold, float64 [FOLDS,F]."""
        if self not in pick.fits:
            pick.fits[self] = _fitted(pick.unit, pick.background(), self.penalty)
        return pick.fits[self]


def _fitted(targets: Any, background: Background, penalty: float) -> FloatArray:
    """Return the u of every fold, float64 [FOLDS,F], for unit rows, scipy CSR float64 [T,F] and [S,F].

    Found among the combinations of rows, of which there are fewer than latents: column by column.
    """
    from scipy.sparse import vstack

    count, others = targets.shape[0], background.unit
    across = (others @ targets.T).toarray()
    # A row of the corpus that is a target can't stand for what targets aren't.
    other = across.max(axis=1, initial=0.0) <= 1 - 1e-9
    taken = other[:, None] & (background.folds[:, None] != np.arange(FOLDS))
    size = taken.sum(axis=0)
    share = np.concatenate([np.full((count, FOLDS), 0.5 / count), taken * (0.5 / np.maximum(1, size))])
    gram = np.block([[(targets @ targets.T).toarray(), across.T], [across, background.gram]])
    matrix = _dense(gram)
    middle = product(matrix, share)
    among = (share * middle).sum(axis=0)
    root = np.sqrt(2 * share)

    def image(columns: FloatArray) -> FloatArray:
        weighted = root * columns
        total = weighted.sum(axis=0)
        moved = product(matrix, weighted) - middle * total - (middle * weighted).sum(axis=0) + among * total
        return np.asarray(root * moved + penalty * columns)

    sign = np.where(np.arange(len(gram)) < count, 1.0, -1.0)
    found = root * _solved(image, sign[:, None] * root)
    found -= share * found.sum(axis=0)
    found[:count, size == 0] = 1.0 / count  # nothing to be held against: the mean of the targets
    rows = vstack([targets, others], format="csr")
    return np.ascontiguousarray((rows.T @ found).T, np.float64)


def _solved(image: Any, right: FloatArray) -> FloatArray:
    """Solve image(x) = right by conjugate gradients, each column for itself, every sum in one fixed order."""
    found, rest = np.zeros_like(right), right.copy()
    along, size = rest.copy(), np.square(rest).sum(axis=0)
    goal = size * PRECISION**2
    for _ in range(STEPS):
        open_ = size > goal
        if not open_.any():
            break
        moved = image(along)
        step = np.divide(size, (along * moved).sum(axis=0), out=np.zeros_like(size), where=open_)
        found += step * along
        rest -= step * moved
        before, size = size, np.square(rest).sum(axis=0)
        along = rest + np.divide(size, before, out=np.zeros_like(size), where=open_) * along
    return found


def _dense(matrix: FloatArray) -> SparseCodes:
    """Return a square matrix as codes: of their product the entries are added one by one, as BLAS doesn't."""
    count = len(matrix)
    indices = torch.arange(count, dtype=torch.int32).repeat(count)
    bounds = torch.arange(count + 1) * count
    return SparseCodes(bounds, indices, torch.from_numpy(matrix.ravel()), count, check=False)

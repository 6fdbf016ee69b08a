"""A direction fitted to the targets: ridge regression of targets against rows of the corpus at large.

The rows are unlabelled: a few of them belong to the domain, which a penalty bears. Each side counts as a
whole, however many rows it has, and both are moved by m, the mean of the two means, in place of an intercept:

    u = argmin  Σ_T (⟨u, t̂ − m⟩ − 1)²/T + Σ_S (⟨u, x̂ − m⟩ + 1)²/S + α‖u‖²

A score is ⟨u, x̂⟩, so a latent's part is u_f·x̂_f. What goes together all over the corpus counts once here, and
not with every latent that takes part in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finescope.curation.blocks import FloatArray, panel_columns, product, values64
from finescope.curation.scoring.base import Pick, Seen, SpaceScorer

STEPS = 300
"""Steps of conjugate gradients, at most; some 30 to 60 are enough."""
PRECISION = 1e-12
"""Residual, as a share of the right side, at which they end."""


@dataclass(frozen=True)
class Ridge(SpaceScorer):
    """⟨u, x̂⟩ with the fitted u.

    Attributes:
        penalty: α.
    """

    penalty: float = 0.004

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]."""
        return np.asarray(self.scores(seen, [pick])[0])

    def scores(self, seen: Seen, picks: Sequence[Pick]) -> FloatArray:
        """Return the scores of n rows by several picks, float64 [picks,n]."""
        found = np.empty((len(picks), len(seen.unit)))
        step = panel_columns(seen.unit.num_latents, len(picks))
        for low in range(0, len(picks), step):
            panel = np.stack([self.direction(pick) for pick in picks[low : low + step]], axis=1)
            found[low : low + step] = product(seen.unit, panel).T
        return found

    def addends(self, seen: Seen, pick: Pick, mean: FloatArray) -> FloatArray:
        """Take the scores apart, float64 [nnz]."""
        return np.asarray(values64(seen.unit) * self.direction(pick)[seen.unit.indices.numpy()])

    def direction(self, pick: Pick) -> FloatArray:
        """Return u, float64 [F]."""
        if self not in pick.fits:
            pick.fits[self] = _fitted(pick.unit, pick.background(), self.penalty)
        return pick.fits[self]


def _fitted(targets: Any, others: Any, penalty: float) -> FloatArray:
    """Return u for unit rows, scipy CSR float64 [T,F] and [S,F].

    Found among the combinations of rows, of which there are fewer than latents.
    """
    from scipy.sparse import vstack

    # A row of the corpus that is a target can't stand for what targets aren't.
    same = (others @ targets.T).toarray().max(axis=1, initial=0.0) > 1 - 1e-9
    others = others[np.flatnonzero(~same)]
    if others.shape[0] == 0:
        return np.asarray(targets.mean(axis=0)).ravel()
    rows = vstack([targets, others], format="csr")
    share = np.repeat([0.5 / targets.shape[0], 0.5 / others.shape[0]], [targets.shape[0], others.shape[0]])
    gram = (rows @ rows.T).toarray()
    with_middle = (gram * share).sum(axis=1)
    gram = gram - with_middle[:, None] - with_middle + float((share * with_middle).sum())
    root = np.sqrt(2 * share)
    wanted = np.where(np.arange(share.size) < targets.shape[0], 1.0, -1.0) * root
    found = root * _solved(root[:, None] * gram * root, penalty, wanted)
    found -= share * found.sum()
    return np.asarray(rows.T @ found)


def _solved(matrix: FloatArray, penalty: float, right: FloatArray) -> FloatArray:
    """Return (matrix + penalty)⁻¹ right by conjugate gradients, every sum in one fixed order."""
    found, rest = np.zeros_like(right), right.copy()
    along, size = rest.copy(), _dot(rest, rest)
    goal = size * PRECISION**2
    for _ in range(STEPS):
        if size <= goal:
            break
        image = (matrix * along).sum(axis=1) + penalty * along
        step = size / _dot(along, image)
        found += step * along
        rest -= step * image
        before, size = size, _dot(rest, rest)
        along = rest + (size / before) * along
    return found


def _dot(first: FloatArray, second: FloatArray) -> float:
    return math.fsum((first * second).tolist())

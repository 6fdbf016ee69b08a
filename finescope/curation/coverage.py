"""Rows that cover what speaks for the targets, in place of the same again: greedy, submodular."""

from __future__ import annotations

import heapq
import math

import numpy as np

from finescope.curation.blocks import IntArray
from finescope.curation.scoring.onepass import CorpusScorer, code_scorer
from finescope.curation.scoring.space import Targets

CANDIDATES, FEWEST_CANDIDATES = 10, 1000
"""For the n-th row the 10n best by score are looked at, but not fewer than 1000."""
MOST_CANDIDATES = 100_000
"""Rows looked at, at most: their parts are held."""


def looked_at(count: int) -> int:
    """Return how many rows, the best by score, are looked at for the ``count``-th."""
    return min(max(CANDIDATES * count, FEWEST_CANDIDATES), MOST_CANDIDATES)


def covering(scorer: CorpusScorer, targets: Targets, candidates: IntArray, count: int) -> IntArray:
    """Order rows so that each adds most to what those before it hold of the targets' latents.

    With a_if the part of latent f in row i's ``contrast`` with the targets, or 0 where that is negative, a
    set S of rows is worth Σ_f √(Σ_{i∈S} a_if): the more of a latent there is, the less more of it adds. That
    is submodular and monotone, so taking the row of the largest gain each time comes within 1 − 1/e of the
    best set of any size (Nemhauser, Wolsey and Fisher, 1978). A gain only ever falls, so an old one is an
    upper bound and few need to be found anew (Minoux, 1978).

    The n-th row is chosen out of the first ``looked_at(n)``, whatever the count: fewer rows are a beginning
    of more.

    Args:
        scorer: the corpus.
        targets: in its space.
        candidates: int64 [C], rows to be ordered, best first; those beyond ``looked_at(count)`` don't matter.
        count: rows to order, at most.

    Returns:
        int64 [≤ count], of equal gains the candidate that comes first.
    """
    candidates = candidates[: looked_at(count)]
    parts = scorer.addends(targets, candidates, code_scorer("contrast"))
    held = np.zeros(scorer.num_latents)

    def gain(place: int) -> float:
        entries = slice(parts.indptr[place], parts.indptr[place + 1])
        added, before = np.maximum(parts.data[entries], 0.0), held[parts.indices[entries]]
        return math.fsum((np.sqrt(before + added) - np.sqrt(before)).tolist())

    bounds: list[tuple[float, int]] = []
    chosen: list[int] = []
    seen = 0
    while len(chosen) < min(count, len(candidates)):
        for place in range(seen, min(looked_at(len(chosen) + 1), len(candidates))):
            heapq.heappush(bounds, (-gain(place), place))
            seen = place + 1
        if not bounds:
            break
        _, place = heapq.heappop(bounds)
        now = (-gain(place), place)
        if bounds and now > bounds[0]:
            heapq.heappush(bounds, now)
            continue
        chosen.append(place)
        entries = slice(parts.indptr[place], parts.indptr[place + 1])
        held[parts.indices[entries]] += np.maximum(parts.data[entries], 0.0)
    return candidates[np.array(chosen, np.int64)]

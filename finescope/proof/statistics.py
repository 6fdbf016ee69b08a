"""Is a difference more than chance, how large is it, and how much training is it worth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from finescope.curation.intervals import Interval, percentile_interval

_EXACT = 20
"""Pairs up to which all ways to turn their signs are counted."""
_DRAWS = 100_000


def sign_flip(differences: Sequence[float], *, draws: int = _DRAWS, seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences under random signs (Fisher, 1935).

    If the arms were alike, each difference could as well have had the other sign. The p-value is the share of
    all 2^n choices of signs whose sum is at least as far from 0 as the one that was seen; of more than twenty
    differences a random sample of choices is counted, with the one that was seen among them.

    Args:
        differences: n numbers, one for each independent unit.
        draws: choices of signs where not all are counted.
        seed: of those.

    Raises:
        ValueError: none were given.
    """
    values = np.asarray(differences, np.float64)
    if not values.size:
        raise ValueError("sign_flip needs at least one difference")
    seen = abs(values.sum())
    near = seen - 1e-12 * np.abs(values).sum()
    if values.size <= _EXACT:
        half = np.array(list(itertools.product((1.0, -1.0), repeat=values.size - 1)))
        sums = np.abs(values[0] + half @ values[1:])
        return float((sums >= near).mean())
    generator = np.random.default_rng(seed)
    more = 0
    for low in range(0, draws, 1000):
        signs = generator.choice((-1.0, 1.0), (min(1000, draws - low), values.size))
        more += int((np.abs(signs @ values) >= near).sum())
    return (more + 1) / (draws + 1)


def wilcoxon(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 where all differences are 0."""
    from scipy import stats

    values = np.asarray(differences, np.float64)
    return float(stats.wilcoxon(values).pvalue) if np.any(values) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that all of them hold together (Holm, 1979)."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    found, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        found[place] = largest
    return found


def mean_interval(values: Sequence[float], *, seed: int = 0, draws: int = 10_000) -> Interval:
    """Return a mean with its bootstrap interval over the values, percentile."""
    array = np.asarray(values, np.float64)
    rows = np.random.default_rng(seed).integers(0, array.size, (draws, array.size))
    return percentile_interval(float(array.mean()), array[rows].mean(axis=1).tolist())


def tokens_for(loss: float, tokens: Sequence[int], losses: Sequence[float]) -> float:
    """Return how many tokens a curve needs to come down to a loss.

    Between two points it is read off by the logarithm of tokens, between 0 and the first point by tokens.
    Losses that rise again are taken for noise: what counts is the lowest so far.

    Args:
        loss: to be reached.
        tokens: ascending, from 0 or above it; at the first of them the curve begins.
        losses: at those tokens.

    Returns:
        tokens; infinity where the curve ends above the loss, the first of them where it begins below.

    Raises:
        ValueError: tokens that don't rise, or fewer losses.
    """
    if len(tokens) != len(losses) or not tokens or any(b <= a for a, b in itertools.pairwise((-1, *tokens))):
        raise ValueError("a curve needs ascending tokens, none below 0, and a loss for each")
    lowest = np.minimum.accumulate(np.asarray(losses, np.float64))
    if loss >= lowest[0]:
        return float(tokens[0])
    below = np.flatnonzero(lowest <= loss)
    if not below.size:
        return math.inf
    place = int(below[0])
    share = float((lowest[place - 1] - loss) / (lowest[place - 1] - lowest[place]))
    if tokens[place - 1] == 0:
        return share * tokens[place]
    low, high = math.log(tokens[place - 1]), math.log(tokens[place])
    return math.exp(low + share * (high - low))

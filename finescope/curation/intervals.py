"""Intervals: how much a number would move with other targets, other domains or other random orders.

A draw of targets with replacement holds some 63 % of them, and a score made from fewer targets finds less:
such draws lie below the number that they are to surround. The jackknife leaves out a few at a time, so that
what it looks at is nearly the whole, and scales the spread up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finescope.curation.blocks import IntArray


@dataclass(frozen=True)
class Interval:
    """A number with its interval.

    Attributes:
        value: the number on the full set.
        low: lower end; equal to ``value`` when nothing was left out.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def leave_out(count: int, most: int) -> list[IntArray]:
    """Return what is left of 0..count−1 when each of several groups is left out in turn.

    Args:
        count: how many there are.
        most: groups, at most; number i belongs to group i modulo the groups, so that each is spread over all.

    Returns:
        min(count, most) arrays of ascending int64; none where there would be fewer than two groups.
    """
    groups = min(count, most)
    everything = np.arange(count)
    return [everything[everything % groups != group] for group in range(groups)] if groups > 1 else []


def jackknife_interval(
    value: float,
    left: Sequence[float],
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Return ``value`` with its jackknife interval (Tukey, 1958; groups: Quenouille, 1956).

    With θ_i the number without group i of g, the interval is value ± t·√((g − 1)/g · Σ(θ_i − mean θ)²), t
    being Student's quantile at g − 1 degrees of freedom. For a mean it is Student's interval.

    Args:
        value: the number on the full set.
        left: the number without each of the groups of ``leave_out``. Those that are NaN don't count.
        level: coverage of the interval.
        bounds: what the number can't go beyond.

    Raises:
        ValueError: level outside (0, 1).
    """
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    known = np.array([number for number in left if not math.isnan(number)])
    if known.size < 2 or math.isnan(value):
        return Interval(value, value, value)
    spread = math.sqrt((known.size - 1) / known.size * float(np.square(known - known.mean()).sum()))
    reach = float(stdtrit(known.size - 1, (1 + level) / 2)) * spread
    return Interval(value, max(value - reach, bounds[0]), min(value + reach, bounds[1]))


def jackknife(
    statistic: Callable[[IntArray], float], count: int, *, most: int = 100, level: float = 0.95
) -> Interval:
    """Return a statistic of ``count`` things with its jackknife interval.

    Args:
        statistic: takes ascending int64 positions and returns a number.
        count: how many things there are.
        most: groups left out in turn, at most; 0 gives an interval of no width.
        level: coverage of the interval.
    """
    left = [statistic(rows) for rows in leave_out(count, most)]
    return jackknife_interval(statistic(np.arange(count)), left, level)


def percentile_interval(value: float, samples: Sequence[float], level: float = 0.95) -> Interval:
    """Return ``value`` with the percentiles (1 ± level)/2 of ``samples``: where single draws lie.

    Samples that are NaN are left out; without any other the interval is the value itself.

    Raises:
        ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    finite = [sample for sample in samples if not math.isnan(sample)]
    if not finite:
        return Interval(value, value, value)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_interval(
    statistic: Callable[[IntArray], float],
    count: int,
    *,
    draws: int = 100,
    seed: int = 42,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of ``count`` things with the percentiles of draws with replacement.

    Right for means and the like. What gets better the more things there are lies above its draws, which hold
    fewer: take ``jackknife`` for that.

    Args:
        statistic: takes int64 positions (with repeats) and returns a number.
        count: how many things there are.
        draws: resamples; 0 gives an interval of no width.
        seed: of the resamples.
        level: coverage of the interval.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(np.sort(generator.integers(0, count, count))) for _ in range(draws)]
    return percentile_interval(statistic(np.arange(count)), drawn, level)

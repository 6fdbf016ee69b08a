"""Bootstrap intervals: how much a number would move with other seeds or other random draws."""

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
        low: lower end; equal to ``value`` when nothing was resampled.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resample(count: int, draws: int, seed: int) -> list[IntArray]:
    """Return ``draws`` samples of 0..count−1 with replacement, each of ``count`` ascending entries."""
    generator = np.random.default_rng(seed)
    return [np.sort(generator.integers(0, count, count)) for _ in range(draws)]


def percentile_interval(value: float, samples: Sequence[float], level: float = 0.95) -> Interval:
    """Return ``value`` with the percentiles (1 ± level)/2 of ``samples`` (Efron's percentile interval).

    Samples that are NaN are left out; without any other the interval is the value itself. The interval is
    widened to hold the value: resampling seeds with replacement loses some of them, which shifts the samples
    downwards.

    Raises:
        ValueError: level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    finite = [sample for sample in samples if not math.isnan(sample)]
    if not finite:
        return Interval(value, value, value)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    if math.isnan(value):
        return Interval(value, float(low), float(high))
    return Interval(value, min(float(low), value), max(float(high), value))


def bootstrap_interval(
    statistic: Callable[[IntArray], float],
    count: int,
    *,
    draws: int = 100,
    seed: int = 42,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of ``count`` things with its bootstrap interval.

    Args:
        statistic: takes int64 positions (with repeats) and returns a number.
        count: how many things there are.
        draws: resamples; 0 gives an interval of no width.
        seed: of the resamples.
        level: coverage of the interval.
    """
    value = statistic(np.arange(count))
    return percentile_interval(value, [statistic(rows) for rows in resample(count, draws, seed)], level)

"""Sums of scorers, and how they are written: ``contrast+tfidf``, ``contrast+0.5*tfidf``.

Scores of unlike origin are brought to mean 0 and variance 1 over the corpus before they are added, so that a
weight says how much a scorer counts and not in which unit it measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import FloatArray
from finescope.curation.scoring.base import Scorer
from finescope.curation.scoring.scorers import TABLE
from finescope.errors import did_you_mean

ALIASES = {"codes": "contrast"}
"""Other names: what is best of the codes by themselves."""
_BLOCK = 1 << 20
"""Numbers looked at together where moments are found."""
_TERM = re.compile(r"\s*(?:(-?(?:\d+\.?\d*|\.\d+))\s*\*)?\s*([A-Za-z_][\w-]*)\s*")


@dataclass(frozen=True)
class Sum(Scorer):
    """A weighted sum of standardised scores.

    Attributes:
        addends: the scorers and their weights.
    """

    addends: tuple[tuple[float, Scorer], ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """What any of the addends needs."""
        return frozenset().union(*(scorer.needs for _, scorer in self.addends))

    @property
    def terms(self) -> tuple[tuple[float, Scorer], ...]:
        """The scorers and their weights."""
        return self.addends

    def configured(self, **options: Any) -> Scorer:
        """Return the sum of the configured scorers."""
        return total([(weight, scorer.configured(**options)) for weight, scorer in self.addends])

    def scales(self, moments: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """Return ``scales`` of the addends, for the moments of their scores."""
        return scales([weight for weight, _ in self.addends], moments)


def scales(weights: Sequence[float], moments: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return for each addend what its score is multiplied by, and what is then added to it.

    Args:
        weights: of the addends.
        moments: mean and standard deviation of each addend's scores; one that never differs adds 0.
    """
    factors = [
        weight / spread if spread > 0 else 0.0 for weight, (_, spread) in zip(weights, moments, strict=True)
    ]
    return [(factor, -factor * mean) for factor, (mean, _) in zip(factors, moments, strict=True)]


class Numbers(Protocol):
    """N numbers that are given out a slice at a time."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> NDArray[Any]: ...


def moments_of(numbers: Numbers) -> tuple[float, float]:
    """Return mean and standard deviation of N numbers, of which a block is looked at at a time.

    The bytes are those of NumPy's ``mean`` and ``std`` of all at once.
    """
    count = len(numbers)
    mean = _summed(lambda rows: numbers[rows], 0, count) / count
    return mean, math.sqrt(_summed(lambda rows: np.square(numbers[rows] - mean), 0, count) / count)


def _summed(numbers: Callable[[slice], FloatArray], low: int, high: int) -> float:
    """Return the sum of some numbers in the order of NumPy's pairwise summation: halves of multiples of 8."""
    count = high - low
    if count <= _BLOCK:
        return float(np.add.reduce(numbers(slice(low, high))))
    half = count // 2 - count // 2 % 8
    return _summed(numbers, low, low + half) + _summed(numbers, low + half, high)


def added(scores: Sequence[FloatArray], scales: Sequence[tuple[float, float]]) -> FloatArray:
    """Return the sum of scores, arrays of one shape, each multiplied and shifted as ``scales`` says."""
    found = np.zeros_like(scores[0])
    for score, (factor, offset) in zip(scores, scales, strict=True):
        found += factor * score + offset
    return found


def z_add(*scores: FloatArray) -> FloatArray:
    """Return the sum of several scores, each brought to mean 0 and variance 1 (a constant adds 0).

    Raises:
        ValueError: there are none.
    """
    if not scores:
        raise ValueError("z_add needs at least one array of scores")
    arrays = [np.asarray(score, dtype=np.float64) for score in scores]
    moments = [(float(array.mean()), float(array.std())) for array in arrays]
    return added(arrays, scales([1.0] * len(arrays), moments))


def total(addends: list[tuple[float, Scorer]]) -> Sum:
    """Return the sum of some scorers with weights."""
    return Sum(
        "+".join(scorer.name if weight == 1 else f"{weight:g}*{scorer.name}" for weight, scorer in addends),
        "standardised scores, added: " + "; ".join(scorer.summary for _, scorer in addends),
        tuple(addends),
    )


def parse_scorer(text: str | Scorer, *, m: int = 3, seed: int = 42) -> Scorer:
    """Return the scorer that is written: a name of ``TABLE``, or a sum of names with or without weights.

    Args:
        text: ``contrast``, ``contrast+tfidf``, ``contrast+0.5*tfidf``; a scorer is returned as it is.
        m: for ``top_m_mean``.
        seed: for ``random``.

    Raises:
        ValueError: there is no scorer of a name, a weight that is 0, or something that can't be read.
    """
    if isinstance(text, Scorer):
        return text
    if m < 1:
        raise ValueError(f"m must be at least 1, got {m}")
    addends: list[tuple[float, Scorer]] = []
    weighted = False
    for part in text.split("+"):
        match = _TERM.fullmatch(part)
        if match is None:
            raise ValueError(
                f"scorer {text!r} can't be read at {part.strip()!r}; write a name, or a sum of names such as "
                "contrast+tfidf or contrast+0.5*tfidf"
            )
        weight = 1.0 if match[1] is None else float(match[1])
        if weight == 0 or not math.isfinite(weight):
            raise ValueError(f"scorer {text!r}: the weight of {match[2]} is {match[1]}; leave it out")
        weighted = weighted or match[1] is not None
        addends.append((weight, _named(match[2], text)))
    found = total(addends) if weighted or len(addends) > 1 else addends[0][1]
    return found.configured(m=m, seed=seed)


def is_scorer(text: str) -> bool:
    """Whether ``parse_scorer`` takes the text."""
    try:
        parse_scorer(text)
    except ValueError:
        return False
    return True


def _named(name: str, text: str) -> Scorer:
    known = ALIASES.get(name, name)
    if known in TABLE:
        return TABLE[known]
    meant = did_you_mean(name, TABLE)
    raise ValueError(
        f"unknown scorer {name!r} in {text!r}; {meant and meant + ' '}known are {', '.join(TABLE)}"
    )

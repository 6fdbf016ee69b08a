"""Scorers: how a row's cosines with the targets become its score, and which direction of the space that is.

In a space (``space.py``) every corpus row is a unit vector x̂ and every target a unit vector t̂; μ is the mean
of the corpus' x̂. A score is an inner product ⟨u, x̂⟩, where u is a mixture of the targets and μ:

    max          u = the nearest t̂ (FineScope paper, arXiv 2505.00624)
    top_m_mean   u = mean of the m nearest t̂
    mean         u = mean t̂
    centroid     u = mean of the targets as they are, made a unit vector (Rocchio without negatives)
    contrast     u = mean t̂ − μ: what targets have and the corpus at large has not

So a scorer needs the matrix of cosines and no more: it says how the cosines of a row are mixed, and the same
mixture of the vectors themselves takes the score apart again. To add one, write a class here and name an
object of it in ``TABLE``; ``Linear`` serves where the mixture is the same for all rows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from finescope.curation.blocks import BoolArray, FloatArray, IntArray

SPACES = {
    "codes": frozenset[str](),
    "words": frozenset({"texts"}),
    "dense": frozenset({"dense"}),
    "dense-centred": frozenset({"dense"}),
}
"""The spaces by name, and what must be known of the rows, beside their codes, to make them."""


@dataclass(frozen=True)
class Seen:
    """What a scorer sees of n rows in its space; rows that are not valid are zero vectors.

    Attributes:
        cosines: float64 [T,n], of the targets with the rows.
        mean: float64 [n], ⟨μ, x̂⟩; None where nobody asked for it.
        valid: bool [n].
    """

    cosines: FloatArray
    mean: FloatArray | None
    valid: BoolArray


@dataclass(frozen=True)
class Pick:
    """The targets that a score is made from, P of T.

    Attributes:
        columns: int64 [P], distinct rows of ``Seen.cosines``, ascending.
        norms: float64 [P], ‖w∘t‖.
        unit: scipy CSR float64 [P,F], t̂.
    """

    columns: IntArray
    norms: FloatArray
    unit: Any

    @property
    def gram(self) -> FloatArray:
        """⟨t̂, t̂'⟩ of all pairs, float64 [P,P]."""
        return np.asarray((self.unit @ self.unit.T).toarray())


@dataclass(frozen=True)
class Mixture:
    """The direction u of n rows' scores: u = Σ shares·t̂ + of_mean·μ.

    Attributes:
        shares: float64 [n,P], or [1,P] where all rows have the same.
        of_mean: share of μ.
    """

    shares: FloatArray
    of_mean: float = 0.0


@dataclass(frozen=True)
class Scorer:
    """What can be asked for by a name.

    Attributes:
        name: what the user types.
        summary: what it does, in words.
    """

    name: str
    summary: str

    @property
    def needs(self) -> frozenset[str]:
        """What must be known of the rows beside their codes: "texts", "dense", "lengths"."""
        return frozenset()

    @property
    def terms(self) -> tuple[tuple[float, Scorer], ...]:
        """The addends of the score and their weights: itself, unless it is a sum."""
        return ((1.0, self),)

    def configured(self, **options: Any) -> Scorer:
        """Return the scorer with those of the options that it knows."""
        known = {field.name for field in dataclasses.fields(self)} & set(options)
        return dataclasses.replace(self, **{name: options[name] for name in known})


@dataclass(frozen=True)
class SpaceScorer(Scorer):
    """A scorer that looks at cosines.

    Attributes:
        space: where the cosines are taken: "codes", "words", "dense" or "dense-centred".
        uses_mean: whether it looks at ⟨μ, x̂⟩.
    """

    space: str = "codes"
    uses_mean: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """What the space is made of."""
        return SPACES[self.space]

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]. Row by row: a row scores the same in any company."""
        raise NotImplementedError

    def mixture(self, seen: Seen, pick: Pick) -> Mixture:
        """Return the directions whose inner products with the rows are their scores."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(SpaceScorer):
    """A scorer whose direction is the same for all rows."""

    def shares(self, pick: Pick) -> tuple[FloatArray, float]:
        """Return the share of every picked target, float64 [P], and that of μ."""
        raise NotImplementedError

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]."""
        shares, of_mean = self.shares(pick)
        # One target after the other: a matrix product would add in an order that depends on n.
        total = np.zeros(seen.cosines.shape[1])
        for column, share in zip(pick.columns.tolist(), shares.tolist(), strict=True):
            total += share * seen.cosines[column]
        if of_mean and seen.mean is not None:
            total += of_mean * seen.mean
        return total

    def mixture(self, seen: Seen, pick: Pick) -> Mixture:
        """Return the one direction."""
        shares, of_mean = self.shares(pick)
        return Mixture(shares[None, :], of_mean)


class Mean(Linear):
    """u = mean t̂."""

    def shares(self, pick: Pick) -> tuple[FloatArray, float]:
        """Return equal shares."""
        return np.full(pick.columns.size, 1.0 / pick.columns.size), 0.0


class Contrast(Mean):
    """u = mean t̂ − μ."""

    def shares(self, pick: Pick) -> tuple[FloatArray, float]:
        """Return equal shares, and −1 of μ."""
        return super().shares(pick)[0], -1.0


class Centroid(Linear):
    """u = Σ w∘t, made a unit vector; its length follows from the targets' norms and Gram matrix."""

    def shares(self, pick: Pick) -> tuple[FloatArray, float]:
        """Return shares in proportion to the targets' norms."""
        raw = pick.norms
        length = math.sqrt(max(0.0, math.fsum((raw[:, None] * pick.gram * raw).ravel())))
        return (raw / length if length > 0 else np.zeros_like(raw)), 0.0


@dataclass(frozen=True)
class Best(SpaceScorer):
    """u = mean of the m nearest t̂, or of all where there are fewer.

    Attributes:
        m: how many.
    """

    m: int = 3

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the mean of the m largest cosines, float64 [n]."""
        if self.m == 1:
            best = seen.cosines[pick.columns[0]].copy()
            for column in pick.columns[1:].tolist():
                np.maximum(best, seen.cosines[column], out=best)
            return np.asarray(best)
        cosines = seen.cosines[pick.columns]
        keep = min(self.m, len(cosines))
        cosines.partition(len(cosines) - keep, axis=0)
        largest = np.sort(cosines[len(cosines) - keep :], axis=0)
        return np.asarray(largest[::-1].cumsum(axis=0)[-1] / keep)

    def mixture(self, seen: Seen, pick: Pick) -> Mixture:
        """Return the mean of every row's m nearest targets, the first of equals."""
        keep = min(self.m, pick.columns.size)
        order = np.argsort(-seen.cosines[pick.columns], axis=0, kind="stable")[:keep]
        shares = np.zeros((seen.cosines.shape[1], pick.columns.size))
        np.add.at(shares, (np.arange(len(shares)), order), 1.0 / keep)
        return Mixture(shares)


@dataclass(frozen=True)
class Max(Best):
    """u = the nearest t̂."""

    m: int = 1

    def configured(self, **options: Any) -> Scorer:
        """Return itself: its m is no option."""
        return self


class Column(Scorer):
    """A scorer that looks at no target: a number a row, whatever is looked for."""

    def values(self, rows: int, lengths: FloatArray | None) -> FloatArray:
        """Return the scores of all rows, float64 [N].

        Args:
            rows: N.
            lengths: float64 [N], where the scorer needs them.
        """
        raise NotImplementedError


class Length(Column):
    """The length of a row: longest first, a strong baseline in several studies."""

    @property
    def needs(self) -> frozenset[str]:
        """The lengths."""
        return frozenset({"lengths"})

    def values(self, rows: int, lengths: FloatArray | None) -> FloatArray:
        """Return the lengths, float64 [N]."""
        return np.asarray(lengths)


@dataclass(frozen=True)
class Random(Column):
    """A random order.

    Attributes:
        seed: of the order.
    """

    seed: int = 42

    def values(self, rows: int, lengths: FloatArray | None) -> FloatArray:
        """Return seeded uniform numbers, float64 [N]."""
        return np.random.default_rng(self.seed).random(rows)


TABLE: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Contrast("contrast", "mean of the targets minus mean of the corpus", uses_mean=True),
        Max("max", "best cosine over targets"),
        Mean("mean", "mean cosine over targets"),
        Best("top_m_mean", "mean of the m best cosines over targets"),
        Centroid("centroid", "cosine with the mean of the targets"),
        Contrast("tfidf", "TF-IDF words, mean of the targets minus mean of the corpus", "words", True),
        Max("tfidf-max", "TF-IDF words, best cosine over targets", "words"),
        Max("dense", "mean-pooled activations, best cosine over targets", "dense"),
        Mean("dense-centred", "mean-pooled activations minus their mean, mean cosine", "dense-centred"),
        Length("length", "longest first"),
        Random("random", "a random order"),
    )
}
"""Every scorer by its name."""

SCORERS = tuple(
    name for name, scorer in TABLE.items() if isinstance(scorer, SpaceScorer) and not scorer.needs
)
"""Names of the scorers that look at codes alone."""

"""What a scorer is: what it sees of rows and targets, and what it must give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BoolArray,
    FloatArray,
    IntArray,
    add_at,
    panel_columns,
    product,
    reciprocal,
    values64,
    with_values,
)
from finescope.errors import InputError

SPACES = {
    "codes": frozenset[str](),
    "words": frozenset({"texts"}),
    "dense": frozenset({"dense"}),
    "dense-centred": frozenset({"dense"}),
    "dense-whitened": frozenset({"dense"}),
}
"""The spaces by name, and what must be known of the rows, beside their codes, to make them."""


FOLDS = 10
"""Into so many parts rows are divided where something is fitted to some of them."""


class NothingSharedError(InputError):
    """Targets that can't be compared with a corpus in a space, since they hold nothing that it holds."""


@dataclass(frozen=True)
class Seen:
    """What a scorer sees of n rows in its space; rows that are not valid are zero vectors.

    Attributes:
        valid: bool [n].
        block: the rows x themselves.
        norms: float64 [n], ‖w∘x‖.
        weights: w, float64 [F]; None for none.
        mean: μ, float64 [F]; None where nobody asked for it.
        products: gives ⟨w∘t̂, x⟩ of every target with the rows, float64 [T,n].
        made: what scorers have made of the targets, the same for all blocks of rows.
    """

    valid: BoolArray
    block: SparseCodes
    norms: FloatArray
    weights: FloatArray | None
    mean: FloatArray | None
    products: Callable[[], FloatArray]
    made: dict[Scorer, tuple[Sequence[Pick], list[FloatArray]]]

    @cached_property
    def cosines(self) -> FloatArray:
        """Of the targets with the rows, float64 [T,n]; made when they are first asked for."""
        return self.scaled(self.products())

    def along(self, panel: FloatArray) -> FloatArray:
        """Return ⟨u, x̂⟩ of several directions u, float64 [C,n].

        Args:
            panel: w∘u side by side, float64 [F,C].
        """
        return self.scaled(np.ascontiguousarray(product(self.block, panel).T))

    def made_of(
        self, scorer: Scorer, picks: Sequence[Pick], make: Callable[[], list[FloatArray]]
    ) -> list[FloatArray]:
        """Return what a scorer makes of some picks; made anew where they aren't those of the last block."""
        held = self.made.get(scorer)
        if held is None or list(map(id, held[0])) != list(map(id, picks)):
            held = self.made[scorer] = tuple(picks), make()
        return held[1]

    def scaled(self, products: FloatArray) -> FloatArray:
        """Turn products with x, float64 [C,n], into those with x̂, where they stand; 0 of rows not valid."""
        products[:, ~self.valid] = 0.0  # they may be NaN
        products *= self._factors
        return products

    @cached_property
    def _factors(self) -> FloatArray:
        """1/‖w∘x‖, float64 [n]; 0 of rows that are not valid."""
        return np.where(self.valid, reciprocal(np.where(self.valid, self.norms, 1.0)), 0.0)

    @cached_property
    def unit(self) -> SparseCodes:
        """x̂ of the rows, float64, entry for entry; made when it is first asked for."""
        lengths = np.diff(self.block.indptr.numpy())
        values = np.where(np.repeat(self.valid, lengths), values64(self.block), 0.0)  # 0 × inf is NaN
        values *= np.repeat(self._factors, lengths)
        if self.weights is not None:
            values *= self.weights[self.block.indices.numpy()]
        return with_values(self.block, torch.from_numpy(values))


@dataclass(frozen=True)
class Background:
    """Rows that stand for the corpus at large.

    Attributes:
        unit: scipy CSR float64 [S,F], x̂.
        folds: int64 [S], see ``folds_of``.
    """

    unit: Any
    folds: IntArray

    @cached_property
    def gram(self) -> FloatArray:
        """⟨x̂, x̂'⟩ of all pairs, float64 [S,S]."""
        return np.asarray((self.unit @ self.unit.T).toarray())


def folds_of(codes: SparseCodes) -> IntArray:
    """Return the fold of each row, int64 [n] in 0 … FOLDS-1: a hash of its latents and their values.

    So equal rows are in one fold, and which one depends on nothing else.
    """
    mixed = values64(codes).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= (codes.indices.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x94D049BB133111EB)
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    bounds = codes.indptr.numpy()
    summed = before[bounds[1:]] - before[bounds[:-1]]
    return np.asarray((summed >> np.uint64(32)) % np.uint64(FOLDS), np.int64)


@dataclass(frozen=True)
class Pick:
    """The targets that a score is made from, P of T.

    Attributes:
        columns: int64 [P], distinct rows of ``Seen.cosines``, ascending.
        norms: float64 [P], ‖w∘t‖.
        unit: scipy CSR float64 [P,F], t̂.
        background: gives some rows of the corpus, the same ones each time.
    """

    columns: IntArray
    norms: FloatArray
    unit: Any
    background: Callable[[], Background]
    fits: dict[Scorer, FloatArray] = field(default_factory=dict)
    """What scorers have made of these targets, float64 [FOLDS,F]."""

    @cached_property
    def prototype(self) -> FloatArray:
        """mean t̂, float64 [F]."""
        return np.asarray(self.unit.sum(axis=0)).ravel() / self.columns.size

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
        space: where the cosines are taken: a name of ``SPACES``.
        uses_mean: whether it looks at μ.
    """

    space: str = "codes"
    uses_mean: bool = False
    compares: ClassVar[bool] = True
    """Whether it looks at the cosines with every single target."""

    @property
    def needs(self) -> frozenset[str]:
        """What the space is made of."""
        return SPACES[self.space]

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]. Row by row: a row scores the same in any company."""
        raise NotImplementedError

    def scores(self, seen: Seen, picks: Sequence[Pick]) -> FloatArray:
        """Return the scores of n rows by several picks, float64 [picks,n]."""
        return np.stack([self.score(seen, pick) for pick in picks])

    def mixture(self, seen: Seen, pick: Pick) -> Mixture:
        """Return the directions whose inner products with the rows are their scores."""
        raise NotImplementedError

    def addends(self, seen: Seen, pick: Pick, mean: FloatArray) -> FloatArray:
        """Take the scores of n rows apart, float64 [nnz]: an addend for every entry of ``seen.unit``.

        Args:
            seen: n rows.
            pick: the targets.
            mean: μ, float64 [F].
        """
        mixture = self.mixture(seen, pick)
        directions = mixture.of_mean * mean + mixture.shares @ pick.unit
        row: Any = 0
        if len(directions) > 1:
            row = np.repeat(np.arange(len(seen.unit)), np.diff(seen.unit.indptr.numpy()))
        return np.asarray(values64(seen.unit) * directions[row, seen.unit.indices.numpy()])


@dataclass(frozen=True)
class Linear(SpaceScorer):
    """A scorer whose direction is the same for all rows: a row is compared with nothing else."""

    compares = False

    def shares(self, pick: Pick) -> tuple[FloatArray, float]:
        """Return the share of every picked target, float64 [P], and that of μ."""
        raise NotImplementedError

    def score(self, seen: Seen, pick: Pick) -> FloatArray:
        """Return the scores of n rows, float64 [n]."""
        return np.asarray(self.scores(seen, [pick])[0])

    def scores(self, seen: Seen, picks: Sequence[Pick]) -> FloatArray:
        """Return the scores of n rows by several picks, float64 [picks,n]."""
        step = panel_columns(seen.block.num_latents, len(picks))
        parts = []
        for low in range(0, len(picks), step):
            some = picks[low : low + step]
            parts += [seen.along(*seen.made_of(self, some, partial(self._panel, seen, some)))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _panel(self, seen: Seen, picks: Sequence[Pick]) -> list[FloatArray]:
        """The directions side by side, weighted, float64 [F,P]."""
        panel = np.stack([self._direction(seen, pick) for pick in picks], axis=1)
        return [panel if seen.weights is None else panel * seen.weights[:, None]]

    def _direction(self, seen: Seen, pick: Pick) -> FloatArray:
        """u, float64 [F], the targets added one after the other."""
        shares, of_mean = self.shares(pick)
        found = np.zeros(pick.unit.shape[1])
        add_at(found, pick.unit.indices, pick.unit.data * np.repeat(shares, np.diff(pick.unit.indptr)))
        if of_mean and seen.mean is not None:
            found += of_mean * seen.mean
        return found

    def mixture(self, seen: Seen, pick: Pick) -> Mixture:
        """Return the one direction."""
        shares, of_mean = self.shares(pick)
        return Mixture(shares[None, :], of_mean)


class Column(Scorer):
    """A scorer that looks at no target: a number a row, whatever is looked for."""

    def values(self, rows: int, lengths: FloatArray | None) -> FloatArray:
        """Return the scores of all rows, float64 [N].

        Args:
            rows: N.
            lengths: float64 [N], where the scorer needs them.
        """
        raise NotImplementedError

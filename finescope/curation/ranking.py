"""Where every method puts the rows that are to be found, with all targets and with some of them left out.

Methods and draws are functions of the same cosines, so one pass over the corpus serves all of them. It keeps
the scores where they fit; where they don't, a second pass makes them again, to count what stands before those
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from finescope.curation.blocks import BoolArray, FloatArray, IntArray
from finescope.curation.ranks import Ranks
from finescope.curation.scoring.base import Pick, Scorer, Seen, SpaceScorer
from finescope.curation.scoring.onepass import one_pass
from finescope.curation.scoring.space import Space, Targets, View
from finescope.curation.scoring.sums import Sum, added
from finescope.errors import InputError

BLOCKS = 4
"""Blocks counted at a time: of many rows together it costs less to count what stands before a few."""
KEPT_BYTES = 160 << 20
"""Upper size of the scores that the first pass keeps."""

_Task = TypeVar("_Task")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Rows:
    """The rows that are ranked: bool [N], those to be found and the others; int64 [R], the former."""

    wanted: BoolArray
    others: BoolArray
    relevant: IntArray

    @classmethod
    def of(cls, held: BoolArray, relevant: Any, exclude: Any) -> Rows:
        """Take the rows that hold a latent, those that are to be found, and those that aren't ranked.

        Raises:
            InputError: no row is to be found.
            ValueError: arrays of different lengths.
        """
        for name, values in (("relevant", relevant), ("exclude", exclude)):
            if values is not None and len(values) != held.size:
                raise ValueError(f"{name} has {len(values)} entries, expected {held.size}")
        truth = np.asarray(relevant, dtype=np.bool_)
        eligible = held if exclude is None else held & ~np.asarray(exclude, dtype=np.bool_)
        wanted = truth & eligible
        if not wanted.any():
            raise InputError(
                "no row of the target domain is left to be found; check the labels and the excluded rows"
            )
        return cls(wanted, eligible & ~truth, np.flatnonzero(wanted))


@dataclass(frozen=True)
class Term:
    """A scorer in a space, or the fixed scores [N] of one that looks at no target; equal ones are one."""

    scorer: Scorer
    space: Space | None
    targets: Targets | None = field(compare=False, default=None)
    fixed: FloatArray | None = field(compare=False, default=None)

    def picks(self, positions: Sequence[IntArray]) -> list[Pick | None]:
        """The targets that count in each draw; those of a fixed term don't matter."""
        return [None] if self.targets is None else [self.targets.pick(draw) for draw in positions]

    def scores(self, rows: slice, seen: Mapping[Space, Seen], picks: Sequence[Pick | None]) -> FloatArray:
        """Scores of a block of rows by each pick, [picks,n]; NaN where a draw holds no usable target."""
        if self.fixed is not None:
            return self.fixed[None, rows]
        assert isinstance(self.scorer, SpaceScorer)
        assert self.space is not None
        found = np.full((len(picks), rows.stop - rows.start), np.nan)
        there = [place for place, pick in enumerate(picks) if pick is not None]
        if there:
            found[there] = self.scorer.scores(seen[self.space], [pick for pick in picks if pick is not None])
        return found


@dataclass(frozen=True)
class Line:
    """A method that can be measured with what is known."""

    name: str
    summary: str
    scorer: Scorer
    terms: tuple[Term, ...]

    @property
    def fixed(self) -> bool:
        """Whether it looks at no target."""
        return all(term.fixed is not None for term in self.terms)

    def scores(
        self, of_terms: Mapping[Term, FloatArray], moments: Mapping[Term, _Moments], draw: int
    ) -> FloatArray:
        """The method's scores of some rows in one draw, [n], from those of its terms."""
        own: list[FloatArray] = [of_terms[term][min(draw, len(of_terms[term]) - 1)] for term in self.terms]
        if not isinstance(self.scorer, Sum):
            return own[0]
        return added(own, self.scorer.scales([moments[term].of(draw) for term in self.terms]))


class _Moments:
    """Mean and standard deviation over all rows, of each draw's scores, gathered block by block."""

    def __init__(self) -> None:
        self._rows, self._mean, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, scores: FloatArray) -> None:
        """Take the scores of a block, [draws,n] (Chan, Golub and LeVeque, 1979)."""
        count = scores.shape[1]
        mean = scores.mean(axis=1)
        away = mean - self._mean
        self._squares = (
            self._squares
            + np.square(scores - mean[:, None]).sum(axis=1)
            + away * away * (self._rows * count / (self._rows + count))
        )
        self._mean = self._mean + away * (count / (self._rows + count))
        self._rows += count

    def of(self, draw: int) -> tuple[float, float]:
        """Return mean and standard deviation."""
        place = min(draw, self._mean.size - 1)
        return float(self._mean[place]), math.sqrt(self._squares[place] / max(1, self._rows))


def ranked(lines: Sequence[Line], rows: Rows, draws: Sequence[IntArray]) -> dict[str, list[Ranks]]:
    """Rank the rows by every method in every draw; once by a method that looks at no target.

    Args:
        lines: the methods.
        rows: what is ranked.
        draws: positions of the targets that are held, for each draw.
    """
    terms = {term: term.picks(draws) for line in lines for term in line.terms}
    summed = {term for line in lines if isinstance(line.scorer, Sum) for term in line.terms}
    moments = {term: _Moments() for term in summed}
    relevant: dict[Term, list[FloatArray]] = {term: [] for term in terms}
    kept = _room(terms, rows.wanted.size)
    for block, found in _scored(terms, rows):
        mine = np.flatnonzero(rows.wanted[block])
        for term, scores in found.items():
            relevant[term].append(scores[:, mine])
            if term.fixed is None and term in kept:
                kept[term][:, block] = scores
            if term in summed:
                moments[term].add(scores)
    of_relevant = {term: np.concatenate(parts, axis=1) for term, parts in relevant.items()}
    places = [(line, draw) for line in lines for draw in range(1 if line.fixed else len(draws))]
    starts = each(lambda place: Ranks(place[0].scores(of_relevant, moments, place[1]), rows.relevant), places)
    ranks = dict(zip(places, starts, strict=True))

    def count(places: Sequence[tuple[Line, int]], scores: Mapping[Term, FloatArray], block: slice) -> None:
        mine = np.flatnonzero(rows.others[block])

        def one(place: tuple[Line, int]) -> None:
            found = place[0].scores(scores, moments, place[1])
            ranks[place].add(found[mine], block.start + mine)

        each(one, places)

    count([place for place in places if kept.keys() >= set(place[0].terms)], kept, slice(0, rows.wanted.size))
    left = [place for place in places if not kept.keys() >= set(place[0].terms)]
    missing = {term: terms[term] for line, _ in left for term in line.terms if term not in kept}
    for block, found in _scored(missing, rows) if missing else ():
        count(left, {term: values[:, block] for term, values in kept.items()} | found, block)
    return {line.name: [ranks[place] for place in places if place[0] is line] for line in lines}


def _room(terms: Mapping[Term, Sequence[Pick | None]], rows: int) -> dict[Term, FloatArray]:
    """Return arrays [draws,N] for the scores of those terms for which there is room; fixed ones are there."""
    found = {term: term.fixed[None, :] for term in terms if term.fixed is not None}
    left = KEPT_BYTES
    for term, picks in terms.items():
        size = 8 * rows * len(picks)
        if term.fixed is None and size <= left:
            found[term] = np.empty((len(picks), rows))
            left -= size
    return found


def each(work: Callable[[_Task], _Found], tasks: Sequence[_Task]) -> list[_Found]:
    """Return what ``work`` makes of every task, in their order, on as many threads as torch uses.

    For work of NumPy's that lets other threads run; each task must be on its own.
    """
    threads = min(torch.get_num_threads(), len(tasks))
    if threads < 2:
        return [work(task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, tasks))


def _scored(
    terms: Mapping[Term, Sequence[Pick | None]], rows: Rows
) -> Iterator[tuple[slice, dict[Term, FloatArray]]]:
    """The scores of every term in every draw, [draws,n], for some blocks of rows at a time.

    Scores of several blocks are put together, not the rows, which are far larger in all spaces that see them.
    """
    held: list[tuple[slice, dict[Term, FloatArray]]] = []

    def together() -> tuple[slice, dict[Term, FloatArray]]:
        rows = slice(held[0][0].start, held[-1][0].stop)
        return rows, {term: np.concatenate([of[term] for _, of in held], axis=1) for term in terms}

    for block, seen in _blocks(terms, rows):
        held.append((block, {term: term.scores(block, seen, picks) for term, picks in terms.items()}))
        if len(held) == BLOCKS:
            yield together()
            held = []
    if held:
        yield together()


def _blocks(terms: Iterable[Term], rows: Rows) -> Iterator[tuple[slice, dict[Space, Seen]]]:
    """Every block of rows, as the spaces of the terms see it."""
    of_space: dict[Space, list[Term]] = {}
    for term in terms:
        if term.space is not None:
            of_space.setdefault(term.space, []).append(term)
    if not of_space:
        yield slice(0, rows.wanted.size), {}
        return
    views = []
    for space, own in of_space.items():
        targets = own[0].targets
        assert targets is not None
        wants_mean = any(isinstance(term.scorer, SpaceScorer) and term.scorer.uses_mean for term in own)
        views.append(View(space, targets, wants_mean))
    for block, seen in one_pass(views):
        yield block, dict(zip(of_space, seen, strict=True))

"""One pass over blocks of the codes for all scorers, targets and spaces that are asked for at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BLOCK_ROWS,
    BoolArray,
    Codes,
    FloatArray,
    IntArray,
    MappedCodes,
    add_at,
    iter_blocks,
)
from finescope.curation.scoring.base import Seen, SpaceScorer
from finescope.curation.scoring.scorers import SCORERS
from finescope.curation.scoring.space import Space, Targets, View
from finescope.curation.scoring.sums import parse_scorer
from finescope.curation.scoring.table import ScoreTable
from finescope.storage.spill import Spill

SEEN_BYTES = 8 << 20
"""Upper size of the cosines of one block: they are looked at several times, so they had better stay near."""


def one_pass(views: Sequence[View], block_rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, list[Seen]]]:
    """Yield what every view sees of every block, (rows of the block, one ``Seen`` a view), in row order.

    Codes that several views share, though each may change their values in its own way, are read once.

    Args:
        views: of spaces whose corpora have the same N rows, in the same order.
        block_rows: rows at a time, fewer where there are very many targets; never changes a result.
    """
    block_rows = rows_at_a_time(views, block_rows)
    corpora = {id(view.space.corpus): view.space.corpus for view in views}
    bases = {id(base): base for base in map(_base, corpora.values())}
    for blocks in zip(*(iter_blocks(base, block_rows) for base in bases.values()), strict=True):
        start, read = blocks[0][0], dict(zip(bases, (block for _, block in blocks), strict=True))
        changed = {
            name: corpus.change(read[id(corpus.base)]) if isinstance(corpus, MappedCodes) else read[name]
            for name, corpus in corpora.items()
        }
        seen = []
        for view in views:
            block = changed[id(view.space.corpus)]
            seen.append(view.see(block, view.space.norms_of(start, block)))
        yield slice(start, start + len(blocks[0][1])), seen


def rows_at_a_time(views: Sequence[View], most: int = BLOCK_ROWS) -> int:
    """Return how many rows are looked at together, so that their cosines stay near."""
    columns = sum(view.columns for view in views)
    return max(1, min(most, SEEN_BYTES // (8 * max(1, columns))))


def _base(codes: Codes) -> Codes:
    return codes.base if isinstance(codes, MappedCodes) else codes


class CorpusScorer(Space):
    """A corpus ready to be scored against any number of target sets, by scorers that look at its codes."""

    def score(
        self, targets: SparseCodes, scorer: str | SpaceScorer = "contrast", *, m: int = 3
    ) -> ScoreTable:
        """Score every corpus row against the targets.

        Args:
            targets: T rows over the same F latents.
            scorer: one of ``SCORERS``, or a scorer.
            m: how many of the best targets ``top_m_mean`` averages (all of them when there are fewer).

        Raises:
            InputError: no target, no target with a latent of positive weight, or a non-finite target.
            ValueError: unknown scorer, m < 1, or another number of latents.
        """
        scorer = code_scorer(scorer, m)
        view = View(self, self.targets(targets), scorer.uses_mean)
        pick = view.targets.everything
        found = Nearest(len(self), view.targets)
        score = np.zeros(len(self))
        for rows, (seen,) in one_pass([view], self.block_rows):
            score[rows] = scorer.score(seen, pick)
            found.add(rows, seen.cosines)
        valid = self.valid
        score[~valid] = 0.0
        return ScoreTable(score, *found.of(slice(0, len(self)), valid), valid, scorer.name)

    def contributions(
        self, targets: SparseCodes, rows: IntArray, scorer: str | SpaceScorer = "contrast", *, m: int = 3
    ) -> Any:
        """Split the scores of some rows into one addend per latent; see ``Space.addends``.

        Raises:
            InputError, ValueError: as ``score``.
        """
        return self.addends(self.targets(targets), rows, code_scorer(scorer, m))

    def nearest_rows(
        self, targets: SparseCodes, k: int, *, mask: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Return for each target its k nearest valid corpus rows by weighted cosine.

        Args:
            targets: T rows.
            k: rows per target.
            mask: bool [N]; only rows that are True are returned.

        Returns:
            ids int64 [T,k] ordered by (cosine descending, row ascending) and cosines float64 [T,k]; missing
            places hold -1 and -inf. A target without a latent of positive weight finds nothing.
        """
        labels = np.zeros(len(self), np.int64) if mask is None else np.where(mask, 0, -1)
        wanted = np.ones((len(targets), 1), np.bool_)
        ids, cosines = self.nearest_in_groups(targets, k, labels, wanted)
        return ids[:, 0], cosines[:, 0]

    def nearest_in_groups(
        self, targets: SparseCodes, k: int, labels: IntArray, wanted: BoolArray
    ) -> tuple[IntArray, FloatArray]:
        """Return for each target its k nearest valid rows within each group of rows, in one pass.

        Args:
            targets: T rows.
            k: rows per target and group.
            labels: int64 [N], the group of each row; rows of a group below 0 are passed over.
            wanted: bool [T,G], which groups each target looks into.

        Returns:
            ids int64 [T,G,k] and cosines float64 [T,G,k], as ``nearest_rows`` has them.
        """
        view = View(self, self.targets(targets), False)
        asked = [(column, int(group)) for column in range(view.columns)
                 for group in np.flatnonzero(wanted[view.targets.usable[column]])]  # fmt: skip
        kept = {pair: _Kept(k) for pair in asked}
        for rows, (seen,) in one_pass([view], self.block_rows) if k and kept else ():
            groups = np.where(seen.valid, labels[rows], -1)
            members = {group: np.flatnonzero(groups == group) for _, group in kept}
            for (column, group), best in kept.items():
                best.add(rows.start + members[group], seen.cosines[column, members[group]])
        ids = np.full((*wanted.shape, k), -1, np.int64)
        cosines = np.full(ids.shape, -np.inf)
        for (column, group), best in kept.items():
            place = view.targets.usable[column], group, slice(best.rows.size)
            ids[place], cosines[place] = best.rows, best.cosines
        return ids, cosines

    def mean_cosines(self, targets: SparseCodes, labels: IntArray, groups: int) -> FloatArray:
        """Return the mean weighted cosine of each target to the valid rows of each group.

        Args:
            targets: T rows.
            labels: int64 [N], the group of each corpus row.
            groups: number of groups G.

        Returns:
            float64 [T,G]; -inf for a group without valid rows. Targets without a latent of positive weight
            have cosine 0 with all rows.
        """
        view = View(self, self.targets(targets), False)
        sums = np.zeros(groups * view.columns)
        for rows, (seen,) in one_pass([view], self.block_rows):
            places = labels[rows, None] * view.columns + np.arange(view.columns)
            add_at(sums, places.ravel(), seen.cosines.T.ravel())
        counts = np.bincount(labels[self.valid], minlength=groups)
        means = np.full((len(targets), groups), -np.inf)
        means[:, counts > 0] = 0.0
        by_group = sums.reshape(groups, -1)[counts > 0] / counts[counts > 0, None]
        means[np.ix_(view.targets.usable, counts > 0)] = by_group.T
        return means


class _Kept:
    """The k best rows of one target so far."""

    def __init__(self, k: int):
        self._k = k
        self.rows, self.cosines = np.zeros(0, np.int64), np.zeros(0)

    def add(self, rows: IntArray, cosines: FloatArray) -> None:
        """Take rows that come after all before."""
        if self.rows.size == self._k:
            better = cosines > self.cosines[-1]
            rows, cosines = rows[better], cosines[better]
        # Kept rows come first and are lower, so a stable sort settles ties by row.
        together = np.concatenate([self.cosines, cosines])
        order = np.argsort(-together, kind="stable")[: self._k]
        self.rows, self.cosines = np.concatenate([self.rows, rows])[order], together[order]


class Nearest:
    """The nearest target of every row, collected block by block."""

    def __init__(self, rows: int, targets: Targets):
        self._usable = targets.usable
        self._target = Spill(rows, np.int32)
        self._similarity = Spill(rows, np.float64)

    def add(self, rows: slice, cosines: FloatArray) -> None:
        """Take the cosines of a block, float64 [U,n]: the first of the largest of every row."""
        best = cosines.max(axis=0)
        self._similarity[rows] = best
        if len(cosines) > np.iinfo(np.uint8).max:
            self._target[rows] = self._usable[cosines.argmax(axis=0)]
            return
        # The lowest number of those that are the largest; 255 stands for the others. argmax, which goes
        # down columns, takes several times as long.
        places = np.negative((cosines != best).view(np.uint8))
        places |= np.arange(len(cosines), dtype=np.uint8)[:, None]
        self._target[rows] = self._usable[places.min(axis=0)]

    def of(self, rows: slice, valid: BoolArray) -> tuple[IntArray, FloatArray]:
        """Return of some rows the target, int64 [n], and the cosine, float64 [n], in [-1, 1].

        They are -1 and 0 for rows that are not ``valid``.
        """
        target = np.where(valid, self._target[rows], -1).astype(np.int64)
        return target, np.clip(np.where(valid, self._similarity[rows], 0.0), -1.0, 1.0)


def code_scorer(scorer: str | SpaceScorer, m: int = 3) -> SpaceScorer:
    """Return a scorer that needs nothing beside codes.

    Raises:
        ValueError: there is none of that name, it needs more, or m < 1.
    """
    found = parse_scorer(scorer, m=m)
    if not isinstance(found, SpaceScorer) or found.needs:
        raise ValueError(
            f"scorer {found.name!r} looks at more than codes, so a Scoring is needed; those of codes are "
            f"{', '.join(SCORERS)}"
        )
    return found


def score_corpus(
    targets: SparseCodes,
    corpus: Codes,
    *,
    scorer: str | SpaceScorer = "contrast",
    weights: Any = "idf",
    m: int = 3,
) -> ScoreTable:
    """Score all N corpus rows against T targets.

    Args:
        targets: T rows over F latents.
        corpus: N rows over F latents: SparseCodes, or a store with ``iter_shards()``, streamed.
        scorer: one of ``SCORERS`` (formulas at the top of ``scorers.py``), or a scorer.
        weights: None or "none", "idf", or float [F].
        m: for ``top_m_mean``.

    Raises:
        InputError: empty corpus, empty or unusable targets.
        ValueError: unknown scorer or weighting, or different numbers of latents.
    """
    return CorpusScorer(corpus, weights=weights).score(targets, scorer, m=m)

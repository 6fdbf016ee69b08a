"""The best rows by score alone, found in one pass over blocks of rows of which none is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import FloatArray, IntArray
from finescope.curation.limits import CODE, REASONS, RowBlock, SelectionConfig, judged, limit_of
from finescope.curation.selected import Reasons, Selection

_FEWEST = 1 << 16
"""Rows that are looked at together, and gathered before any of them is let go of: they stay in a cache."""


def select_best(
    rows: int, blocks: Callable[[], Iterable[RowBlock]], cfg: SelectionConfig, *, fewest: int = _FEWEST
) -> Selection:
    """Select the best rows by score, within limits that look at neither codes nor labels.

    In memory are a block, some ``fewest`` rows and twice those that are selected. What became of the others
    is not held: ``Selection.reason`` finds it again.

    Args:
        rows: N.
        blocks: gives the N rows in order, as often as it is called.
        cfg: the limits.
        fewest: rows gathered before any is let go of; never changes a result.
    """
    best = _Best(limit_of(cfg, rows), cfg.token_budget, fewest)
    counts = np.zeros(len(REASONS), np.int64)
    for block in (part for whole in blocks() for part in whole.split(fewest)):
        reason = judged(block, cfg)
        counts += np.bincount(reason, minlength=len(REASONS))
        best.add(block, np.flatnonzero(reason == CODE["beyond_limit"]))
    chosen, spent = best.rows()
    counts[CODE["beyond_limit"]] -= chosen.size
    counts[CODE["selected"]] += chosen.size
    marked = np.sort(chosen)

    def again() -> Iterator[NDArray[np.uint8]]:
        for block in blocks():
            reason = judged(block, cfg)
            low, high = np.searchsorted(marked, [block.first, block.first + len(block.scores)])
            reason[marked[low:high] - block.first] = CODE["selected"]
            yield reason

    return Selection(chosen, Reasons(counts, again), {}, spent, cfg.plain())


class _Best:
    """The best rows so far, best first, as far as the limits on their number and tokens go."""

    def __init__(self, limit: int, budget: int | None, fewest: int):
        self._limit, self._budget, self._fewest = limit, budget, fewest
        self._held: list[tuple[IntArray, FloatArray, IntArray]] = []
        self._size, self._full = 0, fewest
        self._edge = -np.inf
        self._known = True

    def add(self, block: RowBlock, allowed: IntArray) -> None:
        """Take those rows of a block that may be selected; all come after the rows before."""
        self._known = self._known and block.tokens is not None
        score = block.scores.score[allowed]
        if self._edge > -np.inf:  # of equal scores the lower row is the better
            better = np.flatnonzero(score > self._edge)
            allowed, score = allowed[better], score[better]
        tokens = np.zeros(allowed.size, np.int64) if block.tokens is None else block.tokens[allowed]
        self._held.append((block.first + allowed, score, tokens))
        self._size += allowed.size
        if self._size >= self._full:
            self._trim()

    def rows(self) -> tuple[IntArray, int | None]:
        """Return the selected rows, int64, best first, and their tokens, None where those aren't known."""
        rows, _, tokens = self._trim()
        if self._budget is not None:
            rows = rows[: np.searchsorted(np.cumsum(tokens), self._budget, side="right")]
        return rows, int(tokens[: rows.size].sum()) if self._known else None

    def _trim(self) -> tuple[IntArray, FloatArray, IntArray]:
        """Let go of what no row that comes can bring back; return the others."""
        parts = zip(*self._held, strict=True) if self._held else ([], [], [])
        rows, score, tokens = (
            np.concatenate([np.zeros(0, kind), *part])
            for part, kind in zip(parts, (np.int64, np.float64, np.int64), strict=True)
        )
        if rows.size > self._limit > 0:  # sorting all takes ten times as long as finding the best
            least = np.partition(score, rows.size - self._limit)[rows.size - self._limit]
            rows, score, tokens = (part[score >= least] for part in (rows, score, tokens))
        # Held rows come first and are lower among equals, so a stable sort settles ties by row.
        order = np.argsort(-score, kind="stable")[: self._limit]
        ended = order.size == self._limit
        if self._budget is not None:
            # Behind the first that doesn't fit none is taken; better rows only move it forward.
            fits = int(np.searchsorted(np.cumsum(tokens[order]), self._budget, side="right"))
            ended, order = ended or fits < order.size, order[: fits + 1]
        kept = rows[order], score[order], tokens[order]
        if ended:
            self._edge = float(kept[1][-1]) if order.size else np.inf
        self._held, self._size = [kept], order.size
        self._full = max(self._fewest, 2 * order.size)
        return kept

"""Exact top-k of a large matrix of scores that is never stored: screen, re-score, certify.

One driver serves the encoder, dense search and sparse search. A ``Problem`` says how scores are approximated
in blocks, how far an approximation may lie from the truth, and how chosen scores are computed exactly.

1. *Screen.* Block by block, keep the k + pad largest approximate scores of each row. Everything left out has
   an approximate score of at most the smallest kept one, ``a``; so its exact score is at most ``a + bound``.
2. *Re-score* the kept candidates exactly, in float64 and a fixed order.
3. *Certify.* If ``a + bound`` lies strictly below the k-th exact score, nothing left out can belong to the
   result.
4. Rows that fail (ties at the edge, badly scaled data, a device that multiplies in less than float32) are
   searched again in float64: every score whose upper bound reaches the k-th best known exact score is
   re-scored. Right for any data, in bounded memory, only slower.

Order: exact score descending, then column ascending. So results depend on nothing but the data.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

# The most elements of the [rows, columns] score matrix that exist at once (16 MiB of float32).
BLOCK_ELEMENTS = 1 << 22
# The same for the second, float64 pass, which holds several such blocks.
WIDE_ELEMENTS = 1 << 18
MIN_ROWS = 256

NEVER = float("-inf")


class Problem(abc.ABC):
    """Scores of ``rows`` × ``cols``, approximate and exact."""

    rows: int
    cols: int
    device: torch.device
    #: terms of one score; longer sums have wider bounds and get more spare candidates.
    terms: int
    #: scores at or below the floor are never wanted (0 for the rectified encoder).
    floor: float = NEVER
    #: bool [rows]: rows without an answer (NaN queries).
    bad_rows: Tensor | None = None
    #: int64, ascending: columns that are never returned (masked out, NaN).
    banned: Tensor | None = None
    #: int64 [rows, E]: columns that are never returned for that row; negative ones mean none.
    exclude: Tensor | None = None
    #: the most columns of a block, where a block of columns has to be converted or copied.
    max_columns: int = 1 << 62
    #: the most rows of a block.
    max_rows: int = 1 << 62

    @abc.abstractmethod
    def screen(self, rows: slice, cols: slice) -> Tensor:
        """Approximate scores of a block; the caller may write to them."""

    @abc.abstractmethod
    def bound(self, rows: slice, at: Tensor) -> Tensor:
        """How far an exact score may lie from a screened one of at most ``at``. float64; inf: unknown."""

    @abc.abstractmethod
    def wide(self, rows: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
        """Approximate scores of a block in float64, and an error bound for each."""

    @abc.abstractmethod
    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Exact scores, float64 [P,C], of rows [P] and columns [P,C]."""


def _spare(k: int, terms: int) -> int:
    """How many candidates to keep beyond k, so that the certificate rarely fails.

    For Gaussian data the bound ``terms · 2⁻²⁴ · ‖x‖‖w‖`` spans about ``k · terms^1.5 · 2⁻²²`` neighbours in
    the order of scores near the k-th; that many, and four standard deviations more.
    """
    crowd: float = k * terms**1.5 * 2.0**-22
    return 6 + int(crowd + 4.0 * math.sqrt(crowd))


def _ban(problem: Problem, scores: Tensor, rows: Tensor, cols: slice) -> None:
    """Write -inf over the scores of a block that may not be returned. ``rows`` int64 [R] are positions."""
    if problem.banned is not None:
        low, high = torch.searchsorted(
            problem.banned, torch.tensor([cols.start, cols.stop], device=scores.device)
        ).tolist()
        if high > low:
            scores.index_fill_(1, problem.banned[low:high] - cols.start, NEVER)
    if problem.exclude is not None and problem.exclude.shape[1]:
        columns = problem.exclude.index_select(0, rows)
        row, slot = ((columns >= cols.start) & (columns < cols.stop)).nonzero(as_tuple=True)
        scores[row, columns[row, slot] - cols.start] = NEVER


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, columns = torch.topk(scores, min(count, scores.shape[1]), dim=1, sorted=False)
    return values, columns


def ordered(scores: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort candidates [R,C] by score descending, then column ascending, and keep k."""
    columns, order = torch.sort(columns, dim=1)
    scores, best = torch.sort(scores.gather(1, order), dim=1, descending=True, stable=True)
    return scores[:, :k], columns.gather(1, best[:, :k])


def certified_topk(problem: Problem, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of every row.

    Returns:
        float64 scores [rows,k] and int64 columns [rows,k], by score descending then column ascending;
        -inf and -1 where a row has fewer than k columns that may be returned and lie above the floor.
    """
    scores = torch.full((problem.rows, k), NEVER, dtype=torch.float64, device=problem.device)
    columns = torch.full((problem.rows, k), -1, dtype=torch.int64, device=problem.device)
    if not (problem.rows and problem.cols and k):
        return scores, columns
    count = min(problem.cols, k + _spare(k, problem.terms))
    tall = max(MIN_ROWS, BLOCK_ELEMENTS // problem.cols)
    tall = max(1, min(tall, problem.rows, problem.max_rows, BLOCK_ELEMENTS // (2 * count)))
    failed: list[Tensor] = []
    known: list[Tensor] = []
    for first in range(0, problem.rows, tall):
        rows = slice(first, min(first + tall, problem.rows))
        positions = torch.arange(rows.start, rows.stop, device=problem.device)
        top, chosen, certain = _first_pass(problem, rows, positions, k, count)
        top, chosen = top[:, :k], chosen[:, :k]
        width = top.shape[1]
        wanted = top > problem.floor
        if problem.bad_rows is not None:
            wanted &= ~problem.bad_rows[rows, None]
        scores[rows, :width] = top.where(wanted, NEVER)
        columns[rows, :width] = chosen.where(wanted, -1)
        again = (~certain).nonzero().squeeze(1)
        if again.numel():
            failed.append(again + first)
            known.append(scores[rows, k - 1].index_select(0, again))
    if failed:
        again = torch.cat(failed)
        scores[again], columns[again] = _second_pass(problem, again, torch.cat(known), k)
    return scores, columns


def _first_pass(
    problem: Problem, rows: slice, positions: Tensor, k: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Screen, re-score and certify one block of rows.

    Returns:
        exact scores [R,≤count] in order, their columns, and bool [R]: whether the first k are proven right.
    """
    height = rows.stop - rows.start
    wide = max(1, min(problem.cols, BLOCK_ELEMENTS // height, problem.max_columns))
    if count == problem.cols:
        return (*_everything(problem, rows, positions), torch.ones_like(positions, dtype=torch.bool))
    screened, chosen = None, None
    for start in range(0, problem.cols, wide):
        cols = slice(start, min(start + wide, problem.cols))
        block = problem.screen(rows, cols)
        _ban(problem, block, positions, cols)
        best, where = _largest(block, count)
        where = where + start
        if screened is None or chosen is None:
            screened, chosen = best, where
        else:
            screened, kept = _largest(torch.cat([screened, best], dim=1), count)
            chosen = torch.cat([chosen, where], dim=1).gather(1, kept)
    if screened is None or chosen is None:
        raise RuntimeError("a search over no columns")
    exact = problem.exact(positions, chosen)
    screened = screened.double()
    edge = screened.amin(dim=1)
    # Screened scores that are not what they claim to be (a library that rounds to bfloat16 behind our back)
    # would void the proof, so the candidates, whose truth is known, are held against the bound.
    usable = screened > NEVER
    honest = ~((screened - exact).abs() > problem.bound(rows, screened)) | ~usable
    exact = exact.where(usable, NEVER)
    top, chosen = ordered(exact, chosen, chosen.shape[1])
    reach = edge + problem.bound(rows, edge)
    last = top[:, k - 1] if top.shape[1] >= k else torch.full_like(edge, NEVER)
    certain = honest.all(dim=1) & ((reach < last) | (reach <= problem.floor))
    if problem.bad_rows is not None:
        certain |= problem.bad_rows[rows]
    return top, chosen, certain


def _everything(problem: Problem, rows: slice, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Score all columns exactly, where nearly all of them are asked for."""
    allowed = torch.zeros((positions.shape[0], problem.cols), device=problem.device)
    _ban(problem, allowed, positions, slice(0, problem.cols))
    chosen = torch.arange(problem.cols, device=problem.device).expand(positions.shape[0], -1)
    return ordered(problem.exact(positions, chosen).where(allowed > NEVER, NEVER), chosen, problem.cols)


def _second_pass(problem: Problem, rows: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search some rows again in float64, re-scoring everything that could belong to the result.

    Args:
        problem: the scores.
        rows: int64 [R], the rows.
        known: float64 [R], a score that at least k columns of the row are known to reach, or -inf.
        k: how many to return.
    """
    scores, columns = [], []
    tall = max(1, min(rows.shape[0], 64, problem.max_rows, WIDE_ELEMENTS // max(k, 1)))
    for first in range(0, rows.shape[0], tall):
        best, chosen = _survivors(problem, rows[first : first + tall], known[first : first + tall], k)
        scores.append(best)
        columns.append(chosen)
    return torch.cat(scores), torch.cat(columns)


def _survivors(problem: Problem, rows: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    height = rows.shape[0]
    wide = max(1, min(problem.cols, WIDE_ELEMENTS // height, problem.max_columns))
    best = torch.full((height, k), NEVER, dtype=torch.float64, device=problem.device)
    chosen = torch.full((height, k), -1, dtype=torch.int64, device=problem.device)
    for start in range(0, problem.cols, wide):
        cols = slice(start, min(start + wide, problem.cols))
        approximate, error = problem.wide(rows, cols)
        reach = approximate + error
        _ban(problem, reach, rows, cols)
        if reach.shape[1] >= k:
            least = (approximate - error).masked_fill_(reach == NEVER, NEVER)
            known = torch.maximum(known, torch.topk(least, k, dim=1).values[:, -1])
        # Columns come in ascending order, so one that only equals the k-th best so far has already lost to
        # it.
        alive = (reach >= known[:, None]) & (reach > best[:, -1:]) & (reach > problem.floor)
        row, column = alive.nonzero(as_tuple=True)
        if row.numel():
            column = column + start
            score = problem.exact(rows.index_select(0, row), column[:, None]).squeeze(1)
            best, chosen = _merge(best, chosen, row, column, score, problem.floor)
    return best, chosen


def _merge(
    best: Tensor, chosen: Tensor, row: Tensor, column: Tensor, score: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Merge ragged candidates (ascending in row, then column, all columns new and larger) into the best k."""
    height, k = best.shape
    held, slot = (best > NEVER).nonzero(as_tuple=True)
    wanted = score > floor
    row = torch.cat([held, row[wanted]])
    column = torch.cat([chosen[held, slot], column[wanted]])
    score = torch.cat([best[held, slot], score[wanted]])
    # Three stable sorts, least significant key first. What is held already comes before what is new, and
    # equal scores held are in ascending order of columns, so the columns need no sort of their own.
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    row, column, score = row[order], column[order], score[order]
    starts = torch.searchsorted(row, torch.arange(height, device=row.device))
    rank = torch.arange(row.shape[0], device=row.device) - starts[row]
    kept = rank < k
    best, chosen = torch.full_like(best, NEVER), torch.full_like(chosen, -1)
    best[row[kept], rank[kept]] = score[kept]
    chosen[row[kept], rank[kept]] = column[kept]
    return best, chosen

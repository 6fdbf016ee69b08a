"""Methods × metrics with intervals on a labelled corpus: the honest table of every report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finescope.curation.baselines import random_scores
from finescope.curation.blocks import BLOCK_ROWS, BoolArray, FloatArray, IntArray, iter_shard_codes
from finescope.curation.intervals import Interval, jackknife_interval, leave_out, percentile_interval
from finescope.curation.metrics import random_average_precision
from finescope.curation.ranks import Ranks
from finescope.curation.scoring.base import Column, Pick, Scorer, Seen, SpaceScorer
from finescope.curation.scoring.evidence import Evidence, Spaces
from finescope.curation.scoring.onepass import one_pass
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.scoring.scorers import Random
from finescope.curation.scoring.space import Space, Targets, View
from finescope.curation.scoring.sums import Sum, added, parse_scorer
from finescope.errors import InputError

METHODS = (
    "default", "contrast+tfidf", "ridge", "ridge+tfidf+dense-whitened", "jaccard", "paper", "tfidf",
    "tfidf-max", "dense-whitened", "dense-centred", "dense", "length", "random",
)  # fmt: skip
"""What is compared: presets and scorers, by the names by which they are chosen."""
BLOCKS = 4
"""Blocks taken at a time: of many rows together it costs less to count what stands before a few."""
ROUND_BYTES = 256 << 20
"""Upper size of the relevant rows' scores held at a time; more draws than fit take further passes."""


@dataclass
class MethodResult:
    """One line of the table.

    Attributes:
        name: the method: a preset, or a scorer as it is written.
        summary: what it does, in words.
        metrics: ``average_precision``, ``precision@k``, ``recall@k`` and ``lift@k`` for each k, with
            intervals.
        intervals: what the intervals are over.
    """

    name: str
    summary: str
    metrics: dict[str, Interval] = field(default_factory=dict)
    intervals: str = "jackknife over targets"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; undefined numbers are None."""
        return {
            "name": self.name,
            "summary": self.summary,
            "intervals": self.intervals,
            "metrics": {
                name: {
                    end: None if math.isnan(number) else number
                    for end, number in (("value", item.value), ("low", item.low), ("high", item.high))
                }
                for name, item in self.metrics.items()
            },
        }


def compare_methods(
    relevant: Any,
    corpus: Evidence | Spaces,
    targets: Evidence,
    *,
    methods: Sequence[str | Preset | Scorer] = METHODS,
    exclude: Any = None,
    at: Sequence[int] = (10, 100),
    draws: int = 50,
    seed: int = 42,
) -> list[MethodResult]:
    """Rank a labelled corpus by every method and measure the rankings.

    All methods rank the same rows: those that are not excluded and hold at least one latent. Intervals are
    those of the jackknife over targets: what other targets from the same source would give. For random orders
    they hold most orders; its own values are exact expectations. Length does not depend on targets and has no
    interval.

    All methods and all draws are functions of the same cosines, so the corpus is read twice, however many
    there are: once for the scores of the relevant rows, once to count what stands before each of them.

    Args:
        relevant: bool [N], rows of the target domain (labels == the targets' label).
        corpus: what is known of the N rows; or their spaces, where they serve several target sets.
        targets: what is known of the T targets.
        methods: presets and scorers, by name or as values. Left out is what needs evidence that there is not,
            or a pooling that can't be derived from the stored one.
        exclude: bool [N], rows that are targets.
        at: the k of precision, recall and lift.
        draws: groups of targets left out in turn, at most, and random orders; 0 leaves intervals without
            width.
        seed: of the random orders.

    Returns:
        One result per method, in order of average precision, best first, random wherever it falls.

    Raises:
        InputError: no relevant row is left to be found.
        ValueError: an array of the wrong length, an unknown method.
    """
    spaces = corpus if isinstance(corpus, Spaces) else Spaces(corpus)
    rows, count = _Rows.of(spaces.corpus, relevant, exclude), targets.check("target_")
    every = [_line(method, spaces, targets) for method in methods]
    lines = list({line.name: line for line in every if line is not None}.values())
    picks = [np.arange(count), *leave_out(count, draws)]
    results = _measured(lines, rows, picks, tuple(at))
    if any(_is_random(method) for method in methods):
        results.append(_random_result(rows, tuple(at), draws, seed))
    return sorted(results, key=lambda item: -item.metrics["average_precision"].value)


@dataclass(frozen=True)
class _Rows:
    """The rows that are ranked: bool [N], those to be found and the others; int64 [R], the former."""

    wanted: BoolArray
    others: BoolArray
    relevant: IntArray

    @classmethod
    def of(cls, corpus: Evidence, relevant: Any, exclude: Any) -> _Rows:
        held = np.concatenate([np.diff(shard.indptr.numpy()) > 0 for shard in iter_shard_codes(corpus.codes)])
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
class _Term:
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
        for place, pick in enumerate(picks):
            if pick is not None:
                found[place] = self.scorer.score(seen[self.space], pick)
        return found


@dataclass(frozen=True)
class _Line:
    """A method that can be measured with what is known."""

    name: str
    summary: str
    scorer: Scorer
    terms: tuple[_Term, ...]

    @property
    def fixed(self) -> bool:
        """Whether it looks at no target."""
        return all(term.fixed is not None for term in self.terms)

    def scores(
        self, of_terms: Mapping[_Term, FloatArray], moments: Mapping[_Term, _Moments], draw: int
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


def _line(method: str | Preset | Scorer, spaces: Spaces, targets: Evidence) -> _Line | None:
    """Return a method with the spaces that it looks at; None where they can't be made."""
    recipe, name = PRESETS["default"], ""
    if isinstance(method, Preset) or method in PRESETS:
        recipe = method if isinstance(method, Preset) else PRESETS[str(method)]
        scorer, name, summary = parse_scorer(recipe.scorer, m=recipe.m), recipe.name, recipe.summary
    else:
        scorer = parse_scorer(method)
        name, summary = scorer.name, scorer.summary
    if isinstance(scorer, Random) or scorer.needs - spaces.known(targets):
        return None
    terms = []
    for _, part in scorer.terms:
        if isinstance(part, Column):
            terms.append(_Term(part, None, fixed=spaces.column(part)))
            continue
        assert isinstance(part, SpaceScorer)
        try:
            space = spaces.get(part.space, recipe)
            terms.append(_Term(part, space, spaces.targets(part.space, recipe, targets)))
        except ValueError:
            return None  # this pooling can't be derived from the stored codes
        except InputError:
            if part.space == "codes":
                raise
            return None  # the targets hold no word that the corpus holds
    return _Line(name, summary, scorer, tuple(terms))


def _measured(
    lines: Sequence[_Line], rows: _Rows, draws: Sequence[IntArray], at: tuple[int, ...]
) -> list[MethodResult]:
    """Measure the methods with all targets, which the first draw holds, and with those of the others."""
    found: list[list[dict[str, float]]] = [[] for _ in lines]
    step = max(1, ROUND_BYTES // (32 * rows.relevant.size * max(1, len(lines))))
    for low in range(0, len(draws), step):
        moving = [line for line in lines if low == 0 or not line.fixed]
        ranked = _ranked(moving, rows, draws[low : low + step])
        for line, of_line in zip(lines, found, strict=True):
            of_line += [ranks.metrics(at) for ranks in ranked.get(line.name, ())]
    return [
        MethodResult(
            line.name,
            line.summary,
            {name: _interval(name, number, of_line[1:]) for name, number in of_line[0].items()},
            "none: needs no targets" if line.fixed else "jackknife over targets",
        )
        for line, of_line in zip(lines, found, strict=True)
    ]


def _ranked(lines: Sequence[_Line], rows: _Rows, draws: Sequence[IntArray]) -> dict[str, list[Ranks]]:
    """Rank the rows by every method in every draw; once by a method that looks at no target."""
    terms = {term: term.picks(draws) for line in lines for term in line.terms}
    summed = {term for line in lines if isinstance(line.scorer, Sum) for term in line.terms}
    moments = {term: _Moments() for term in summed}
    relevant: dict[_Term, list[FloatArray]] = {term: [] for term in terms}
    for block, seen in _blocks(terms, rows):
        mine = np.flatnonzero(rows.wanted[block])
        for term, picks in terms.items():
            scores = term.scores(block, seen, picks)
            relevant[term].append(scores[:, mine])
            if term in summed:
                moments[term].add(scores)
    of_relevant = {term: np.concatenate(parts, axis=1) for term, parts in relevant.items()}
    ranks = {
        line.name: [
            Ranks(line.scores(of_relevant, moments, draw), rows.relevant)
            for draw in range(1 if line.fixed else len(draws))
        ]
        for line in lines
    }
    for block, seen in _blocks(terms, rows):
        mine = np.flatnonzero(rows.others[block])
        of_block = {term: term.scores(block, seen, picks)[:, mine] for term, picks in terms.items()}
        for line in lines:
            for draw, one in enumerate(ranks[line.name]):
                one.add(line.scores(of_block, moments, draw), block.start + mine)
    return ranks


def _blocks(terms: Iterable[_Term], rows: _Rows) -> Iterator[tuple[slice, dict[Space, Seen]]]:
    """Every block of rows, as the spaces of the terms see it."""
    of_space: dict[Space, list[_Term]] = {}
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
    for block, seen in one_pass(views, BLOCKS * BLOCK_ROWS):
        yield block, dict(zip(of_space, seen, strict=True))


def _interval(metric: str, value: float, left: Sequence[Mapping[str, float]]) -> Interval:
    bounds = (0.0, math.inf) if metric.startswith("lift") else (0.0, 1.0)
    return jackknife_interval(value, [one[metric] for one in left], bounds=bounds)


def _is_random(method: str | Preset | Scorer) -> bool:
    return method == "random" or isinstance(method, Random)


def _random_result(rows: _Rows, at: tuple[int, ...], draws: int, seed: int) -> MethodResult:
    relevant, others = rows.relevant.size, np.flatnonzero(rows.others)
    ranked = relevant + others.size
    value = {"average_precision": random_average_precision(ranked, relevant)}
    for k in at:
        value[f"precision@{k}"] = relevant / ranked
        value[f"recall@{k}"] = min(k, ranked) / ranked
        value[f"lift@{k}"] = 1.0
    spread = []
    for draw in range(draws):
        score = random_scores(rows.wanted.size, seed + draw)
        ranks = Ranks(score[rows.relevant], rows.relevant)
        ranks.add(score[others], others)
        spread.append(ranks.metrics(at))
    metrics = {
        name: percentile_interval(number, [one[name] for one in spread]) for name, number in value.items()
    }
    return MethodResult("random", "a random order; exact expectation", metrics, "random orders")


def average_results(tables: Sequence[Sequence[MethodResult]]) -> list[MethodResult]:
    """Average the tables of several target domains, with Student's intervals over the domains.

    Args:
        tables: one result of ``compare_methods`` per domain; methods missing in any are left out.

    Raises:
        ValueError: no tables.
    """
    if not tables:
        raise ValueError("average_results needs at least one table")
    shared = set.intersection(*({item.name for item in table} for table in tables))
    without = leave_out(len(tables), len(tables))
    results = []
    for first in tables[0]:
        if first.name not in shared:
            continue
        lines = [next(item for item in table if item.name == first.name) for table in tables]
        metrics = {}
        for name in first.metrics:
            values = np.asarray([line.metrics[name].value for line in lines])
            metrics[name] = _interval(
                name, float(values.mean()), [{name: float(values[rows].mean())} for rows in without]
            )
        results.append(
            MethodResult(first.name, first.summary, metrics, f"Student's t over {len(tables)} domains")
        )
    return sorted(results, key=lambda item: -item.metrics["average_precision"].value)

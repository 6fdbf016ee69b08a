"""Methods × metrics with intervals on a labelled corpus: the honest table of every report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finescope.curation.baselines import random_scores
from finescope.curation.blocks import IntArray
from finescope.curation.intervals import Interval, jackknife_interval, leave_out, percentile_interval
from finescope.curation.metrics import random_average_precision
from finescope.curation.ranking import Line, Rows, Term, each, ranked
from finescope.curation.ranks import Ranks
from finescope.curation.scoring.base import Column, Scorer, SpaceScorer
from finescope.curation.scoring.evidence import Evidence, Spaces, fitting
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.scoring.scorers import Random
from finescope.curation.scoring.sums import parse_scorer
from finescope.errors import InputError
from finescope.html.notebook import notebook
from finescope.progress import counted

METHODS = (
    "default", "contrast+tfidf", "ridge", "contrast", "jaccard", "paper", "tfidf", "tfidf-max",
    "dense-whitened", "dense-centred", "dense", "length", "random",
)  # fmt: skip
"""What is compared: presets and scorers, by the names by which they are chosen."""
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

    def _repr_html_(self) -> str:
        """Return the line as a table, for notebooks."""
        return Comparison([self])._repr_html_()


class Comparison(list[MethodResult]):
    """A table of methods: a list of its lines, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        measures = list(dict.fromkeys(name for line in self for name in line.metrics))
        columns: dict[str, list[Any]] = {"method": [line.name for line in self]}
        for name in measures:
            found = [line.metrics.get(name) for line in self]
            columns[name.replace("_", " ")] = [None if item is None else item.value for item in found]
            if name == "average_precision":
                columns["95 % interval"] = [
                    "" if item is None or item.low == item.high else f"{item.low:.3f} – {item.high:.3f}"
                    for item in found
                ]
        columns["what it is"] = [line.summary for line in self]
        kinds = dict.fromkeys(line.intervals for line in self)
        return notebook(
            f"{counted(len(self), 'method')} compared",
            columns,
            said=[f"intervals: {', '.join(kinds)}"] if kinds else [],
            caption="Methods by average precision, best first",
            digits=3,
        )


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
) -> Comparison:
    """Rank a labelled corpus by every method and measure the rankings.

    All methods rank the same rows: those that are not excluded and hold at least one latent. Intervals are
    those of the jackknife over targets: what other targets from the same source would give. For random orders
    they hold most orders; its own values are exact expectations. Length does not depend on targets and has no
    interval.

    All methods and all draws are functions of the same cosines, so the corpus is read once for them, however
    many there are; twice where their scores don't fit into memory.

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
    rows, count = Rows.of(spaces.held, relevant, exclude), targets.check("target_")
    every = [_line(method, spaces, targets) for method in methods]
    lines = list({line.name: line for line in every if line is not None}.values())
    picks = [np.arange(count), *leave_out(count, draws)]
    results = _measured(lines, rows, picks, tuple(at))
    if any(_is_random(method) for method in methods):
        results.append(_random_result(rows, tuple(at), draws, seed))
    return Comparison(sorted(results, key=lambda item: -item.metrics["average_precision"].value))


def _line(method: str | Preset | Scorer, spaces: Spaces, targets: Evidence) -> Line | None:
    """Return a method with the spaces that it looks at; None where they can't be made."""
    recipe, name = PRESETS["default"], ""
    if isinstance(method, Preset) or method in PRESETS:
        recipe = method if isinstance(method, Preset) else PRESETS[str(method)]
        (scorer, _), name, summary = fitting(recipe, spaces, targets), recipe.name, recipe.summary
    else:
        scorer = parse_scorer(method)
        name, summary = scorer.name, scorer.summary
    if isinstance(scorer, Random) or scorer.needs - spaces.known(targets):
        return None
    terms = []
    for _, part in scorer.terms:
        if isinstance(part, Column):
            terms.append(Term(part, None, fixed=spaces.column(part)))
            continue
        assert isinstance(part, SpaceScorer)
        try:
            space = spaces.get(part.space, recipe)
            terms.append(Term(part, space, spaces.targets(part.space, recipe, targets)))
        except ValueError:
            return None  # this pooling can't be derived from the stored codes
        except InputError:
            if part.space == "codes":
                raise
            return None  # the targets hold no word that the corpus holds
    return Line(name, summary, scorer, tuple(terms))


def _measured(
    lines: Sequence[Line], rows: Rows, draws: Sequence[IntArray], at: tuple[int, ...]
) -> list[MethodResult]:
    """Measure the methods with all targets, which the first draw holds, and with those of the others."""
    found: list[list[dict[str, float]]] = [[] for _ in lines]
    step = max(1, ROUND_BYTES // (32 * rows.relevant.size * max(1, len(lines))))
    for low in range(0, len(draws), step):
        moving = [line for line in lines if low == 0 or not line.fixed]
        places = ranked(moving, rows, draws[low : low + step])
        for line, of_line in zip(lines, found, strict=True):
            of_line += [ranks.metrics(at) for ranks in places.get(line.name, ())]
    return [
        MethodResult(
            line.name,
            line.summary,
            {name: _interval(name, number, of_line[1:]) for name, number in of_line[0].items()},
            "none: needs no targets" if line.fixed else "jackknife over targets",
        )
        for line, of_line in zip(lines, found, strict=True)
    ]


def _interval(metric: str, value: float, left: Sequence[Mapping[str, float]]) -> Interval:
    bounds = (0.0, math.inf) if metric.startswith("lift") else (0.0, 1.0)
    return jackknife_interval(value, [one[metric] for one in left], bounds=bounds)


def _is_random(method: str | Preset | Scorer) -> bool:
    return method == "random" or isinstance(method, Random)


def _random_result(rows: Rows, at: tuple[int, ...], draws: int, seed: int) -> MethodResult:
    relevant, others = rows.relevant.size, np.flatnonzero(rows.others)
    count = relevant + others.size
    value = {"average_precision": random_average_precision(count, relevant)}
    for k in at:
        value[f"precision@{k}"] = relevant / count
        value[f"recall@{k}"] = min(k, count) / count
        value[f"lift@{k}"] = 1.0

    def metrics_of(draw: int) -> dict[str, float]:
        score = random_scores(rows.wanted.size, seed + draw)
        ranks = Ranks(score[rows.relevant], rows.relevant)
        ranks.add(score[others], others)
        return ranks.metrics(at)

    spread = each(metrics_of, range(draws))
    metrics = {
        name: percentile_interval(number, [one[name] for one in spread]) for name, number in value.items()
    }
    return MethodResult("random", "a random order; exact expectation", metrics, "random orders")


def average_results(tables: Sequence[Sequence[MethodResult]]) -> Comparison:
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
    return Comparison(sorted(results, key=lambda item: -item.metrics["average_precision"].value))

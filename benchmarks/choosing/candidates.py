"""What the default preset is chosen from, written down before anything was measured, and how it is chosen."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from finescope.demo.text import TOPICS

SINGLE = (
    "paper",
    "contrast", "ridge", "jaccard", "max", "mean", "centroid", "top_m_mean", "tfidf", "tfidf-max", "dense",
    "dense-centred", "dense-whitened",
)  # fmt: skip
_CODES, _WEIGHTS = ("contrast", "ridge"), (0.0, 0.5, 1.0, 2.0)
FOLDS = 5
"""Of topics. Those of the demonstration, whose figures the README shows, are a fold by themselves."""

Precision = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Average precision by cell (a layer and a corpus), topic and candidate."""


def _sum(codes: str, tfidf: float, dense: float) -> str:
    parts = [(1.0, codes), (tfidf, "tfidf"), (dense, "dense-whitened")]
    return "+".join(name if weight == 1 else f"{weight:g}*{name}" for weight, name in parts if weight)


SUMS = (
    *(
        _sum(codes, *weights)
        for codes in _CODES
        for weights in itertools.product(_WEIGHTS, _WEIGHTS)
        if any(weights)
    ),
    "tfidf+dense-whitened",
    "tfidf+2*dense-whitened",
)
CANDIDATES = SINGLE + SUMS


def fold_of(corpus: str, topic: str) -> int:
    """Return the fold of a topic: 0 for the demonstration's, else by a hash of its name."""
    if corpus == "docstrings" and topic in TOPICS:
        return 0
    return 1 + hashlib.sha256(topic.encode()).digest()[0] % (FOLDS - 1)


def mean_over_cells(found: Precision, name: str, topics: Mapping[str, Sequence[str]]) -> float:
    """Return a candidate's average precision: the mean over topics in each cell, then over cells."""
    return fmean(
        fmean(of_topic[topic][name] for topic in topics[cell])
        for cell, of_topic in found.items()
        if topics[cell]
    )


def held_out(found: Precision, fold: int, *, inside: bool) -> dict[str, list[str]]:
    """Return by cell the topics of a fold, or those of all others."""
    return {
        cell: [topic for topic in of_topic if (fold_of(cell.rpartition(" ")[2], topic) == fold) == inside]
        for cell, of_topic in found.items()
    }


def best(found: Precision, topics: Mapping[str, Sequence[str]]) -> str:
    """Return the simplest candidate within one standard error of the one with the largest mean over cells.

    The error is that of the difference from the largest, over topics (Breiman et al., 1984). Simplest: the
    fewest terms, then the fewest weights that aren't 1, then the largest mean.
    """
    means = {name: mean_over_cells(found, name, topics) for name in CANDIDATES}
    top = max(CANDIDATES, key=means.__getitem__)

    def near(name: str) -> bool:
        behind = [
            found[cell][topic][top] - found[cell][topic][name] for cell in found for topic in topics[cell]
        ]
        return means[top] - means[name] <= stdev(behind) / math.sqrt(len(behind))

    return min(filter(near, CANDIDATES), key=lambda name: (name.count("+"), name.count("*"), -means[name]))

"""Metrics of a ranking against labels. Definitions version 1; a changed definition gets a new version.

A ranking is a list of row numbers, best first; ``relevant`` marks the rows that belong to the target domain.
Rows that are not in the ranking (targets, empty rows) count neither as found nor as missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import BoolArray, FloatArray, IntArray

METRICS_VERSION = 1
"""Version of the definitions in this module, written into every metrics file."""


def _hits(ranking: IntArray, relevant: BoolArray) -> BoolArray:
    return np.asarray(relevant, dtype=np.bool_)[np.asarray(ranking, dtype=np.int64)]


def precision_at_k(ranking: IntArray, relevant: BoolArray, k: int) -> float:
    """Return the share of relevant rows among the first k of the ranking; NaN when there are none to look at.

    Args:
        ranking: int64 [n], best first.
        relevant: bool [N].
        k: places looked at; a shorter ranking is looked at whole.
    """
    first = _hits(ranking, relevant)[:k]
    return float(first.mean()) if first.size else math.nan


def recall_at_k(ranking: IntArray, relevant: BoolArray, k: int) -> float:
    """Return the share of the relevant rows that are among the first k; NaN when none is relevant."""
    hits = _hits(ranking, relevant)
    return float(hits[:k].sum() / hits.sum()) if hits.any() else math.nan


def average_precision(ranking: IntArray, relevant: BoolArray) -> float:
    """Return the mean of the precision at each relevant row of the ranking; NaN when none is relevant."""
    hits = _hits(ranking, relevant)
    if not hits.any():
        return math.nan
    places = np.flatnonzero(hits)
    return float(np.mean(np.arange(1, places.size + 1) / (places + 1)))


def base_rate(ranking: IntArray, relevant: BoolArray) -> float:
    """Return the share of relevant rows in the whole ranking: the precision of a random order, exactly."""
    hits = _hits(ranking, relevant)
    return float(hits.mean()) if hits.size else math.nan


def lift_at_k(ranking: IntArray, relevant: BoolArray, k: int) -> float:
    """Return precision at k divided by the base rate; 1 is as good as chance, NaN when none is relevant."""
    rate = base_rate(ranking, relevant)
    return precision_at_k(ranking, relevant, k) / rate if rate > 0 else math.nan


def random_average_precision(rows: int, relevant: int) -> float:
    """Return the expected average precision of a random order, exactly.

    With n rows, R of them relevant and H_n the n-th harmonic number, the expectation over permutations is
    (H_n + (R − 1)/(n − 1) · (n − H_n)) / n: a relevant row at place i sees (i − 1)(R − 1)/(n − 1) others
    before it.

    Args:
        rows: n ≥ 1.
        relevant: R in 0..n; 0 gives NaN.

    Raises:
        ValueError: counts out of range.
    """
    if rows < 1 or not 0 <= relevant <= rows:
        raise ValueError(f"need 0 <= relevant <= rows and rows >= 1, got {relevant} and {rows}")
    if relevant == 0:
        return math.nan
    if rows == 1:
        return 1.0
    harmonic = math.fsum((1.0 / np.arange(1, rows + 1)).tolist())
    return (harmonic + (relevant - 1) / (rows - 1) * (rows - harmonic)) / rows


def domain_distribution(labels: Sequence[Any], indices: IntArray) -> dict[str, dict[str, float]]:
    """Count the labels of the selected rows.

    Args:
        labels: N labels.
        indices: selected rows.

    Returns:
        label → {"count", "share" of the selection, "corpus_share", "lift"}, most frequent first, then by
        name; labels that were not selected are listed with 0.
    """
    names, codes = np.unique([str(label) for label in labels], return_inverse=True)
    rows = np.asarray(indices, dtype=np.int64)
    return distribution(names.tolist(), np.bincount(codes, minlength=names.size), codes[rows])


def distribution(
    names: Sequence[str], totals: IntArray, chosen: NDArray[np.integer[Any]]
) -> dict[str, dict[str, float]]:
    """Count the labels of the selected rows, as ``domain_distribution`` does.

    Args:
        names: the labels that occur.
        totals: how often each does.
        chosen: of each selected row, the place of its label among ``names``.
    """
    rows, selected = int(totals.sum()), chosen.size
    counts = np.bincount(chosen, minlength=len(names)).tolist()
    table: dict[str, dict[str, float]] = {}
    for name, total, count in sorted(
        zip(names, totals.tolist(), counts, strict=True), key=lambda line: (-line[2], line[0])
    ):
        share = count / selected if selected else 0.0
        corpus_share = total / rows
        table[name] = {
            "count": count,
            "share": share,
            "corpus_share": corpus_share,
            "lift": share / corpus_share,
        }
    return table


def spearman(first: FloatArray, second: FloatArray) -> float | None:
    """Return Spearman's rank correlation, ties by average ranks; None when a side is constant or short."""
    if len(first) != len(second):
        raise ValueError(f"need two sequences of one length, got {len(first)} and {len(second)}")
    if len(first) < 2:
        return None
    left, right = _average_ranks(first), _average_ranks(second)
    left, right = left - left.mean(), right - right.mean()
    scale = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / scale if scale > 0 else None


def _average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[group])

"""Methods × metrics with intervals on a labelled corpus: the honest table of every report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation.baselines import DenseBaseline, TfidfBaseline, length_scores, random_scores, z_add
from finescope.curation.blocks import BoolArray, Codes, FloatArray, IntArray, resident_codes
from finescope.curation.bootstrap import Interval, percentile_interval, resample
from finescope.curation.metrics import (
    average_precision,
    base_rate,
    precision_at_k,
    random_average_precision,
    recall_at_k,
)
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import PRESETS
from finescope.curation.scoring.table import rank_rows
from finescope.errors import InputError

Method = Callable[[IntArray], FloatArray]
"""Scores [N] from the positions of the targets to use (with repeats when resampling)."""


@dataclass
class MethodResult:
    """One line of the table.

    Attributes:
        name: the method.
        summary: what it does, in words.
        metrics: ``average_precision``, ``precision@k``, ``recall@k`` and ``lift@k`` for each k, with
            intervals.
        intervals: what the intervals are over.
    """

    name: str
    summary: str
    metrics: dict[str, Interval] = field(default_factory=dict)
    intervals: str = "bootstrap over targets"

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


def repool(codes: SparseCodes, stored: str, wanted: str) -> SparseCodes:
    """Return document codes as if pooled another way: mean and sqrt_mean are each other's square and root.

    Keeping the M strongest latents commutes with the root, so only the rounding of the stored values differs.

    Raises:
        ValueError: the two poolings are not related in this way.
    """
    if stored == wanted:
        return codes
    values = codes.values.to(torch.float32 if codes.values.dtype != torch.float64 else torch.float64)
    if (stored, wanted) == ("sqrt_mean", "mean"):
        values = values.square()
    elif (stored, wanted) == ("mean", "sqrt_mean"):
        values = values.sqrt()
    else:
        raise ValueError(
            f"codes pooled by {stored} can't be turned into {wanted}; embed again with that pooling"
        )
    return SparseCodes(codes.indptr, codes.indices, values, codes.num_latents, check=False)


def code_methods(
    targets: SparseCodes, corpus: Codes, pooling: str, presets: Sequence[str]
) -> dict[str, tuple[str, Method]]:
    """Return the scoring function of each preset that the stored pooling allows."""
    methods: dict[str, tuple[str, Method]] = {}
    resident = resident_codes(corpus)
    for name in presets:
        preset = PRESETS[name]
        try:
            rows, seeds = repool(resident, pooling, preset.pooling), repool(targets, pooling, preset.pooling)
        except ValueError:
            continue  # this pooling can't be derived from the stored codes; the table has no such line
        prepared = CorpusScorer(rows, weights=preset.weights)

        def score(
            picked: IntArray, prepared: Any = prepared, seeds: Any = seeds, kind: str = preset.scorer
        ) -> FloatArray:
            return np.asarray(prepared.score(seeds[picked], kind).score)

        methods[f"codes: {name}"] = (preset.summary, score)
    return methods


def compare_methods(
    relevant: Any,
    *,
    targets: SparseCodes,
    corpus: Codes,
    pooling: str,
    presets: Sequence[str] = ("default", "paper"),
    texts: Sequence[str] | None = None,
    target_texts: Sequence[str] | None = None,
    dense: Any = None,
    target_dense: Any = None,
    lengths: Any = None,
    exclude: Any = None,
    extra: Mapping[str, tuple[str, Method]] | None = None,
    at: Sequence[int] = (10, 100),
    draws: int = 50,
    seed: int = 42,
) -> list[MethodResult]:
    """Rank a labelled corpus by every method and measure the rankings.

    All methods rank the same rows: those that are not excluded and hold at least one latent. Intervals are
    percentile intervals over targets drawn with replacement; for random orders they are over orders. Random's
    own values are exact expectations. Length does not depend on targets and has no interval.

    Args:
        relevant: bool [N], rows of the target domain (labels == the targets' label).
        targets: codes of T targets; corpus: codes of N rows.
        pooling: how both were pooled; presets whose pooling can't be derived from it are left out.
        presets: presets to measure.
        texts, target_texts: for the TF-IDF baselines; left out when missing.
        dense, target_dense: [N,D] and [T,D] mean-pooled activations, for the dense baselines; left out when
            missing.
        lengths: numbers [N] for the length baseline; taken from ``texts`` in characters when missing.
        exclude: bool [N], rows that are targets.
        extra: further methods by name: (summary, function of target positions returning scores [N]).
        at: the k of precision, recall and lift.
        draws: resamples per method; 0 leaves intervals without width.
        seed: of all resampling.

    Returns:
        One result per method, in order of average precision, best first, random wherever it falls.

    Raises:
        InputError: no relevant row is left to be found.
        ValueError: an array of the wrong length.
    """
    truth = np.asarray(relevant, dtype=np.bool_)
    resident = resident_codes(corpus)
    n, count = len(resident), len(targets)
    for name, values, length in (
        ("relevant", truth, n),
        ("exclude", exclude, n),
        ("texts", texts, n),
        ("lengths", lengths, n),
        ("dense", dense, n),
        ("target_texts", target_texts, count),
        ("target_dense", target_dense, count),
    ):
        if values is not None and len(values) != length:
            raise ValueError(f"{name} has {len(values)} entries, expected {length}")
    eligible = np.diff(resident.indptr.numpy()) > 0
    if exclude is not None:
        eligible &= ~np.asarray(exclude, dtype=np.bool_)
    if not (truth & eligible).any():
        raise InputError(
            "no row of the target domain is left to be found; check the labels and the excluded rows"
        )

    methods = code_methods(targets, resident, pooling, presets)
    if texts is not None and target_texts is not None:
        tfidf = TfidfBaseline(texts, target_texts)
        methods["TF-IDF, max cosine"] = ("TF-IDF words, best cosine over targets", tfidf.max_cosine)
        methods["TF-IDF, contrast"] = ("TF-IDF words, mean of targets minus mean of corpus", tfidf.contrast)
        if "codes: default" in methods:
            codes_score = methods["codes: default"][1]
            methods["codes: default + TF-IDF"] = (
                "standardised scores of both, added",
                lambda picked: z_add(codes_score(picked), tfidf.contrast(picked)),
            )
    if dense is not None and target_dense is not None:
        activations = DenseBaseline(dense, target_dense)
        methods["dense, max cosine"] = (
            "mean-pooled activations, best cosine over targets",
            activations.max_cosine,
        )
        methods["dense, centred mean"] = (
            "mean-pooled activations minus corpus mean, mean cosine",
            activations.centred_mean,
        )
    methods.update(extra or {})
    samples = resample(count, draws, seed)
    results = []
    for name, (summary, score) in methods.items():
        value = _measure(score(np.arange(count)), truth, eligible, at)
        spread = [_measure(score(picked), truth, eligible, at) for picked in samples]
        results.append(MethodResult(name, summary, _intervals(value, spread)))
    if lengths is None and texts is not None:
        lengths = [len(text) for text in texts]
    if lengths is not None:
        value = _measure(length_scores(lengths), truth, eligible, at)
        results.append(
            MethodResult("length", "longest first", _intervals(value, []), "none: needs no targets")
        )
    results.append(_random_result(truth, eligible, at, draws, seed))
    return sorted(results, key=lambda item: -item.metrics["average_precision"].value)


def _measure(score: FloatArray, truth: BoolArray, eligible: BoolArray, at: Sequence[int]) -> dict[str, float]:
    ranking = rank_rows(score, eligible)
    rate = base_rate(ranking, truth)
    found = {"average_precision": average_precision(ranking, truth)}
    for k in at:
        precision = precision_at_k(ranking, truth, k)
        found[f"precision@{k}"] = precision
        found[f"recall@{k}"] = recall_at_k(ranking, truth, k)
        found[f"lift@{k}"] = precision / rate
    return found


def _intervals(value: Mapping[str, float], spread: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    return {
        name: percentile_interval(number, [one[name] for one in spread]) for name, number in value.items()
    }


def _random_result(
    truth: BoolArray, eligible: BoolArray, at: Sequence[int], draws: int, seed: int
) -> MethodResult:
    rows, relevant = int(eligible.sum()), int((truth & eligible).sum())
    value = {"average_precision": random_average_precision(rows, relevant)}
    for k in at:
        value[f"precision@{k}"] = relevant / rows
        value[f"recall@{k}"] = min(k, rows) / rows
        value[f"lift@{k}"] = 1.0
    spread = [_measure(random_scores(truth.size, seed + draw), truth, eligible, at) for draw in range(draws)]
    return MethodResult(
        "random", "a random order; exact expectation", _intervals(value, spread), "random orders"
    )


def average_results(
    tables: Sequence[Sequence[MethodResult]], *, draws: int = 1000, seed: int = 42
) -> list[MethodResult]:
    """Average the tables of several target domains, with intervals from resampling the domains.

    Args:
        tables: one result of ``compare_methods`` per domain; methods missing in any are left out.
        draws: resamples of domains.
        seed: of the resamples.

    Raises:
        ValueError: no tables.
    """
    if not tables:
        raise ValueError("average_results needs at least one table")
    shared = set.intersection(*({item.name for item in table} for table in tables))
    samples = resample(len(tables), draws, seed)
    results = []
    for first in tables[0]:
        if first.name not in shared:
            continue
        lines = [next(item for item in table if item.name == first.name) for table in tables]
        metrics = {}
        for name in first.metrics:
            values = np.asarray([line.metrics[name].value for line in lines])
            metrics[name] = percentile_interval(
                float(values.mean()), [float(values[rows].mean()) for rows in samples]
            )
        results.append(
            MethodResult(first.name, first.summary, metrics, f"bootstrap over {len(tables)} domains")
        )
    return sorted(results, key=lambda item: -item.metrics["average_precision"].value)

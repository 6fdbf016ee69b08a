"""Numbers about a selection: its quality by itself, and against labels beside every baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.compare import METHODS, MethodResult, compare_methods
from finescope.curation.metrics import (
    METRICS_VERSION,
    distribution,
    spearman,
)
from finescope.curation.orderstats import quantiles
from finescope.curation.quality import curation_quality
from finescope.storage.files import write_json
from finescope.workflow.layout import CORPUS_CODES, METRICS, SCORES, SELECTION, TARGET_CODES
from finescope.workflow.scored import Scored
from finescope.workflow.stage import Stage
from finescope.workflow.tables import read_selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.curation.scoring.presets import Preset
    from finescope.curation.selected import Selection
    from finescope.workflow.context import Context
    from finescope.workflow.job import Job
    from finescope.workflow.labels import Labels

NEEDS_LABELS = ("average precision", "precision@k", "recall@k", "lift over random", "label distribution")
"""What can't be measured without labels."""
SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Quantiles of the scores that are measured."""
MOST_RANKED = 1_000_000
"""Rows at most whose lengths and scores are ranked."""


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measures the selection, against labels where there are any."""

    name = "evaluate"
    reads = (SCORES, SELECTION, CORPUS_CODES, TARGET_CODES, "corpus", "targets")
    writes = (METRICS,)

    def work(self, context: Context) -> None:
        """Measure, and write the metrics."""
        job, labels = context.job, context.labels
        scored = context.scored()
        selection = read_selection(context.folder / SELECTION)
        metrics = base_metrics(scored, selection.indices)
        metrics["dropped"] = {name: count for name, count in selection.counts.items() if name != "selected"}
        metrics["quality"] = curation_quality(
            context.scoring.targets,
            context.scoring.space,
            selection.indices,
            seed=job.seed,
        )
        metrics["quality"]["length_bias"] = length_bias_of(scored, selection.indices, seed=job.seed)
        if labels is None:
            metrics["needs_labels"] = list(NEEDS_LABELS)
        else:
            metrics["labels"] = label_metrics(labels, scored, selection.indices)
            lines = _compare(context, labels, scored, selection)
            metrics["labels"]["methods"] = [line.to_dict() for line in lines]
        write_json(context.folder / METRICS, metrics)


def _compare(context: Context, labels: Labels, scored: Scored, selection: Selection) -> list[MethodResult]:
    with context.reporter.task("comparing with baselines", None, "methods") as task:
        lines = compare_methods(
            labels.relevant,
            context.scoring.spaces,
            context.seeds,
            methods=methods_of(context.job),
            exclude=scored.is_target,
            at=sorted({10, max(1, len(selection))}),
            draws=context.job.draws,
            seed=context.job.seed,
        )
        task.update(len(lines))
    return lines


def methods_of(job: Job) -> tuple[str | Preset, ...]:
    """Return what a job's recipe is compared with, and itself where it is none of them."""
    recipe = job.recipe()
    # The supplement ranks as the paper does; only its selection differs.
    return METHODS if recipe.name in (*METHODS, "supplement") else (recipe, *METHODS)


def label_metrics(labels: Labels, scored: Scored, selected: NDArray[np.int64]) -> dict[str, Any]:
    """Measure the selected rows against the labels. Target rows count neither as found nor as missed.

    Args:
        labels: of the N rows.
        scored: their scores.
        selected: int64 [R], rows that are valid and no targets.
    """
    names = labels.names
    codes = names.codes(selected)
    found = int(np.isin(codes, [at for at, name in enumerate(names.names) if name in labels.targets]).sum())
    relevant = 0
    for first, block in scored.blocks("valid", "is_target"):
        findable = block["valid"] & ~block["is_target"]
        relevant += int(np.count_nonzero(findable & labels.relevant_in(first, len(findable))))
    return {
        "column": labels.column,
        "target_labels": labels.targets,
        "relevant_rows": relevant,
        "selected_precision": found / len(selected) if len(selected) else None,
        "selected_recall": found / relevant if relevant else None,
        "distribution": distribution(names.names, names.counts(), codes),
    }


def base_metrics(scored: Scored, selected: NDArray[np.int64]) -> dict[str, Any]:
    """Return counts and the score distribution: what every metrics file starts with."""

    def scores() -> Iterator[NDArray[np.float64]]:
        for _, block in scored.blocks("score", "valid"):
            yield block["score"][block["valid"]]

    lowest = scored.lowest(selected)
    valid = sum(int(np.count_nonzero(block)) for block in scored.valid_blocks())
    found = scored.targets_in_corpus
    return {
        "metrics_version": METRICS_VERSION,
        "rows": len(scored),
        "rows_without_code": len(scored) - valid,
        "targets": len(scored.target_ids),
        "targets_in_corpus": sum(
            int(np.count_nonzero(block["is_target"])) for _, block in scored.blocks("is_target")
        ),
        "targets_found": found,
        "selected": len(selected),
        "lowest_selected_score": None if lowest is None else _number(lowest),
        "score_quantiles": {
            f"{share:g}": _number(float(value))
            for share, value in zip(SHARES, quantiles(scores, SHARES), strict=True)
        },
    }


def length_bias_of(scored: Scored, selected: NDArray[np.int64], *, seed: int = 42) -> dict[str, float | None]:
    """Return how much the scores prefer long rows, as ``length_bias`` does of all of them.

    Ranks are correlated of ``MOST_RANKED`` rows drawn by the seed where there are more.
    """
    rows = np.arange(len(scored))
    if len(scored) > MOST_RANKED:
        rows = np.sort(np.random.default_rng(seed).choice(len(scored), MOST_RANKED, replace=False))
    score, tokens, total = [np.zeros(0)], [np.zeros(0, np.int64)], 0
    chosen, of_chosen = np.sort(selected), 0
    for first, block in scored.blocks("score", "tokens"):
        ends = [first, first + len(block["score"])]
        low, high = np.searchsorted(rows, ends)
        score.append(block["score"][rows[low:high] - first])
        tokens.append(block["tokens"][rows[low:high] - first])
        low, high = np.searchsorted(chosen, ends)
        of_chosen += int(block["tokens"][chosen[low:high] - first].sum())
        total += int(block["tokens"].sum())
    mean = total / len(scored)
    return {
        "spearman": spearman(np.concatenate(score), np.concatenate(tokens).astype(np.float64)),
        "mean_length_ratio": of_chosen / chosen.size / mean if chosen.size and total > 0 else None,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

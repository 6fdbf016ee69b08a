"""Numbers about a selection: its quality by itself, and against labels beside every baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.compare import METHODS, MethodResult, compare_methods
from finescope.curation.metrics import METRICS_VERSION, domain_distribution, precision_at_k, recall_at_k
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
            score=scored.table.score,
            lengths=scored.tokens,
            seed=job.seed,
        )
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
    """Measure the selected rows against the labels. Target rows count neither as found nor as missed."""
    relevant = labels.relevant
    findable = relevant & ~scored.is_target & scored.table.valid
    ranking = np.concatenate([selected, np.setdiff1d(scored.table.ranking(), selected)])
    ranking = ranking[~scored.is_target[ranking]]
    return {
        "column": labels.column,
        "target_labels": labels.targets,
        "relevant_rows": int(findable.sum()),
        "selected_precision": _number(precision_at_k(selected, relevant, len(selected))),
        "selected_recall": _number(recall_at_k(ranking, relevant, len(selected))),
        "distribution": domain_distribution(labels.names, selected),
    }


def base_metrics(scored: Scored, selected: NDArray[np.int64]) -> dict[str, Any]:
    """Return counts and the score distribution: what every metrics file starts with."""
    table = scored.table
    finite = table.score[table.valid]
    quantiles = np.quantile(finite, [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1]) if finite.size else np.full(7, np.nan)
    return {
        "metrics_version": METRICS_VERSION,
        "rows": len(table),
        "rows_without_code": int((~table.valid).sum()),
        "targets": len(scored.target_ids),
        "targets_in_corpus": int(scored.is_target.sum()),
        "targets_found": scored.targets_in_corpus,
        "selected": len(selected),
        "lowest_selected_score": _number(float(table.score[selected].min())) if len(selected) else None,
        "score_quantiles": {
            name: _number(float(value))
            for name, value in zip(("0", "0.01", "0.1", "0.5", "0.9", "0.99", "1"), quantiles, strict=True)
        },
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

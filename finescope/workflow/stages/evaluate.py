"""Numbers about a selection: its quality by itself, and against labels beside every baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import resident_codes
from finescope.curation.compare import MethodResult, compare_methods
from finescope.curation.metrics import METRICS_VERSION, domain_distribution, precision_at_k, recall_at_k
from finescope.curation.quality import curation_quality
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import PRESETS
from finescope.storage.files import write_json
from finescope.workflow.layout import CORPUS_CODES, METRICS, SCORES, SELECTION, TARGET_CODES
from finescope.workflow.stage import Stage
from finescope.workflow.tables import ScoredRows, read_scores, read_selection

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.corpus import Corpus
    from finescope.curation.selection import Selection
    from finescope.workflow.context import Context
    from finescope.workflow.job import Job
    from finescope.workflow.labels import Labels

NEEDS_LABELS = ("average precision", "precision@k", "recall@k", "lift over random", "label distribution")
"""What can't be measured without labels."""
MAX_TFIDF_ROWS = 300_000
"""Corpora with more rows are not given to the TF-IDF baseline, which holds all texts in memory."""


@dataclass(frozen=True)
class Evaluate(Stage):
    """Measures the selection, against labels where there are any."""

    name = "evaluate"
    reads = (SCORES, SELECTION, CORPUS_CODES, TARGET_CODES, "corpus", "targets")
    writes = (METRICS,)

    def work(self, context: Context) -> None:
        """Measure, and write the metrics."""
        job, labels = context.job, context.labels
        scored = read_scores(context.folder / SCORES)
        selection = read_selection(context.folder / SELECTION)
        prepared, targets = context.prepared
        metrics = base_metrics(scored, selection.indices)
        metrics["dropped"] = {name: count for name, count in selection.counts.items() if name != "selected"}
        metrics["quality"] = curation_quality(
            targets,
            prepared.corpus,
            selection.indices,
            weights=prepared.weights,
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


def _compare(
    context: Context, labels: Labels, scored: ScoredRows, selection: Selection
) -> list[MethodResult]:
    prepared, targets = context.prepared
    few = len(scored.table) <= MAX_TFIDF_ROWS
    with context.reporter.task("comparing with baselines", None, "methods") as task:
        lines = method_table(
            context.job,
            Compared(
                resident_codes(prepared.corpus),
                context.store(CORPUS_CODES).dense(),
                _texts(context.corpus) if few else None,
                scored.tokens,
            ),
            Compared(
                targets,
                context.store(TARGET_CODES).dense(),
                _texts(context.targets) if few else None,
            ),
            labels.relevant,
            exclude=scored.is_target,
            at=sorted({10, max(1, len(selection))}),
            draws=context.job.draws,
        )
        task.update(len(lines))
    return lines


def _texts(rows: Corpus) -> list[str]:
    return [row.content for row in rows.rows(records=False)]


@dataclass(frozen=True)
class Compared:
    """Rows as the compared methods see them: corpus or targets.

    Attributes:
        codes: their codes, pooled as the job's recipe wants.
        dense: their mean-pooled activations.
        texts: their texts; None leaves TF-IDF out.
        tokens: how long they are; of the corpus only.
    """

    codes: SparseCodes
    dense: Any
    texts: Sequence[str] | None
    tokens: NDArray[np.int64] | None = None


def method_table(
    job: Job,
    corpus: Compared,
    targets: Compared,
    relevant: NDArray[np.bool_],
    *,
    exclude: NDArray[np.bool_],
    at: Sequence[int],
    draws: int,
) -> list[MethodResult]:
    """Measure the job's recipe, the presets and all baselines on the labelled corpus.

    Args:
        job: recipe and seed.
        corpus: N rows.
        targets: T rows.
        relevant: bool [N], rows of the target domain.
        exclude: bool [N], rows that are targets.
        at: the k of precision, recall and lift.
        draws: bootstrap resamples of the targets.
    """
    recipe = job.recipe()
    extra = None
    if recipe.name not in PRESETS:
        prepared = CorpusScorer(corpus.codes, weights=recipe.weights)

        def own(picked: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.asarray(prepared.score(targets.codes[picked], recipe.scorer, m=job.top_m).score)

        extra = {f"codes: {recipe.name}": (recipe.summary, own)}
    return compare_methods(
        relevant,
        targets=targets.codes,
        corpus=corpus.codes,
        pooling=recipe.pooling,
        # The supplement ranks as the paper does; only its selection differs.
        presets=[name for name in PRESETS if name != "supplement"],
        texts=corpus.texts,
        target_texts=targets.texts,
        dense=corpus.dense,
        target_dense=targets.dense,
        lengths=corpus.tokens,
        exclude=exclude,
        extra=extra,
        at=at,
        draws=draws,
        seed=job.seed,
    )


def label_metrics(labels: Labels, scored: ScoredRows, selected: NDArray[np.int64]) -> dict[str, Any]:
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


def base_metrics(scored: ScoredRows, selected: NDArray[np.int64]) -> dict[str, Any]:
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
        "selected": len(selected),
        "lowest_selected_score": _number(float(table.score[selected].min())) if len(selected) else None,
        "score_quantiles": {
            name: _number(float(value))
            for name, value in zip(("0", "0.01", "0.1", "0.5", "0.9", "0.99", "1"), quantiles, strict=True)
        },
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

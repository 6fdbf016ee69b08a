"""Numbers about a selection: its quality by itself, and against labels beside every baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.compare import MethodResult, compare_methods
from finescope.curation.metrics import METRICS_VERSION, domain_distribution, precision_at_k, recall_at_k
from finescope.curation.quality import curation_quality
from finescope.curation.scoring.presets import PRESETS, Preset
from finescope.curation.scoring.scorers import CorpusScorer
from finescope.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.corpus import Corpus
    from finescope.workflow.tables import ScoredRows

NEEDS_LABELS = ("average precision", "precision@k", "recall@k", "lift over random", "label distribution")
"""What can't be measured without labels."""
MAX_TFIDF_ROWS = 300_000
"""Corpora with more rows are not given to the TF-IDF baseline, which holds all texts in memory."""


@dataclass
class Labels:
    """Labels of the corpus rows and which of them are the target domain.

    Attributes:
        column: where they come from.
        names: N labels; "" for rows without one.
        targets: the labels that count as the target domain.
    """

    column: str
    names: list[str]
    targets: list[str]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """bool [N], rows of the target domain."""
        wanted = set(self.targets)
        return np.fromiter((name in wanted for name in self.names), np.bool_, len(self.names))


def read_labels(corpus: Corpus, targets: Corpus, column: str, target_labels: Sequence[str]) -> Labels:
    """Read the labels of all corpus rows, and those of the targets unless they are given.

    Raises:
        InputError: no row has the column, the targets have no label and none was given, or no corpus row
        carries a
            target label.
    """
    names: list[str] = []
    columns: set[str] = set()
    for row in corpus.rows():
        columns.update(row.record)
        value = row.record.get(column)
        names.append("" if value is None else str(value))
    if column not in columns:
        raise InputError(
            f"{corpus.name} has no column {column!r} to take labels from; there are "
            f"{', '.join(sorted(columns))}"
        )
    wanted = [str(label) for label in target_labels]
    if not wanted:
        found = (row.record.get(column) for row in targets.rows())
        wanted = sorted({str(label) for label in found if label is not None})
        if not wanted:
            raise InputError(
                f"the targets ({targets.name}) have no column {column!r}; name the target domain's labels "
                "with "
                "--target-label"
            )
    known = set(names)
    missing = [label for label in wanted if label not in known]
    if len(missing) == len(wanted):
        common = ", ".join(name for name, _ in Counter(filter(None, names)).most_common(8))
        raise InputError(
            f"no row of {corpus.name} has the label {missing[0]!r} in column {column!r}; the most frequent "
            f"are {common}"
        )
    return Labels(column, names, wanted)


def selection_metrics(
    scored: ScoredRows,
    selected: NDArray[np.int64],
    targets: SparseCodes,
    prepared: CorpusScorer,
    *,
    lengths: NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    """Measure a selection without labels, in the weighted space; see ``curation_quality``."""
    return curation_quality(
        targets,
        prepared.corpus,
        selected,
        weights=prepared.weights,
        score=scored.table.score,
        lengths=lengths,
        seed=seed,
    )


def method_table(
    labels: Labels,
    scored: ScoredRows,
    targets: SparseCodes,
    corpus: SparseCodes,
    recipe: Preset,
    pooling: str,
    *,
    texts: Sequence[str] | None,
    target_texts: Sequence[str] | None,
    dense: Any,
    target_dense: Any,
    top_m: int,
    at: Sequence[int],
    draws: int,
    seed: int,
) -> list[MethodResult]:
    """Measure the run's recipe, the presets and all baselines on the labelled corpus."""
    extra = None
    if recipe.name not in PRESETS:
        prepared = CorpusScorer(corpus, weights=recipe.weights)

        def own(picked: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.asarray(prepared.score(targets[picked], recipe.scorer, m=top_m).score)

        extra = {f"codes: {recipe.name}": (recipe.summary, own)}
    presets = [
        name for name in PRESETS if name != "supplement"
    ]  # it ranks as "paper" does; only its selection differs
    if texts is not None and len(texts) > MAX_TFIDF_ROWS:
        texts = target_texts = None
    return compare_methods(
        labels.relevant,
        targets=targets,
        corpus=corpus,
        pooling=pooling,
        presets=presets,
        texts=texts,
        target_texts=target_texts,
        dense=dense,
        target_dense=target_dense,
        lengths=scored.tokens,
        exclude=scored.is_target,
        extra=extra,
        at=at,
        draws=draws,
        seed=seed,
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

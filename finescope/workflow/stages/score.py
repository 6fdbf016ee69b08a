"""Scoring the corpus from saved codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.exclusion import is_target
from finescope.errors import InputError
from finescope.workflow.layout import CORPUS_CODES, SCORES, TARGET_CODES
from finescope.workflow.stage import Stage
from finescope.workflow.tables import ScoredRows, prepare, write_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.curation.scoring.onepass import CorpusScorer
    from finescope.curation.scoring.presets import Preset
    from finescope.embeddings.store import CodeStore
    from finescope.workflow.context import Context


@dataclass(frozen=True)
class Score(Stage):
    """Scores every row of the corpus against the targets."""

    name = "score"
    reads = (CORPUS_CODES, TARGET_CODES, "corpus", "targets")
    writes = (SCORES,)

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the codes and the recipe."""
        recipe = context.job.recipe()
        return {
            "corpus": context.ledger.key("embed-corpus"),
            "targets": context.ledger.key("embed-targets"),
            "weights": recipe.weights,
            "scorer": recipe.scorer,
            "pooling": recipe.pooling,
            "top_m": context.job.top_m,
        }

    def work(self, context: Context) -> None:
        """Score, mark the rows that are targets, and write the table."""
        corpus, wanted = context.store(CORPUS_CODES), context.store(TARGET_CODES)
        prepared, targets = context.prepared
        marked = is_target(
            corpus.ids(),
            wanted.ids() if _own_ids(context) else (),
            (row.content for row in context.corpus.rows(records=False)),
            [row.content for row in context.targets.rows(records=False)],
        )
        scored = score_stores(
            corpus,
            wanted,
            context.job.recipe(),
            top_m=context.job.top_m,
            is_target=marked,
            prepared=prepared,
            target_codes=targets,
        )
        write_scores(context.folder / SCORES, scored)


def _own_ids(context: Context) -> bool:
    """Whether the targets' ids were given: generated ones must not make rows look like targets."""
    return any(context.job.id_column in row.record for row in context.targets.rows())


def score_stores(
    corpus: CodeStore,
    targets: CodeStore,
    recipe: Preset,
    *,
    top_m: int,
    is_target: NDArray[np.bool_] | None = None,
    prepared: CorpusScorer | None = None,
    target_codes: SparseCodes | None = None,
) -> ScoredRows:
    """Score the rows of one code store against those of another.

    Args:
        corpus: codes of N rows.
        targets: codes of Q targets, made by the same SAE.
        recipe: pooling, weighting and scorer.
        top_m: of the scorer ``top_m_mean``.
        is_target: bool [N]; None marks the rows whose id is that of a target, unless the targets' ids were
            made up.
        prepared: the corpus prepared for this recipe, when there is one already.
        target_codes: the targets pooled as the recipe wants; goes with ``prepared``.

    Raises:
        InputError: the two stores come from different SAEs, or the targets have no latent.
    """
    if corpus.num_latents != targets.num_latents:
        raise InputError(
            f"{corpus.directory} has codes over {corpus.num_latents:,} latents and {targets.directory} over "
            f"{targets.num_latents:,}; embed both with the same SAE"
        )
    if prepared is None or target_codes is None:
        prepared, target_codes = prepare(corpus, targets, recipe)
    ids, target_ids = corpus.ids(), targets.ids()
    table = prepared.score(target_codes, recipe.scorer, m=top_m)
    if is_target is None:
        # Made-up ids say nothing: two files of one name have the same ones.
        known = set(target_ids) if targets.facts.get("own_ids", True) else set()
        is_target = np.fromiter((row in known for row in ids), np.bool_, len(ids))
    settings = {
        "preset": recipe.name,
        "pooling": recipe.pooling,
        "weights": recipe.weights,
        "scorer": recipe.scorer,
        "top_m": top_m,
    }
    return ScoredRows(table, ids, target_ids, corpus.token_counts(), is_target, settings)

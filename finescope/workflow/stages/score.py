"""Scoring the corpus from saved codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finescope.curation.exclusion import find_targets
from finescope.curation.scoring.fitted import Scoring
from finescope.curation.scoring.scorers import Random
from finescope.curation.scoring.sums import parse_scorer
from finescope.errors import InputError
from finescope.storage.files import write_tensors
from finescope.workflow.layout import CORPUS_CODES, SCORER, SCORES, TARGET_CODES
from finescope.workflow.stage import Stage
from finescope.workflow.tables import ScoredRows, write_scores

if TYPE_CHECKING:
    from finescope.curation.scoring.table import ScoreTable
    from finescope.embeddings.store import CodeStore
    from finescope.workflow.context import Context


@dataclass(frozen=True)
class Score(Stage):
    """Scores every row of the corpus against the targets."""

    name = "score"
    reads = (CORPUS_CODES, TARGET_CODES)
    writes = (SCORES, SCORER)

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the codes and the recipe; the seed where it decides the order."""
        recipe = context.job.recipe()
        drawn = any(isinstance(term, Random) for _, term in parse_scorer(recipe.scorer).terms)
        return {
            "corpus": context.ledger.key("embed-corpus"),
            "targets": context.ledger.key("embed-targets"),
            "weights": recipe.weights,
            "scorer": recipe.scorer,
            "pooling": recipe.pooling,
            "top_m": context.job.top_m,
            **({"seed": context.job.seed} if drawn else {}),
        }

    def work(self, context: Context) -> None:
        """Score, mark the rows that are targets, and write the table and what the scorer has learned."""
        corpus, wanted = context.store(CORPUS_CODES), context.store(TARGET_CODES)
        scoring = Scoring(context.evidence, context.seeds, context.job.recipe(), seed=context.job.seed)
        scored = score_stores(corpus, wanted, scoring)
        write_scores(context.folder / SCORES, scored)
        write_tensors(context.folder / SCORER, scoring.state(), {"scorer": scoring.scorer.name})


def score_stores(corpus: CodeStore, targets: CodeStore, scoring: Scoring) -> ScoredRows:
    """Score the rows of one code store against those of another, and mark those that are targets.

    Args:
        corpus: codes of N rows.
        targets: codes of Q targets, made by the same SAE.
        scoring: a recipe with what is known of both.

    Raises:
        InputError: the two stores come from different SAEs, the targets have no latent, or the stored pooling
            can't be turned into the recipe's.
    """
    check_latents(corpus, targets)
    try:
        table = scoring.score()
    except ValueError as error:
        raise InputError(f"{corpus.directory}: {error}") from None
    return marked(corpus, targets, scoring, table)


def check_latents(corpus: CodeStore, targets: CodeStore) -> None:
    """Refuse two stores that can't be compared.

    Raises:
        InputError: they come from different SAEs.
    """
    if corpus.num_latents != targets.num_latents:
        raise InputError(
            f"{corpus.directory} has codes over {corpus.num_latents:,} latents and {targets.directory} over "
            f"{targets.num_latents:,}; embed both with the same SAE"
        )
    if not same_sae(corpus, targets):
        raise InputError(
            f"{corpus.directory} and {targets.directory} hold codes of different SAEs; embed both with one"
        )


def same_sae(one: CodeStore, other: CodeStore) -> bool:
    """Return whether two stores are of one SAE, as far as they say of which they are."""
    saes = [store.fingerprint()["origin"].get("sae") for store in (one, other)]
    return None in saes or saes[0] == saes[1]


def marked(corpus: CodeStore, targets: CodeStore, scoring: Scoring, table: ScoreTable) -> ScoredRows:
    """Return scores with what identifies the rows, and which of them are targets."""
    known, target_ids = corpus.known("corpus"), targets.ids()
    # Made-up ids say nothing: two files of one name have the same ones.
    found = find_targets(
        known.ids,
        target_ids if targets.facts.get("own_ids", True) else (),
        hashes=corpus.text_hashes(),
        target_hashes=targets.text_hashes(),
    )
    recipe = scoring.recipe
    settings = {
        "preset": recipe.name,
        "pooling": recipe.pooling,
        "weights": recipe.weights,
        "scorer": scoring.scorer.name,
        "top_m": recipe.m,
        "targets": found.counts(),
    }
    tokens = corpus.token_counts()
    return ScoredRows(table, known.ids, target_ids, tokens, found.marked, settings, known.crc32)

"""Scoring the corpus from saved codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finescope.curation.exclusion import find_all_targets
from finescope.curation.scoring.base import FOLDS
from finescope.curation.scoring.fitted import Scores, Scoring, score_in_passes
from finescope.curation.scoring.ridge import Ridge
from finescope.curation.scoring.scorers import Random
from finescope.curation.scoring.sums import parse_scorer
from finescope.errors import InputError
from finescope.workflow.fresh import FreshScores
from finescope.workflow.layout import CORPUS_CODES, SCORER, SCORES, TARGET_CODES
from finescope.workflow.learned import HASH, changed, write_learned
from finescope.workflow.scored import ROWS
from finescope.workflow.stage import Stage
from finescope.workflow.tables import write_scores

if TYPE_CHECKING:
    from pathlib import Path

    from finescope.embeddings.store import CodeStore
    from finescope.workflow.context import Context


@dataclass(frozen=True)
class Score(Stage):
    """Scores every row of the corpus against the targets."""

    name = "score"
    reads = (CORPUS_CODES, TARGET_CODES)
    writes = (SCORES, SCORER)

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the codes and the recipe; the seed where it decides the order.

        Raises:
            InputError: the recipe wants another autoencoder than the run's.
        """
        recipe = context.job.recipe()
        if recipe.coordinates and not context.ledger.facts("train").get("coordinates"):
            raise InputError(
                f"{context.folder}: {recipe.name} needs an autoencoder that was trained for it, on "
                f"{recipe.coordinates} coordinates; run `finescope curate` with it into another folder"
            )
        terms = [term for _, term in parse_scorer(recipe.scorer).terms]
        drawn, folded = (any(isinstance(term, kind) for term in terms) for kind in (Random, Ridge))
        return {
            "corpus": context.ledger.key("embed-corpus"),
            "targets": context.ledger.key("embed-targets"),
            "weights": recipe.weights,
            "scorer": recipe.scorer,
            "pooling": recipe.pooling,
            "top_m": context.job.top_m,
            **({"coordinates": recipe.coordinates} if recipe.coordinates else {}),
            **({"seed": context.job.seed} if drawn else {}),
            **({"folds": FOLDS} if folded else {}),
        }

    def run(self, context: Context) -> bool:
        """Do the stage unless it was finished before with the same inputs; return whether it was done now."""
        forget_changed(context, {"": context.folder})
        return super().run(context)

    def work(self, context: Context) -> Mapping[str, Any]:
        """Score, mark the rows that are targets, and write the table and what the scorer has learned."""
        recipe = context.job.recipe()
        corpus, wanted = context.store(CORPUS_CODES), context.store(TARGET_CODES)
        scoring = Scoring(context.evidence, context.seeds, recipe, seed=context.job.seed)
        scored = score_stores(corpus, wanted, scoring)
        if scoring.remark:
            context.reporter.say(scoring.remark)
        write_scores(context.folder / SCORES, scored)
        return {HASH: write_learned(context.folder, scoring)}


def forget_changed(context: Context, folders: Mapping[str, Path]) -> None:
    """Remove what was learned where it was changed since, so that the corpus is scored again.

    Args:
        context: of the run.
        folders: where it lies, by the name of the target set.
    """
    facts = context.ledger.facts("score")
    for name, folder in folders.items():
        if changed(folder, facts, name):
            context.reporter.say(f"{folder / SCORER} was changed since the corpus was scored: scoring again")
            (folder / SCORER).unlink()


def score_stores(corpus: CodeStore, targets: CodeStore, scoring: Scoring) -> FreshScores:
    """Score the rows of one code store against those of another, and mark those that are targets.

    Args:
        corpus: codes of N rows.
        targets: codes of Q targets, made by the same SAE.
        scoring: a recipe with what is known of both.

    Raises:
        InputError: as ``check_comparable``, the targets have no latent, or the stored pooling can't be turned
            into the recipe's.
    """
    check_comparable(corpus, targets)
    try:
        (scores,) = score_in_passes([scoring])
    except ValueError as error:
        raise InputError(f"{corpus.directory}: {error}") from None
    return marked(corpus, [targets], [(scoring, scores)])[0]


_SHOWN = 64
"""Characters of two values that are shown, at most: not of hashes."""
_MADE = {
    "tap.model": ("models", "--model"),
    "tap.weights": ("weights of the model", "--model"),
    "tap.dtype": ("dtypes of the model", "--dtype"),
    "tap.activation_dtype": ("dtypes that activations were rounded to", "--activation-dtype"),
    "tap.layer": ("layers", "--layer"),
    "tap.tokenizer": ("tokenizers, or special tokens of theirs", "--model"),
    "tap.max_length": ("lengths of window", "--max-length"),
    "tap.stride": ("overlaps of windows", "--stride"),
    "tap.long": ("ways with long documents", "long="),
    "tap.exclude_special": ("ways with special tokens", "exclude_special="),
    "tap.rendering": ("ways to write out conversations", "--chat-template, --refused-chats"),
    "top_k": ("numbers of latents kept", "--top-k-activations"),
    "max_norm": ("limits of attention sinks", "--sinks, and sinks.json beside the SAE"),
}
"""What must have been the same when two stores were made, in words, and where it is set.

Poolings may differ: they are turned into that of the recipe. A model's configuration isn't compared: other
versions of its library write others.
"""


def check_comparable(corpus: CodeStore, targets: CodeStore) -> None:
    """Refuse two stores that can't be compared.

    Raises:
        InputError: they come from different SAEs, or were made with different settings; names them.
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
    found = [
        f"{words} ({option}){f': {one} and {other}' if len(one + other) < _SHOWN else ''}"
        for (words, option), (one, other) in _made_differently(corpus, targets)
    ]
    if found:
        raise InputError(
            f"{corpus.directory} and {targets.directory} can't be compared, they were made with different "
            f"{'; '.join(found)}; embed one of them again with what the other was made with"
        )


def _made_differently(one: CodeStore, other: CodeStore) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield what differs of ``_MADE``, as far as both stores say how they were made, and both values."""
    said = []
    for store in (one, other):
        origin = store.fingerprint()["origin"]
        tap = {f"tap.{name}": value for name, value in (origin.get("tap") or {}).items()}
        said.append({**tap, **origin})
    for name, words in _MADE.items():
        if all(name in each for each in said) and said[0][name] != said[1][name]:
            yield words, (str(said[0][name]), str(said[1][name]))


def same_sae(one: CodeStore, other: CodeStore) -> bool:
    """Return whether two stores are of one SAE, as far as they say of which they are."""
    saes = [store.fingerprint()["origin"].get("sae") for store in (one, other)]
    return None in saes or saes[0] == saes[1]


def marked(
    corpus: CodeStore, sets: Sequence[CodeStore], found: Sequence[tuple[Scoring, Scores]]
) -> list[FreshScores]:
    """Return the scores by each target set with what identifies the rows, and which are its targets."""
    target_ids = [targets.ids() for targets in sets]
    told = ((block["id"], block["text_hash"]) for block in corpus.table_blocks(["id", "text_hash"], ROWS))
    # Made-up ids say nothing: two files of one name have the same ones.
    among = find_all_targets(
        told,
        [
            (names if targets.facts.get("own_ids", True) else (), targets.text_hashes())
            for targets, names in zip(sets, target_ids, strict=True)
        ],
    )
    return [
        FreshScores(
            corpus,
            scores,
            names,
            rows,
            {
                "preset": scoring.recipe.name,
                "pooling": scoring.recipe.pooling,
                "weights": scoring.recipe.weights,
                "scorer": scoring.scorer.name,
                "top_m": scoring.recipe.m,
                "targets": counts,
                **({"remark": scoring.remark} if scoring.remark else {}),
            },
        )
        for (scoring, scores), names, (rows, counts) in zip(found, target_ids, among, strict=True)
    ]

"""Reading the activations that the SAE is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.workflow.layout import ACTIVATIONS
from finescope.workflow.stage import Stage

if TYPE_CHECKING:
    from finescope.activations import ActivationStore, ActivationTap
    from finescope.corpus import Corpus
    from finescope.progress import Reporter
    from finescope.workflow.context import Context


@dataclass(frozen=True)
class CollectActivations(Stage):
    """Writes the activations of the corpus, or of a random sample of its rows, into a store."""

    name = "activations"
    reads = ("corpus", "model")
    writes = (ACTIVATIONS,)
    expensive = True

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the rows, the model, and which rows are drawn."""
        job = context.job
        return {
            "corpus": context.fingerprints["corpus"],
            "tap": context.tap.fingerprint(),
            "train_tokens": job.train_tokens,
            "seed": job.seed,
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Run the model over the rows that are drawn; finished shards are kept."""
        store = collect_activations(
            context.tap,
            context.corpus,
            context.folder / ACTIVATIONS,
            max_tokens=_limit(context),
            seed=context.job.seed,
            reporter=context.reporter,
        )
        return {"tokens": store.num_tokens, "rows": len(store)}


def _limit(context: Context) -> int | None:
    """The limit on tokens, or None where the corpus can't reach it, which saves a pass."""
    found = context.corpus.stats or context.corpus.scan()
    return None if found.characters < context.job.train_tokens else context.job.train_tokens


def collect_activations(
    tap: ActivationTap,
    corpus: Corpus,
    folder: Path,
    *,
    max_tokens: int | None,
    seed: int,
    reporter: Reporter,
    overwrite: bool = False,
) -> ActivationStore:
    """Read the activations of (a random sample of) the corpus into a store; finished shards are kept."""
    from finescope.activations import store_activations

    with reporter.task("activations", corpus.len_hint, "rows") as task:
        return store_activations(
            tap,
            corpus,
            folder,
            max_tokens=max_tokens,
            seed=seed,
            mode="overwrite" if overwrite else "resume",
            progress=lambda rows, tokens: task.update(rows, f"{tokens:,} tokens"),
        )

"""Reading the activations that the SAE is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.workflow.layout import ACTIVATIONS
from finescope.workflow.stage import Stage
from finescope.workflow.stages.train import check_training

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
            "tap": context.tap_identity,
            "activation_dtype": job.activation_dtype,
            "train_tokens": job.train_tokens,
            "seed": job.seed,
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Run the model over the rows that are drawn; finished shards are kept.

        Raises:
            InputError: the SAE that is to be trained on them can't be.
        """
        check_training(context)
        store = collect_activations(
            context.corpus_tap,
            context.corpus,
            context.folder / ACTIVATIONS,
            dtype=context.job.activation_dtype,
            max_tokens=sample_limit(context),
            seed=context.job.seed,
            reporter=context.reporter,
        )
        dtype = str(store.dtype).removeprefix("torch.")
        return {"tokens": store.num_tokens, "rows": len(store), "activation_dtype": dtype}


def sample_limit(context: Context) -> int | None:
    """Return the limit on tokens, or None where the corpus can't reach it, which saves a pass."""
    limit = context.job.train_tokens
    return None if context.stats("corpus").characters < limit else limit


def collect_activations(
    tap: ActivationTap,
    corpus: Corpus,
    folder: Path,
    *,
    dtype: str,
    max_tokens: int | None,
    seed: int,
    reporter: Reporter,
    overwrite: bool = False,
) -> ActivationStore:
    """Read the activations of (a random sample of) the corpus into a store; finished shards are kept.

    Args:
        tap: model and layer.
        corpus: the rows.
        folder: the store.
        dtype: of the store; bfloat16 takes the place of float16 where that can't hold a value.
        max_tokens: of the sample; None takes all rows.
        seed: of the sample.
        reporter: for progress.
        overwrite: begin anew.
    """
    from finescope.activations import store_activations
    from finescope.activations.batches import DTYPES
    from finescope.workflow.precision import rounded_work

    with reporter.task("activations", corpus.len_hint, "rows") as task:

        def work(tap: ActivationTap, mode: str) -> ActivationStore:
            return store_activations(
                tap,
                corpus,
                folder,
                max_tokens=max_tokens,
                seed=seed,
                dtype=DTYPES[tap.activation_dtype or dtype],
                mode=mode,
                progress=lambda rows, tokens: task.update(rows, f"{tokens:,} tokens"),
            )

        return rounded_work(work, tap, dtype, folder, reporter=reporter, overwrite=overwrite)

"""Embedding rows: from texts to document codes on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.workflow.layout import ACTIVATIONS, CODES
from finescope.workflow.stage import Stage
from finescope.workflow.stages.sinks import words_of

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.corpus import Corpus
    from finescope.corpus.plan import Shard
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.sae import Autoencoder
    from finescope.workflow.context import Context
    from finescope.workflow.engines.local import Engine


@dataclass(frozen=True)
class Embed(Stage):
    """Embeds the corpus or the targets into a store of document codes."""

    rows: str
    """"corpus" or "targets"."""

    @property
    def name(self) -> str:
        """Its name, with that of the rows."""
        return f"embed-{self.rows}"

    @property
    def reads(self) -> tuple[str, ...]:
        """The rows and the model; the SAE is the run's own or one from elsewhere."""
        return (self.rows, "model")

    @property
    def writes(self) -> tuple[str, ...]:
        """The folder of the codes."""
        return (CODES[self.rows],)

    @property
    def expensive(self) -> bool:
        """The corpus is; the targets are few."""
        return self.rows == "corpus"

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the rows, the model, the SAE and how tokens are pooled."""
        job = context.job
        return {
            "tap": context.tap_identity,
            "activation_dtype": self._dtype(context),
            "sae": context.sae_identity,
            "pooling": job.recipe().pooling,
            "top_k_activations": job.top_k_activations,
            "sinks": job.sinks,
            "rows": context.fingerprints[self.rows],
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Embed; finished shards are kept."""
        job = context.job
        known = self.rows == "corpus" and job.sae_path is None
        store = embed(
            context.sae,
            context.tap,
            Rows(
                context.rows(self.rows),
                f"embedding {self.rows}",
                shards=context.plan(self.rows),
                label_column=job.label_column,
                activations=context.folder / ACTIVATIONS if known else None,
            ),
            context.folder / CODES[self.rows],
            Embedding(
                job.top_k_activations,
                job.recipe().pooling,
                self._dtype(context),
                context.ledger.facts("sinks").get("max_norm"),
            ),
            reporter=context.reporter,
            engine=context.engine,
        )
        refused = context.refused.get(self.rows)
        return {
            "rows": len(store),
            "pooling": job.recipe().pooling,
            "activation_dtype": store.facts["source"]["activation_dtype"],
            "tokens": store.num_tokens,
            "sinks": store.num_sinks,
            "refused_chats": refused.words if refused is not None else "",
            "autoencoder": [] if context.given is None else list(context.given.about),
            "warnings": [] if context.given is None else list(context.given.warnings),
        }

    def _dtype(self, context: Context) -> str:
        """What activations are rounded to, at first: as the SAE's were, and the targets' as the corpus'."""
        before = "activations" if self.rows == "corpus" else "embed-corpus"
        return str(context.ledger.facts(before).get("activation_dtype", context.job.activation_dtype))


@dataclass(frozen=True)
class Embedding:
    """How documents become codes: M, the pooling of tokens, and what activations are rounded to before."""

    top_k: int
    pooling: str
    dtype: str
    max_norm: float | None = None
    """Norm above which a token is an attention sink, which is left out."""


@dataclass(frozen=True)
class Rows:
    """What is embedded, with what is known of it.

    Attributes:
        corpus: the rows.
        task: what embedding them is called while it is shown.
        shards: their plan, if there is one already.
        label_column: column of labels to keep beside the codes.
        activations: a store of activations of these rows, on which the model then isn't run again.
    """

    corpus: Corpus
    task: str = "embedding"
    shards: Sequence[Shard] | None = None
    label_column: str | None = None
    activations: Path | None = None


def embed(
    sae: Autoencoder,
    tap: ActivationTap,
    rows: Rows,
    folder: Path,
    how: Embedding,
    *,
    reporter: Reporter,
    engine: Engine,
    overwrite: bool = False,
) -> CodeStore:
    """Embed all rows into a store of document codes; finished shards are kept.

    Args:
        sae: reads the tap's activations.
        tap: model and layer.
        rows: what is embedded.
        folder: the store of codes.
        how: pooling and rounding; bfloat16 takes the place of float16 where that can't hold a value.
        reporter: for progress.
        engine: has the shards worked on.
        overwrite: begin anew.
    """
    from finescope.activations import ActivationStore
    from finescope.activations.batches import DTYPES
    from finescope.embeddings.rows import embed_rows
    from finescope.workflow.precision import rounded_work

    stored = rows.activations
    known = ActivationStore(stored) if stored is not None and stored.exists() else None
    with reporter.task(rows.task, rows.corpus.len_hint, "rows") as task:

        def work(tap: ActivationTap, mode: str) -> CodeStore:
            fits = known is not None and known.dtype == DTYPES[tap.activation_dtype or how.dtype]
            return embed_rows(
                sae,
                tap,
                rows.corpus,
                folder,
                top_k=how.top_k,
                pooling=how.pooling,
                label_column=rows.label_column,
                shards=rows.shards,
                stored=known if fits else None,
                max_norm=how.max_norm,
                over=engine.over,
                mode=mode,
                progress=lambda count, tokens: task.update(count, f"{tokens:,} tokens"),
            )

        store = rounded_work(work, tap, how.dtype, folder, reporter=reporter, overwrite=overwrite)
    if words := words_of(store):
        reporter.say(f"{rows.task}: {words}")
    return store

"""Embedding rows: from texts to document codes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.workflow.layout import CODES
from finescope.workflow.stage import Stage

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.corpus import Corpus
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.sae import Autoencoder
    from finescope.workflow.context import Context


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
        from finescope.storage.identity import sha256_tensors

        job = context.job
        return {
            "tap": context.tap.fingerprint(),
            "sae": sha256_tensors(context.sae.state_dict(), sample=4096),
            "pooling": job.recipe().pooling,
            "top_k_activations": job.top_k_activations,
            "rows": context.fingerprints[self.rows],
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Embed; finished shards are kept."""
        job = context.job
        store = embed(
            context.sae,
            context.tap,
            context.rows(self.rows),
            context.folder / CODES[self.rows],
            name=f"embedding {self.rows}",
            top_k=job.top_k_activations,
            pooling=job.recipe().pooling,
            reporter=context.reporter,
        )
        refused = context.refused.get(self.rows)
        return {
            "rows": len(store),
            "pooling": job.recipe().pooling,
            "refused_chats": refused.words if refused is not None else "",
        }


def embed(
    sae: Autoencoder,
    tap: ActivationTap,
    rows: Corpus,
    folder: Path,
    *,
    name: str,
    top_k: int,
    pooling: str,
    reporter: Reporter,
    overwrite: bool = False,
) -> CodeStore:
    """Embed all rows into a store of document codes; finished shards are kept."""
    from finescope.embeddings.rows import embed_rows

    with reporter.task(name, rows.len_hint, "rows") as task:
        return embed_rows(
            sae,
            tap,
            rows,
            folder,
            top_k=top_k,
            pooling=pooling,
            mode="overwrite" if overwrite else "resume",
            progress=lambda count, tokens: task.update(count, f"{tokens:,} tokens"),
        )

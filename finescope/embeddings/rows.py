"""A corpus embedded: streamed through model, SAE and pooler into a store of document codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from finescope.activations.store import ActivationStore
from finescope.corpus.badrows import check_bad
from finescope.corpus.plan import SHARD_ROWS, Shard, missing, plan, unfinished
from finescope.corpus.reader import Corpus
from finescope.embeddings.embedder import Embedder, check_stored, order_for
from finescope.embeddings.pooler import Encoder
from finescope.embeddings.store import KIND, CodeStore, bad_rows_of
from finescope.errors import InputError
from finescope.storage.files import PathLike
from finescope.storage.manifest import ShardEntry
from finescope.storage.shards import ShardWriter

if TYPE_CHECKING:
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row


Over: TypeAlias = "Callable[[Embedder, Sequence[Shard]], Iterator[tuple[int, ShardEntry]]]"
"""Takes what embeds a shard, and shards; yields what that returns of each, in any order."""


def embed_rows(
    sae: Encoder,
    tap: ActivationTap,
    rows: Corpus | Iterable[Row],
    directory: PathLike,
    *,
    top_k: int = 100,
    pooling: str = "mean",
    dense: bool = True,
    keep_columns: Sequence[str] = (),
    label_column: str | None = None,
    dtype: torch.dtype | None = None,
    max_norm: float | None = None,
    shard_rows: int = SHARD_ROWS,
    shards: Sequence[Shard] | None = None,
    stored: ActivationStore | None = None,
    over: Over = map,
    mode: str = "resume",
    progress: Callable[[int, int], None] | None = None,
    remark: Callable[[str], None] | None = None,
) -> CodeStore:
    """Embed every row of a corpus into a store of document codes, streaming.

    Activations never reach the disk, and memory doesn't grow with the corpus. A run that was stopped goes on
    where it was a minute before; one that was finished does nothing. Row i of the corpus is row i of the
    store; a row without text has an empty code. A corpus is read through once beforehand, so that a broken
    line near its end is reported before the model has run for hours.

    Beside each code the store keeps the row's id, place, number of tokens and of characters, the hash of its
    text and the counts of its words, so that nothing that comes after need read the texts again.

    Args:
        sae: a trained autoencoder of the tap's width.
        tap: model and layer.
        rows: a corpus, or rows.
        directory: the store.
        top_k: M, latents kept per document.
        pooling: as ``extract_embeddings``.
        dense: keep the mean activation vector of each document too, [N,D] in float16 (shards that it
            can't hold in float32), for the dense baseline.
        keep_columns: columns of the rows (labels, for example) to keep in the store's table.
        label_column: column of labels to keep, as text; see ``CodeStore.labels``. It decides nothing else: a
            store that was begun with another one keeps that.
        dtype: of stored values; by default float16, and float32 for "sum" and "count", which can outgrow it.
        max_norm: tokens of a larger norm are left out of codes and means: attention sinks, see
            ``finescope.activations.sinks``. A document of nothing else has an empty code.
        shard_rows: documents per shard.
        shards: the corpus' shards, where they are planned already; they decide instead of ``shard_rows``.
        stored: activations of rows of this corpus from this tap; the model isn't run on those again. They
            must be of the dtype that the tap rounds to, so that the codes are the same either way.
        over: has the planned shards of a corpus embedded that aren't finished; by default here, in order.
        mode: "resume" or "overwrite".
        progress: called with (rows done, tokens done) as documents are finished.
        remark: told which finished shards of a corpus were found damaged; they are made again.

    Raises:
        InputError: an SAE of another width than the layer, bad rows, NaN activations (the document is named),
            or more of both than the tap may set aside.
        StoreError: the folder holds other work, a finished shard of rows that are no corpus is damaged, the
            rows changed, or the disk is full. Finished shards stay, nothing is half-written.
        ValueError: an unknown pooling, ``top_k`` or ``shard_rows`` below 1, or stored activations of another
            corpus, tap or dtype.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")
    corpus = rows if isinstance(rows, Corpus) else None
    if corpus is not None and shards is None:
        shards = plan(corpus, shard_rows)
    order = order_for(
        sae,
        tap,
        corpus,
        directory,
        top_k=top_k,
        pooling=pooling,
        dense=dense,
        keep_columns=keep_columns,
        label_column=label_column,
        dtype=dtype,
        max_norm=max_norm,
    )
    if stored is not None:
        check_stored(stored, tap, order.files.fingerprint)
    options = {"mode": mode, "planned": corpus is not None}
    with ShardWriter(directory, KIND, order.files.fingerprint, **options) as writer:  # type: ignore[arg-type]
        if writer.rows and corpus is not None:
            order = order.keeping(writer.facts.get("label_column"))
        writer.describe(**order.files.facts)
        embedder = Embedder(order, sae, tap, corpus, stored)

        def tell(rows: int = 0, tokens: int = 0) -> None:
            if progress is not None:
                progress(writer.rows + rows, writer.tokens + tokens)

        embedder.progress = tell
        if corpus is None:
            made = _of_rows(embedder, unfinished(rows, writer.shards, shard_rows))
        else:
            if writer.damaged and remark is not None:
                remark(
                    f"damaged in {directory}, and made again: shards {', '.join(map(str, writer.damaged))}"
                )
            writer.begin()
            check_bad(bad_rows_of(writer.finished.values()), tap.max_bad_rows)
            made = over(embedder, missing(shards or (), writer.finished))
        for number, entry in made:
            writer.adopt(number, entry)
            if bad_rows_of([entry]):
                check_bad(bad_rows_of(writer.finished.values()), tap.max_bad_rows)
            if corpus is not None:
                tell()
        if not writer.complete:
            if not writer.shards:
                raise InputError("there are no rows to embed")
            writer.finish()
    return CodeStore(directory)


def _of_rows(
    embedder: Embedder, shards: Iterable[tuple[Shard, list[Row]]]
) -> Iterator[tuple[int, ShardEntry]]:
    """Embed shards of rows that no corpus could give again, here and in order."""
    for shard, rows in shards:
        yield shard.number, embedder.embed(shard, rows)

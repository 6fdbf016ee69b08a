"""A corpus embedded: streamed through model, SAE and pooler into a store of document codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from finescope.activations.batches import DTYPES
from finescope.activations.store import ActivationStore
from finescope.corpus.plan import SHARD_ROWS, Shard, ShardReader, following, plan, unfinished
from finescope.corpus.reader import Corpus
from finescope.embeddings.pooler import Encoder, Pooler, ShardBuilder
from finescope.embeddings.store import CodeStore, CodeStoreWriter
from finescope.errors import InputError
from finescope.storage.files import PathLike
from finescope.storage.identity import differences, sha256_tensors

if TYPE_CHECKING:
    from finescope.activations.batches import ActivationBatch
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row


Over: TypeAlias = "Callable[[Callable[[Shard], None], Iterable[Shard]], Iterator[None]]"
"""Takes work and the shards that it is to be done on, and yields once for each that is done, in order."""


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
        over: has work done on each planned shard of a corpus, in order; by default here and now.
        mode: "resume" or "overwrite".
        progress: called with (rows done, tokens done) as documents are finished.

    Raises:
        InputError: an SAE of another width than the layer, bad rows, NaN activations (the document is named).
        StoreError: the folder holds other work, a finished shard is damaged, the corpus changed, or the disk
            is full. Finished shards stay, nothing is half-written.
        ValueError: an unknown pooling, ``top_k`` or ``shard_rows`` below 1, or stored activations of another
            corpus, tap or dtype.
    """
    if tap.width != sae.d_in:
        raise InputError(
            f"the SAE reads activations of width {sae.d_in}, but layer {tap.layer!r} gives width "
            f"{tap.width}; use the model and layer that the SAE was trained on"
        )
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")
    pooler = Pooler(sae, pooling, top_k, max(tap.batch_tokens, 8192), max_norm)
    corpus = rows if isinstance(rows, Corpus) else None
    fingerprint = {
        "corpus": corpus.fingerprint() if corpus is not None else None,
        "tap": tap.fingerprint(),
        "sae": sae_fingerprint(sae),
        "top_k": top_k,
        "pooling": pooling,
        "columns": list(keep_columns),
        "max_norm": max_norm,
    }
    if stored is not None:
        _check_stored(stored, tap, fingerprint)
    with CodeStoreWriter(
        directory,
        sae.num_latents,
        dtype=dtype or (torch.float32 if pooling in ("sum", "count") else torch.float16),
        dense_width=tap.width if dense else None,
        fingerprint=fingerprint,
        facts={"pooling": pooling, "top_k": top_k, "source": tap.describe()},
        mode=mode,
    ) as writer:
        embedder = _Embedder(tap, pooler, writer, dense, tuple(keep_columns), label_column, stored, progress)
        if corpus is None:
            writer.describe(own_ids=True)
            for shard, held in unfinished(rows, writer.entries, shard_rows):
                embedder.embed(shard, held)
        else:
            shards = plan(corpus, shard_rows) if shards is None else shards
            writer.describe(own_ids=(corpus.stats or corpus.scan()).own_ids > 0)
            if writer.entries:
                embedder.label_column = writer.facts.get("label_column")
            writer.describe(label_column=embedder.label_column)
            for _ in over(embedder.reading(corpus), following(shards, writer.entries)):
                pass
        if not writer.complete:
            if not writer.entries:
                raise InputError("there are no rows to embed")
            writer.finish()
    return CodeStore(directory)


@dataclass
class _Embedder:
    """Embeds one shard after the other into a store."""

    tap: ActivationTap
    pooler: Pooler
    writer: CodeStoreWriter
    dense: bool
    columns: tuple[str, ...]
    label_column: str | None
    stored: ActivationStore | None
    progress: Callable[[int, int], None] | None

    def reading(self, corpus: Corpus) -> Callable[[Shard], None]:
        """Return what embeds a planned shard of a corpus."""
        labels = [] if self.label_column is None else [self.label_column]
        reader = ShardReader(lambda start: corpus.rows_from(start, columns=[*self.columns, *labels]))
        return lambda shard: self.embed(shard, reader.read(shard))

    def embed(self, shard: Shard, rows: list[Row]) -> None:
        """Embed the rows of a shard and write it."""
        built = ShardBuilder(self.pooler, self.tap.width if self.dense else None, len(rows))
        done, tokens = self.writer.num_rows, self.writer.num_tokens
        left = list(range(len(rows)))
        if self.stored is not None:
            known = set(self.stored.indices_between(shard.first, shard.end).tolist())
            left = [place for place in left if shard.first + place not in known]
            for batch in self.stored.between(shard.first, shard.end):
                self._add(built, batch, range(-shard.first, shard.rows), done, tokens)
            built.new.clear()  # no model was run for them
        for piece, notes in self.writer.pieces():
            if notes["digest"] == shard.digest:
                left = sorted(set(left).difference(built.take_back(piece)))
        chosen = [rows[place] for place in left]
        for batch in self.tap.batches(chosen, chunk_rows=max(1, len(chosen))):
            self._add(built, batch, left, done, tokens)
            if built.new and self.writer.pieces_due:
                self.writer.keep_piece(built.piece(), digest=shard.digest)
        columns = {name: [row.record.get(name) for row in rows] for name in self.columns}
        self.writer.write(
            built.codes(),
            [row.id for row in rows],
            n_tokens=built.token_counts,
            places=[row.place for row in rows],
            texts=[row.content for row in rows],
            labels=None if self.label_column is None else [self._label(row) for row in rows],
            dense=built.dense,
            columns=columns,
            digest=shard.digest,
            sinks=sum(built.sink_counts),
        )

    def _label(self, row: Row) -> str:
        value = row.record.get(self.label_column or "")
        return "" if value is None else str(value)

    def _add(
        self, built: ShardBuilder, batch: ActivationBatch, places: Sequence[int], done: int, tokens: int
    ) -> None:
        finished = built.add(batch, places)
        if self.progress is not None and finished:
            self.progress(done + built.num_done, tokens + built.num_tokens)


def _check_stored(stored: ActivationStore, tap: ActivationTap, fingerprint: Mapping[str, Any]) -> None:
    """Refuse activations that aren't those which the tap would give."""
    origin = stored.fingerprint()["origin"]
    for name, words in (("corpus", "another corpus"), ("tap", "another model or layer")):
        if fingerprint[name] is None or differences(origin.get(name), fingerprint[name]):
            raise ValueError(f"the activations in {stored.directory} are of {words}")
    if stored.dtype != DTYPES.get(tap.activation_dtype or ""):
        raise ValueError(
            f"the activations in {stored.directory} are {stored.dtype}, but the tap gives "
            f"{tap.activation_dtype or 'what the model gives'}; let it round to the dtype of the store"
        )


def sae_fingerprint(sae: Encoder) -> dict[str, Any]:
    """Return what tells an SAE from another: its sizes and a hash of its weights."""
    if hasattr(sae, "identity"):
        return dict(sae.identity())
    found: dict[str, Any] = {"d_in": sae.d_in, "num_latents": sae.num_latents}
    if hasattr(sae, "state_dict"):
        found["weights"] = sha256_tensors(sae.state_dict())
    config = getattr(sae, "cfg", None)
    if config is not None:
        found["k"] = getattr(config, "k", None)
    return found

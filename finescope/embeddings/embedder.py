"""What makes a shard of codes of a shard of rows, in whatever process it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finescope.activations.batches import DTYPES
from finescope.corpus.badrows import BadRow, check_bad
from finescope.corpus.plan import Shard, ShardReader
from finescope.embeddings.alone import TIMES, Alone
from finescope.embeddings.pooler import Encoder, Pooler, ShardBuilder
from finescope.embeddings.store import KIND
from finescope.embeddings.writer import Documents, fixed_facts, shard_of_codes
from finescope.errors import InputError
from finescope.storage.files import PathLike
from finescope.storage.identity import differences, sha256_tensors
from finescope.storage.shardfiles import ShardFiles
from finescope.storage.shards import printable

if TYPE_CHECKING:
    from finescope.activations.batches import ActivationBatch
    from finescope.activations.store import ActivationStore
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.reader import Corpus
    from finescope.corpus.row import Row
    from finescope.storage.manifest import ShardEntry

ENDS = f"by itself, it has ended {TIMES} processes that read it"
"""Why a row is set aside that no process outlives."""


@dataclass(frozen=True)
class Order:
    """All that decides the shards of a store of codes but model, autoencoder and rows. It can be pickled.

    Attributes:
        files: where they are written.
        top_k, pooling, max_norm: as ``embed_rows``.
        columns: of the rows, that are kept.
        label_column: column of labels that is kept.
    """

    files: ShardFiles
    top_k: int
    pooling: str
    max_norm: float | None
    columns: tuple[str, ...]
    label_column: str | None

    def keeping(self, label_column: str | None) -> Order:
        """Return the order with another column of labels."""
        files = replace(self.files, facts={**self.files.facts, "label_column": label_column})
        return replace(self, files=files, label_column=label_column)


def order_for(
    sae: Encoder,
    tap: ActivationTap,
    corpus: Corpus | None,
    directory: PathLike,
    *,
    top_k: int,
    pooling: str,
    dense: bool = True,
    keep_columns: Sequence[str] = (),
    label_column: str | None = None,
    dtype: torch.dtype | None = None,
    max_norm: float | None = None,
) -> Order:
    """Return what is to be made in a folder.

    Args:
        sae, tap, directory, top_k, pooling, dense, keep_columns, label_column, dtype, max_norm: as
            ``embed_rows``.
        corpus: the rows; None for rows that are no corpus.

    Raises:
        InputError: an SAE of another width than the layer.
        ValueError: a dtype that isn't stored.
    """
    if tap.width != sae.d_in:
        raise InputError(
            f"the SAE reads activations of width {sae.d_in}, but layer {tap.layer!r} gives width "
            f"{tap.width}; use the model and layer that the SAE was trained on"
        )
    dtype = dtype or (torch.float32 if pooling in ("sum", "count") else torch.float16)
    fixed = fixed_facts(sae.num_latents, dtype, tap.width if dense else None)
    fingerprint = {
        "corpus": corpus.fingerprint() if corpus is not None else None,
        "tap": tap.fingerprint(),
        "sae": sae_fingerprint(sae),
        "top_k": top_k,
        "pooling": pooling,
        "columns": list(keep_columns),
        "max_norm": max_norm,
    }
    facts = {**fixed, "pooling": pooling, "top_k": top_k, "source": tap.describe()}
    if corpus is None:
        facts["own_ids"] = True
    else:
        facts |= {"own_ids": (corpus.stats or corpus.scan()).own_ids > 0, "label_column": label_column}
    files = ShardFiles(Path(directory), KIND, {**fingerprint, **fixed}, facts)
    return Order(files, top_k, pooling, max_norm, tuple(keep_columns), label_column)


class Embedder:
    """Embeds shards of rows, one after the other, each into files of its own.

    Attributes:
        order: what is made of the rows.
        progress: called with (rows, tokens) of the shard at work that are done.
    """

    def __init__(
        self,
        order: Order,
        sae: Encoder,
        tap: ActivationTap,
        corpus: Corpus | None = None,
        stored: ActivationStore | None = None,
    ) -> None:
        """Get ready; nothing is read or written yet.

        Args:
            order: what is made of the rows.
            sae: a trained autoencoder of the tap's width.
            tap: model and layer.
            corpus: where the rows of planned shards are read.
            stored: activations of rows of this corpus; the model isn't run on those again.

        Raises:
            ValueError: an unknown pooling, or ``top_k`` below 1.
        """
        self.order = order
        self.progress: Callable[[int, int], None] | None = None
        self._tap, self._stored = tap, stored
        self._pooler = Pooler(sae, order.pooling, order.top_k, max(tap.batch_tokens, 8192), order.max_norm)
        self._pieces = order.files.pieces()
        label = [] if order.label_column is None else [order.label_column]
        columns = [*order.columns, *label]
        self._reader: ShardReader | None = None
        if corpus is not None:
            self._reader = ShardReader(lambda start: corpus.rows_from(start, columns=columns))

    def __call__(self, shard: Shard) -> tuple[int, ShardEntry]:
        """Read and embed a planned shard of the corpus; return its number, and what is noted of it.

        Raises:
            InputError: its rows have changed, are broken, or give NaN activations (the document is named), or
                more of them than the tap may set aside.
            StoreError: the disk is full.
        """
        return shard.number, self.embed(shard, self._read(shard))

    def carefully(self, shard: Shard, ended: int, how: str) -> tuple[int, ShardEntry]:
        """Embed a planned shard that ends the processes which are at it, row by row; see ``__call__``.

        A row that ends two of them is set aside, as one that gives NaN is.

        Args:
            shard: the shard.
            ended: how many processes have ended while they did this.
            how: how the last one ended.

        Raises:
            FineScopeError: processes end, but not at any one row.
        """
        note = self._pieces.alone(shard.number)
        alone = Alone(note, self.order.files.identity, ended, how)
        return shard.number, self.embed(shard, self._read(shard), alone)

    def _read(self, shard: Shard) -> list[Row]:
        if self._reader is None:
            raise ValueError("there is no corpus that planned shards could be read from")
        return self._reader.read(shard)

    def embed(self, shard: Shard, rows: list[Row], alone: Alone | None = None) -> ShardEntry:
        """Embed the rows of a shard, write it and note that it is whole; ``alone``: row by row."""
        files, width = self.order.files, self.order.files.facts["dense_width"]
        built = ShardBuilder(self._pooler, width, len(rows))
        left = list(range(len(rows)))
        if self._stored is not None:
            known = set(self._stored.indices_between(shard.first, shard.end).tolist())
            left = [place for place in left if shard.first + place not in known]
            for batch in self._stored.between(shard.first, shard.end):
                self._add(built, batch, range(-shard.first, shard.rows))
            built.new.clear()  # no model was run for them
        for piece, notes in self._pieces.found(shard.number):
            if notes["digest"] == shard.digest:
                left = sorted(set(left).difference(built.take_back(piece)))
        if alone is None:  # what an earlier run has noted is of no use to a later one
            with contextlib.suppress(OSError):
                self._pieces.alone(shard.number).unlink()
        for place in set(left).intersection(alone.aside if alone is not None else ()):
            built.set_aside(place, ENDS)
        left = [place for place in left if place not in built.aside]

        def bad_so_far() -> list[BadRow]:
            named = [(rows[place], shard.first + place, why) for place, why in sorted(built.aside.items())]
            found = [BadRow(number, printable(row.place), row.id, why) for row, number, why in named]
            return check_bad(found, self._tap.max_bad_rows)

        bad = bad_so_far()
        for batch, places in self._batches(rows, left, alone):
            self._add(built, batch, places)
            bad = bad_so_far()
            if built.new and self._pieces.due():
                if alone is not None:
                    alone.passed()
                self._pieces.write(shard.number, built.piece(), {"digest": shard.digest})
        documents = Documents(
            [row.id for row in rows],
            n_tokens=built.token_counts,
            places=[row.place for row in rows],
            texts=[row.content for row in rows],
            labels=None if self.order.label_column is None else [self._label(row) for row in rows],
            dense=built.dense,
            columns={name: [row.record.get(name) for row in rows] for name in self.order.columns},
        )
        dtype = DTYPES[files.facts["dtype"]]
        made = shard_of_codes(built.codes(), documents, dtype=dtype, first=shard.first)
        about: dict[str, Any] = {**made.counts, "digest": shard.digest, "sinks": sum(built.sink_counts)}
        if bad:
            about["bad_rows"] = [row.plain() for row in bad]
        entry = files.write(shard.number, made.tensors, made.table, about)
        files.note(shard.number, entry)
        self._pieces.clear(shard.number)
        return entry

    def _batches(
        self, rows: list[Row], left: list[int], alone: Alone | None
    ) -> Iterator[tuple[ActivationBatch, list[int]]]:
        """Yield batches of the rows at some places, and the places of the documents in each."""
        parts = [left] if alone is None else ([place] for place in alone.of(left, len(rows)))
        for places in parts:
            chosen = [rows[place] for place in places]
            for batch in self._tap.batches(chosen, chunk_rows=max(1, len(chosen))):
                if alone is None or places[0] in left:
                    yield batch, places

    def _label(self, row: Row) -> str:
        value = row.record.get(self.order.label_column or "")
        return "" if value is None else str(value)

    def _add(self, built: ShardBuilder, batch: ActivationBatch, places: Sequence[int]) -> None:
        finished = built.add(batch, places)
        if self.progress is not None and finished:
            self.progress(built.num_done, built.num_tokens)


def check_stored(stored: ActivationStore, tap: ActivationTap, fingerprint: Mapping[str, Any]) -> None:
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

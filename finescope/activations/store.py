"""Activations on disk: written shard by shard, read back memory-mapped, in order or shuffled."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.activations.batches import DTYPES, ActivationBatch, DocumentActivations
from finescope.activations.windows import Document
from finescope.errors import StoreError
from finescope.ops.checks import all_finite
from finescope.storage.checked import map_shard
from finescope.storage.files import PathLike
from finescope.storage.mapping import advise
from finescope.storage.shards import id_column, printable
from finescope.storage.store import Store, StoreWriter

KIND = "finescope-activations"
_TENSORS = ("activations", "offsets", "token_ids")
_TABLE = ("id", "index", "place", "windows")
_SHARD_BYTES = 1 << 28
_BUFFER_BYTES = 1 << 28
_BLOCK_TOKENS = 256
_OPEN_SHARDS = 64


class ActivationStoreWriter(StoreWriter):
    """Writes documents' activations [T,D] in order; a finished shard is never written again.

    Use it as a context manager and call ``finish`` at the end; leaving without it keeps the finished shards
    for the next run, and what of the next shard was done a minute before.
    """

    def __init__(
        self,
        directory: PathLike,
        width: int,
        *,
        dtype: torch.dtype = torch.float16,
        shard_tokens: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        mode: str = "resume",
    ) -> None:
        """Open or make the folder.

        Args:
            directory: the folder.
            width: D.
            dtype: float16, bfloat16 or float32.
            shard_tokens: tokens per shard, about; by default 256 MiB worth.
            fingerprint: what decides the contents, to notice a changed input.
            mode: "resume" or "overwrite", as ``ShardWriter``.

        Raises:
            StoreError: as ``ShardWriter``.
            ValueError: a dtype that isn't stored.
        """
        if dtype not in DTYPES.values():
            raise ValueError(f"activations are stored as float16, bfloat16 or float32, not {dtype}")
        self.width, self._dtype = width, dtype
        self._limit = shard_tokens or max(1, _SHARD_BYTES // (width * dtype.itemsize))
        facts = {"width": width, "dtype": str(dtype).removeprefix("torch.")}
        super().__init__(directory, KIND, {**(fingerprint or {}), **facts}, facts, mode=mode)
        self._documents: list[DocumentActivations] = []
        self._tokens = self._kept = 0
        self._notes: dict[str, Any] = dict(self.entries[-1].notes) if self.entries else {}
        # Pages that nothing is written to take no memory.
        self._room = torch.empty(self._limit, width, dtype=dtype)
        for tensors, notes in self.pieces():
            self._take_back(tensors, notes)

    @property
    def reached(self) -> Mapping[str, Any]:
        """The plain values given with the last document that is kept; empty before the first."""
        return self._notes

    @property
    def num_tokens(self) -> int:
        """Tokens in finished shards and waiting for the next."""
        return super().num_tokens + self._tokens

    def add(self, document: DocumentActivations, **entry: Any) -> None:
        """Take the next document; a full shard is written.

        Args:
            document: activations [T,D].
            entry: plain values for the manifest if a shard ends here; see ``reached``.

        Raises:
            StoreError: a value too large for the dtype, or a full disk.
            ValueError: a width that isn't the store's, or another number of token ids than of activations.
        """
        if document.activations.dim() != 2 or document.activations.shape[1] != self.width:
            raise ValueError(
                f"document {document.id!r} has activations {list(document.activations.shape)}, "
                f"not [T,{self.width}]"
            )
        if document.token_ids.shape != document.activations.shape[:1]:
            raise ValueError(
                f"document {document.id!r} has {list(document.token_ids.shape)} token ids for activations "
                f"{list(document.activations.shape)}"
            )
        stored = document.activations.detach().to("cpu", self._dtype)
        if not all_finite(stored):
            raise StoreError(
                f"activations of document {document.id!r} don't fit {self._dtype}; "
                "store them as bfloat16 or float32"
            )
        self._hold(document, stored)
        if self._tokens >= self._limit:
            self.flush(**entry)
        elif self.pieces_due:
            self._keep(entry)

    def _hold(self, document: DocumentActivations, stored: Tensor) -> None:
        self._room = _grown(self._room, self._tokens, self._tokens + stored.shape[0])
        self._room[self._tokens : self._tokens + stored.shape[0]] = stored
        # The activations lie in the buffer: even an empty view of them would keep the batch they come from.
        bare = stored.new_empty(0, self.width)
        self._documents.append(
            replace(document, token_ids=document.token_ids.cpu().clone(), activations=bare)
        )
        self._tokens += stored.shape[0]

    def _keep(self, notes: Mapping[str, Any]) -> None:
        """Keep the documents that came since the last piece."""
        new = self._documents[self._kept :]
        lengths = [document.token_ids.shape[0] for document in new]
        tensors = {
            "activations": self._room[self._tokens - sum(lengths) : self._tokens],
            "token_ids": torch.cat([document.token_ids for document in new]),
        }
        about = [[d.index, d.id, length, d.place, d.windows] for d, length in zip(new, lengths, strict=True)]
        self.keep_piece(tensors, documents=about, reached=dict(notes))
        self._kept = len(self._documents)

    def _take_back(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        start = 0
        for index, row_id, length, place, windows in notes["documents"]:
            part = slice(start, start + length)
            stored = tensors["activations"][part]
            ids = tensors["token_ids"][part].clone()
            self._hold(DocumentActivations(index, row_id, ids, stored, place, tuple(windows)), stored)
            start += length
        self._notes, self._kept = notes["reached"], len(self._documents)

    def flush(self, **entry: Any) -> None:
        """Write the waiting documents as a shard.

        Raises:
            StoreError: the disk is full.
        """
        if not self._documents:
            return
        import pyarrow as pa

        lengths = [document.token_ids.shape[0] for document in self._documents]
        tensors = {
            "activations": self._room[: self._tokens],
            "offsets": torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64),
            "token_ids": torch.cat([document.token_ids for document in self._documents]).to(torch.int32),
        }
        table = pa.table(
            {
                "id": id_column([document.id for document in self._documents]),
                "index": pa.array([document.index for document in self._documents], pa.int64()),
                "n_tokens": pa.array(lengths, pa.int64()),
                "place": [printable(document.place) for document in self._documents],
                "windows": pa.array(
                    [document.windows or None for document in self._documents], pa.list_(pa.int64())
                ),
            }
        )
        notes = {"tokens": self._tokens, "last_index": self._documents[-1].index}
        self._shards.write(tensors, table, {**notes, **entry})
        self._documents, self._tokens, self._kept = [], 0, 0

    def finish(self, *, next_row: int = 0, chain: str = "", source: Mapping[str, Any] | None = None) -> None:
        """Write what waits and declare the store complete.

        Args:
            next_row: rows read in all.
            chain: running hash over them.
            source: what was read, for people: ``model`` and ``layer``.

        Raises:
            StoreError: the disk is full, or nothing was added.
        """
        self.flush(next_row=next_row, chain=chain)
        nothing = "no document was added to the activation store"
        self._finish(nothing, rows_read=next_row, chain=chain, source=dict(source or {}))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._documents, self._room = [], self._room[:0].clone()
        super().__exit__(kind, error, trace)


class ActivationStore(Store):
    """Activations of N documents, memory-mapped.

    Attributes:
        width: D.
        dtype: of the activations.
        num_tokens: tokens of all documents.
        num_documents: N.
    """

    def __init__(self, directory: PathLike) -> None:
        """Open a finished store; shards are mapped when touched.

        Raises:
            StoreError: no store, unfinished, or a file that is missing or truncated (named).
        """
        super().__init__(directory, KIND)
        width, dtype = self.facts.get("width"), self.facts.get("dtype")
        if not isinstance(width, int) or dtype not in DTYPES:
            raise StoreError(f"{directory} is damaged: its manifest lacks a valid width or dtype")
        self.width, self.dtype = width, DTYPES[dtype]
        self.num_documents = len(self)
        self._map = functools.lru_cache(_OPEN_SHARDS)(self._open)

    def __repr__(self) -> str:
        return f"ActivationStore(N={self.num_documents}, tokens={self.num_tokens}, D={self.width})"

    def documents(self) -> Iterator[DocumentActivations]:
        """Yield the documents in order; activations [T,D] are views of the mapped file."""
        for number, entry in enumerate(self._shards):
            tensors = self._map(number)
            table = self._table(None, [entry]).to_pydict()
            offsets = tensors["offsets"].tolist()
            for row, (row_id, index, place, windows) in enumerate(
                zip(table["id"], table["index"], table["place"], table["windows"], strict=True)
            ):
                low, high = offsets[row], offsets[row + 1]
                tokens = tensors["token_ids"][low:high].to(torch.int64)
                activations = tensors["activations"][low:high]
                yield DocumentActivations(index, row_id, tokens, activations, place, tuple(windows or ()))

    @functools.cached_property
    def indices(self) -> NDArray[np.int64]:
        """int64 [N]: position of each document's row among the rows that were read, ascending."""
        return np.asarray(self._table(["index"])["index"].to_numpy(), dtype=np.int64)

    def indices_between(self, first: int, last: int) -> NDArray[np.int64]:
        """Return those of ``indices`` that are from ``first`` to before ``last``."""
        low, high = np.searchsorted(self.indices, [first, last])
        return self.indices[low:high]

    def between(self, first: int, last: int, *, batch_tokens: int = 8192) -> Iterator[ActivationBatch]:
        """Yield the documents whose rows stand from ``first`` to before ``last``, as the tap yields them.

        A document that was read in several windows comes in these again, all in one batch.

        Args:
            first: position of a row.
            last: position of a row.
            batch_tokens: tokens of a batch, about; a document isn't split.
        """
        low, high = np.searchsorted(self.indices, [first, last]).tolist()
        for number, (start, entry) in enumerate(self._starts()):
            mine = range(max(low, start), min(high, start + entry.rows))
            if mine:
                yield from self._batches_of(number, mine.start - start, mine.stop - start, batch_tokens)

    def _batches_of(self, number: int, low: int, high: int, batch_tokens: int) -> Iterator[ActivationBatch]:
        """Batches of documents ``low`` to before ``high`` of one shard."""
        tensors = self._map(number)
        wanted = self._table(None, [self._shards[number]]).slice(low, high - low)
        offsets = tensors["offsets"][low : high + 1].tolist()
        documents: list[Document] = []
        parts: list[int] = []
        ends: list[int] = [offsets[0]]
        for row, (found, index, place, windows) in enumerate(
            zip(*(wanted.column(name).to_pylist() for name in _TABLE), strict=True)
        ):
            tokens = offsets[row + 1] - offsets[row]
            lengths = windows or [tokens]
            document = Document(index, found, place, len(lengths), tokens)
            documents += [document] * len(lengths)
            parts += range(len(lengths))
            ends += (ends[-1] + np.cumsum(lengths)).tolist()
            if ends[-1] - ends[0] >= batch_tokens or row == high - low - 1:
                span = slice(ends[0], ends[-1])
                yield ActivationBatch(
                    documents,
                    parts,
                    [end - ends[0] for end in ends],
                    tensors["token_ids"][span].to(torch.int64),
                    tensors["activations"][span],
                )
                advise(tensors["activations"][span], "MADV_DONTNEED", inward=True)
                documents, parts, ends = [], [], [ends[-1]]

    def batches(
        self, batch_size: int, *, seed: int, epoch: int = 0, max_tokens: int | None = None
    ) -> Iterator[Tensor]:
        """Yield all tokens once, shuffled, in batches [b,D]; the last may be smaller.

        Blocks of 256 neighbouring tokens are drawn in random order into a buffer of about 256 MiB, whose
        tokens are shuffled: random enough for training, sequential enough for a disk, in bounded memory.

        Args:
            batch_size: b.
            seed: with ``epoch`` decides the order, the same on every machine.
            epoch: number of the pass.
            max_tokens: end the pass after so many.
        """
        left = self.num_tokens if max_tokens is None else min(max_tokens, self.num_tokens)
        for rows in self.shares(batch_size, seed=seed, epoch=epoch):
            yield rows[:left]
            left -= batch_size
            if left <= 0:
                return

    def shares(
        self, batch_size: int, *, seed: int, epoch: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[Tensor]:
        """Yield of each of ``batches`` the tokens that lie in a rank's range of the store.

        Every rank reads a range of neighbouring shards of its own, one ``ranks``-th of all blocks; what all
        yield makes up the batches. A share has about ``batch_size / ranks`` tokens, at times none.

        Args:
            batch_size: tokens of a batch, over all ranks.
            seed: with ``epoch`` decides the order, the same on every machine.
            epoch: number of the pass.
            rank: number of the range.
            ranks: how many there are.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        random = np.random.default_rng([seed, epoch])
        rest = torch.zeros(0, self.width, dtype=self.dtype)
        theirs = torch.zeros(0, dtype=torch.bool)
        size = max(_BUFFER_BYTES // (self.width * self.dtype.itemsize), batch_size)
        mark = torch.zeros(size + _BLOCK_TOKENS, dtype=torch.bool)
        for buffer in self._buffers(random, size, rank, ranks, mark):
            foreign = torch.cat([theirs, mark[: buffer.shape[0]]])
            order = torch.from_numpy(random.permutation(len(foreign)))
            whole = len(foreign) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                rows = order[start : start + batch_size]
                yield _taken(rest, buffer, rows[~foreign[rows]])
            rows = order[whole:]
            rest, theirs = _taken(rest, buffer, rows), foreign[rows]
        if rest.shape[0]:
            yield rest[~theirs]

    def sample(self, max_tokens: int, *, seed: int = 0) -> Tensor:
        """Return up to ``max_tokens`` tokens [n,D] drawn without replacement, in the order of the store."""
        random = np.random.default_rng([seed, 0x5A])
        count = min(max_tokens, self.num_tokens)
        chosen = np.sort(random.choice(self.num_tokens, count, replace=False, shuffle=False))
        ends = np.cumsum([entry.tokens for entry in self._shards])
        parts, low = [torch.zeros(0, self.width, dtype=self.dtype)], 0
        for number, end in enumerate(ends):
            high = int(np.searchsorted(chosen, end))
            if high > low:
                start = int(end) - self._shards[number].tokens
                parts.append(self._map(number)["activations"][torch.from_numpy(chosen[low:high] - start)])
            low = high
        return torch.cat(parts)

    def _buffers(
        self,
        random: np.random.Generator,
        size: int,
        rank: int = 0,
        ranks: int = 1,
        foreign: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the tokens in blocks drawn at random, about ``size`` of them at a time.

        What is yielded is overwritten by what comes next: there is one buffer. In ``foreign``, bool
        [size + 256], is noted which tokens are other ranks' and weren't read.
        """
        counts = [-(-entry.tokens // _BLOCK_TOKENS) for entry in self._shards]
        ends = np.cumsum(counts)
        buffer = torch.empty(min(size + _BLOCK_TOKENS, self.num_tokens), self.width, dtype=self.dtype)
        held, blocks = 0, int(ends[-1]) if len(ends) else 0
        mine = range(rank * blocks // ranks, (rank + 1) * blocks // ranks)
        for block in random.permutation(blocks).tolist():
            number = int(np.searchsorted(ends, block, side="right"))
            start = (block - int(ends[number] - counts[number])) * _BLOCK_TOKENS
            tokens = min(_BLOCK_TOKENS, self._shards[number].tokens - start)
            if foreign is not None:
                foreign[held : held + tokens] = block not in mine
            if block in mine:
                part = self._map(number)["activations"][start : start + tokens]
                buffer[held : held + tokens] = part
                # The buffer holds it now; the system keeps it as long as nobody else needs the memory.
                advise(part, "MADV_DONTNEED", inward=True)
            held += tokens
            if held >= size:
                yield buffer[:held]
                held = 0
        if held:
            yield buffer[:held]

    def _open(self, number: int) -> dict[str, Tensor]:
        entry = self._shards[number]
        tensors = map_shard(self.directory, entry, _TENSORS)
        activations, offsets = tensors["activations"], tensors["offsets"]
        if (
            activations.shape != (entry.tokens, self.width)
            or activations.dtype != self.dtype
            or offsets.shape != (entry.rows + 1,)
            or int(offsets[0]) != 0
            or bool((offsets.diff() < 0).any())
            or int(offsets[-1]) != entry.tokens
            or tensors["token_ids"].shape[0] != entry.tokens
        ):
            raise StoreError(f"{self.directory}/{entry.file} is corrupt: its tensors contradict the manifest")
        return tensors


def _taken(rest: Tensor, buffer: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of ``rest`` and ``buffer``, one after the other, without putting the two together."""
    if not rest.shape[0]:
        return buffer[rows]
    taken = buffer.new_empty(rows.shape[0], buffer.shape[1])
    early = rows < rest.shape[0]
    taken[early] = rest[rows[early]]
    taken[~early] = buffer[rows[~early] - rest.shape[0]]
    return taken


def _grown(room: Tensor, used: int, wanted: int) -> Tensor:
    """Return a buffer for at least ``wanted`` rows that holds the first ``used`` rows of ``room``."""
    if wanted <= room.shape[0]:
        return room
    larger = room.new_empty(max(wanted, room.shape[0] * 5 // 4), room.shape[1])
    larger[:used] = room[:used]
    return larger

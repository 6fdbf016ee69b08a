"""Document codes on disk: CSR shards that are memory-mapped, with ids and metadata beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.corpus.badrows import BadRow
from finescope.corpus.known import KnownRows
from finescope.embeddings.words import TENSORS, CountedTexts, WordCounts
from finescope.errors import StoreError
from finescope.storage.checked import map_shard
from finescope.storage.coded import BLOCK, CodedStrings
from finescope.storage.files import PathLike
from finescope.storage.manifest import ShardEntry
from finescope.storage.mapping import advise, ahead
from finescope.storage.store import Store
from finescope.storage.strings import Strings

KIND = "finescope-codes"
_TENSORS = ("indptr", "indices", "values")
LABEL = "finescope_label"
"""Name of the column of labels."""
_OPEN_SHARDS = 64


def bad_rows_of(shards: Iterable[ShardEntry]) -> list[BadRow]:
    """Return the rows that were set aside in some shards of codes."""
    return [BadRow.from_plain(values) for entry in shards for values in entry.notes.get("bad_rows", ())]


class CodeStore(Store):
    """Codes of N documents over F latents, memory-mapped.

    Attributes:
        num_latents: F.
        width: D of the dense vectors, or None if there are none.
        facts: how the codes were made (pooling, M, …).
    """

    def __init__(self, directory: PathLike) -> None:
        """Open a finished store; shards are mapped when touched.

        Raises:
            StoreError: no store, unfinished, or a file that is missing or truncated (named).
        """
        super().__init__(directory, KIND)
        self.num_latents = int(self.facts["num_latents"])
        self.width: int | None = self.facts["dense_width"]
        self._map = functools.lru_cache(_OPEN_SHARDS)(self._open)

    def __repr__(self) -> str:
        return f"CodeStore(N={len(self)}, F={self.num_latents}, nnz={self.nnz}, shards={len(self._shards)})"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F)."""
        return len(self), self.num_latents

    @property
    def nnz(self) -> int:
        """Stored entries of all documents."""
        return sum(int(entry.notes["nnz"]) for entry in self._shards)

    @property
    def num_sinks(self) -> int:
        """How many of the tokens were left out as attention sinks."""
        return sum(int(entry.notes.get("sinks", 0)) for entry in self._shards)

    @property
    def bad_rows(self) -> list[BadRow]:
        """The rows that were set aside, in order. Their codes are empty."""
        return bad_rows_of(self._shards)

    def iter_shards(self) -> Iterator[tuple[int, SparseCodes]]:
        """Yield (number of the first row, mapped codes of one shard), in order, in bounded memory."""
        for number, (start, _) in enumerate(self._starts()):
            yield start, self._map(number)[0]

    def stream(self, block_bytes: int = 32 << 20) -> Iterator[tuple[int, SparseCodes]]:
        """Yield (number of the first row, mapped codes) in order, a few megabytes of a shard at a time.

        While a block is used the next one is read and checked by another thread; then its pages are given
        back, so that no more than two blocks are in memory, however large the store and its shards are.

        Args:
            block_bytes: size of a block, about; a block has one row at least.

        Raises:
            StoreError: a shard that is missing, truncated or corrupt (named).
        """
        for piece in ahead(self._pieces(block_bytes)):
            yield piece
            for part in (piece[1].indices, piece[1].values):
                advise(part, "MADV_DONTNEED", inward=True)

    def _pieces(self, block_bytes: int) -> Iterator[tuple[int, SparseCodes]]:
        """Blocks of freshly mapped shards, read and checked."""
        for start, entry in self._starts():
            # A mapping of its own: nobody else loses pages, and all of them go with it.
            codes, bounds = self._mapped(entry)
            each = codes.indices.element_size() + codes.values.element_size()
            first = 0
            while first < len(codes):
                limit = bounds[first] + block_bytes // each
                last = max(first + 1, int(np.searchsorted(bounds, limit, side="right")) - 1)
                block = codes[first : min(last, len(codes))]
                for part in (block.indices, block.values):
                    advise(part, "MADV_WILLNEED")
                # So that the pages of values are met by this thread, as those of indices are below.
                advise(block.values, "MADV_POPULATE_READ")
                held = block.indices.numpy()
                if held.size and not 0 <= held.min() <= held.max() < self.num_latents:
                    raise StoreError(
                        f"{self.directory}/{entry.file} is corrupt: rows from {first} hold a latent "
                        f"outside 0..{self.num_latents - 1}"
                    )
                yield start + first, block
                first += len(block)

    def take(self, rows: Any) -> SparseCodes:
        """Return some rows, in the order asked for (repeats allowed), copied; no other row is read.

        Args:
            rows: integers [R], row numbers.

        Raises:
            IndexError: a number is outside 0..N-1.
            StoreError: a shard that is missing, truncated or corrupt (named).
        """
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows run from {rows.min()} to {rows.max()}, outside 0..{len(self) - 1}")
        order = np.argsort(rows, kind="stable")
        wanted, at = rows[order], 0
        parts: list[SparseCodes] = []
        for start, entry in self._starts():
            end = int(np.searchsorted(wanted, start + entry.rows))
            if end > at or not (parts or rows.size):  # of no rows at least the dtypes
                part = self._mapped(entry)[0][wanted[at:end] - start]
                try:
                    part.validate()
                except ValueError as error:
                    raise StoreError(f"{self.directory}/{entry.file} is corrupt: {error}") from error
                parts.append(part)
            at = end
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return SparseCodes.cat(parts)[place]

    def _mapped(self, entry: ShardEntry) -> tuple[SparseCodes, NDArray[np.int64]]:
        """A mapping of a shard's own, whose pages go with it, and its indptr, which is checked."""
        codes, _ = self._read(entry, check=False)
        bounds = codes.indptr.numpy()
        if codes.nnz != bounds[-1] or bounds[0] != 0 or (np.diff(bounds) < 0).any():
            raise StoreError(f"{self.directory}/{entry.file} is corrupt: indptr doesn't rise to nnz")
        return codes, bounds

    def codes(self) -> SparseCodes:
        """Return the codes of all N documents: mapped if there is one shard, else copied into memory."""
        parts = [part for _, part in self.iter_shards()]
        return parts[0] if len(parts) == 1 else SparseCodes.cat(parts)

    def dense(self) -> Tensor:
        """Return the mean-pooled activations, float16 [N,D]: mapped if there is one shard, else copied.

        Raises:
            StoreError: the store holds none.
        """
        parts = [part for _, part in self.iter_dense()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def iter_dense(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the first row, mapped dense vectors [n,D] of one shard).

        Raises:
            StoreError: the store holds none.
        """
        if self.width is None:
            raise StoreError(f"{self.directory} holds no dense vectors; embed again with them kept")
        for start, shard in self._starts():
            dense = self._read(shard, check=False)[1]  # the codes beside them aren't looked at
            if dense is None:
                raise StoreError(f"{self.directory}/{shard.file} lacks its dense vectors")
            yield start, dense

    def stream_dense(self, rows: int) -> Iterator[Tensor]:
        """Yield the dense vectors in order, mapped, at most so many rows of one shard at a time.

        Their pages are given back when the next ones are asked for, so that a pass doesn't fill the memory.

        Raises:
            StoreError: the store holds none.
        """
        for _, dense in self.iter_dense():
            for low in range(0, len(dense), rows):
                yield (block := dense[low : low + rows])
                advise(block, "MADV_DONTNEED", inward=True)

    def labels(self, column: str) -> list[str] | None:
        """Return the N labels that were kept, "" for none; None if they are of another column or of none."""
        found = self.coded_labels(column)
        return None if found is None else list(found)

    def coded_labels(self, column: str) -> CodedStrings | None:
        """Return what ``labels`` does in little memory."""
        if self.facts.get("label_column") != column:
            return None

        def parts() -> Iterator[tuple[list[str], NDArray[np.int32]]]:
            for table in self.table_blocks([LABEL], BLOCK):
                kept = table[LABEL].combine_chunks().dictionary_encode()
                yield kept.dictionary.to_pylist(), np.asarray(kept.indices)

        return CodedStrings(len(self), parts())

    def text_hashes(self) -> list[str | None]:
        """Return ``text_hash`` of the N texts; None where there was none, or it wasn't kept."""
        kept = self.table(["text_hash"])["text_hash"].to_pylist()
        return [None if digest is None else digest.hex() for digest in kept]

    def known(self, name: str) -> KnownRows:
        """Return what its rows, called ``name`` in messages, are known by: ids and checksums of the texts."""
        ids = Strings(self.table(["id"])["id"])
        if not self.has_checksums:
            return KnownRows(ids, name=name)
        return KnownRows(ids, self.table(["text_crc32"])["text_crc32"].to_numpy(), name)

    @property
    def has_checksums(self) -> bool:
        """Whether a checksum of every text is kept."""
        return all("checksums" in entry.notes for entry in self._shards)

    def words(self) -> CountedTexts | None:
        """Return the counts of the N texts' words; None where any shard was written without them."""
        if not all("words" in entry.notes for entry in self._shards):
            return None
        lengths = self.table(["characters"])["characters"].to_numpy()
        return CountedTexts(_StoredWords(self.directory, self._shards), np.asarray(lengths, np.int64))

    def token_counts(self) -> NDArray[np.int64]:
        """Return the number of tokens of each document, int64 [N]; 0 where there was no text."""
        counts = self.table(["n_tokens"])["n_tokens"].fill_null(0).to_numpy()
        return np.asarray(counts, dtype=np.int64)

    def table(self, columns: list[str] | None = None) -> Any:
        """Return the metadata of all rows as a pyarrow table, by the names of its columns.

        These are id, index, n_tokens, place, nnz, characters, text_hash (of ``text_hash``, 16 bytes; null
        where there is no text), text_crc32 (where texts were given), and the columns that were kept.

        Raises:
            StoreError: a table is missing or damaged.
        """
        return self._table(columns)

    def _open(self, number: int) -> tuple[SparseCodes, Tensor | None]:
        return self._read(self._shards[number], check=True)

    def _read(self, entry: ShardEntry, check: bool) -> tuple[SparseCodes, Tensor | None]:
        tensors = map_shard(self.directory, entry, _TENSORS)
        dense = tensors.get("dense")
        try:
            codes = SparseCodes(
                tensors["indptr"], tensors["indices"], tensors["values"], self.num_latents, check=check
            )
            if (len(codes), codes.nnz) != (entry.rows, entry.notes["nnz"]):
                raise ValueError("its shape contradicts the manifest")
            if dense is not None and dense.shape != (entry.rows, self.width):
                raise ValueError("its dense vectors contradict the manifest")
        except ValueError as error:
            raise StoreError(f"{self.directory}/{entry.file} is corrupt: {error}") from error
        return codes, dense


class StoredLengths:
    """The numbers of tokens of a store's documents, N of them, which are read when they are asked for."""

    def __init__(self, store: CodeStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._store.token_counts().astype(dtype or np.int64, copy=False)


class _StoredWords(Sequence[WordCounts]):
    """The counts of words of a store, shard by shard; a shard's pages go when it is no longer looked at."""

    def __init__(self, directory: PathLike, entries: Sequence[ShardEntry]) -> None:
        self._directory, self._entries = directory, entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, number: int) -> WordCounts: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[WordCounts]: ...
    def __getitem__(self, number: int | slice) -> WordCounts | Sequence[WordCounts]:
        if isinstance(number, slice):
            return _StoredWords(self._directory, self._entries[number])
        entry = self._entries[number]
        try:
            found = WordCounts.from_tensors(map_shard(self._directory, entry, TENSORS))
            if (len(found), found.counts.num_latents) != (entry.rows, entry.notes["words"]):
                raise ValueError("its words contradict the manifest")
        except ValueError as error:
            raise StoreError(f"{self._directory}/{entry.file} is corrupt: {error}") from error
        return found

"""Document codes on disk: CSR shards that are memory-mapped, with ids and metadata beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.corpus.known import KnownRows, text_crc32
from finescope.embeddings.words import TENSORS, CountedTexts, WordCounts
from finescope.errors import StoreError
from finescope.storage.files import PathLike
from finescope.storage.identity import text_hash
from finescope.storage.manifest import ShardEntry
from finescope.storage.mapping import advise, ahead
from finescope.storage.shards import id_column, map_shard, printable
from finescope.storage.store import Store, StoreWriter
from finescope.storage.strings import Strings

KIND = "finescope-codes"
_TENSORS = ("indptr", "indices", "values")
_LABEL = "finescope_label"
_OWN = ("id", "index", "n_tokens", "place", "nnz", "characters", "text_hash", "text_crc32", _LABEL)
_OPEN_SHARDS = 64


class CodeStoreWriter(StoreWriter):
    """Writes shards of document codes; a finished shard is never written again.

    Use it as a context manager and call ``finish`` at the end; leaving without it keeps the finished shards.
    """

    def __init__(
        self,
        directory: PathLike,
        num_latents: int,
        *,
        dtype: torch.dtype = torch.float16,
        dense_width: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        mode: str = "resume",
    ) -> None:
        """Open or make the folder.

        Args:
            directory: the folder.
            num_latents: F.
            dtype: of the values: float16 or float32.
            dense_width: D, if a dense vector is kept for every document too.
            fingerprint: what decides the contents, to notice a changed input.
            facts: plain values to keep in the manifest (how the codes were made).
            mode: "resume" or "overwrite".

        Raises:
            StoreError: another run holds the folder, it holds other work, or a finished shard is damaged.
            ValueError: a dtype that isn't stored.
        """
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(f"codes are stored as float16 or float32, not {dtype}")
        self.num_latents, self._dtype, self._dense_width = num_latents, dtype, dense_width
        fixed = {"num_latents": num_latents, "dtype": str(dtype).removeprefix("torch.")}
        fixed["dense_width"] = dense_width
        super().__init__(
            directory, KIND, {**(fingerprint or {}), **fixed}, {**fixed, **(facts or {})}, mode=mode
        )

    def write(
        self,
        codes: SparseCodes,
        ids: Sequence[str],
        *,
        n_tokens: Sequence[int] | None = None,
        places: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        dense: Tensor | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **entry: Any,
    ) -> None:
        """Write n documents as one shard.

        Values that are 0 in the stored dtype are dropped, so that every stored entry is a latent that fired.

        Args:
            codes: n rows over F latents.
            ids: n ids.
            n_tokens: tokens of each document; 0 means that there was no text.
            places: where each row came from.
            texts: n texts, of which the number of characters, a hash, a checksum and the counts of words are
                kept.
            labels: n labels, "" for none; of what column says the fact ``label_column``.
            dense: floating [n,D], as announced by ``dense_width``.
            columns: n values each, kept in the table (labels, for example).
            entry: plain values for the manifest.

        Raises:
            StoreError: a value too large for the dtype, columns that Parquet can't hold, or a full disk.
            ValueError: lengths or widths that don't agree.
        """
        import pyarrow as pa

        n = len(codes)
        given = {"ids": ids, "n_tokens": n_tokens, "places": places, "texts": texts, "labels": labels}
        self._check(codes, dense, given, columns)
        stored = _narrow(codes, self._dtype)
        tensors = {"indptr": stored.indptr, "indices": stored.indices, "values": stored.values}
        if dense is not None:
            half = dense.detach().cpu().to(torch.float16)
            # One dtype for each shard: whoever reads them turns them into wider ones anyway.
            tensors["dense"] = half if bool(torch.isfinite(half).all()) else dense.detach().cpu().float()
        first = self.num_rows
        table = {
            "id": id_column(ids),
            "index": pa.array(range(first, first + n), pa.int64()),
            "n_tokens": pa.array(n_tokens if n_tokens is not None else [None] * n, pa.int64()),
            "place": [printable(place) for place in places] if places is not None else [""] * n,
            "nnz": pa.array(np.diff(stored.indptr.numpy()), pa.int64()),
            "characters": pa.array(map(len, texts) if texts is not None else [None] * n, pa.int64()),
            "text_hash": pa.array(map(_text_hash, texts) if texts is not None else [None] * n, pa.binary(16)),
        }
        if labels is not None:
            table[_LABEL] = pa.array(labels, pa.string()).dictionary_encode()
        for name, values in (columns or {}).items():
            try:
                table[name] = pa.array(list(values))
            except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
                raise StoreError(f"column {name!r} can't be kept beside the codes: {error}") from error
        counts = {"tokens": int(sum(n_tokens or [])), "nnz": stored.nnz}
        if texts is not None:
            table["text_crc32"] = pa.array(map(text_crc32, texts), pa.uint32())
            counts["checksums"] = n
            words = WordCounts.of(texts)
            tensors |= words.tensors()
            counts["words"] = words.counts.num_latents
        self._shards.write(tensors, pa.table(table), {**counts, **entry})

    def _check(
        self,
        codes: SparseCodes,
        dense: Tensor | None,
        given: Mapping[str, Sequence[Any] | None],
        columns: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        n = len(codes)
        if codes.num_latents != self.num_latents:
            raise ValueError(
                f"the store holds codes over {self.num_latents} latents, not {codes.num_latents}"
            )
        for name, values in {**given, **(columns or {})}.items():
            if values is not None and len(values) != n:
                raise ValueError(f"{name} has {len(values)} values for {n} codes")
        reserved = set(_OWN) & set(columns or {})
        if reserved:
            raise ValueError(f"column {sorted(reserved)[0]!r} is the store's own; rename it")
        wanted = None if self._dense_width is None else (n, self._dense_width)
        if (None if dense is None else tuple(dense.shape)) != wanted:
            shown = None if dense is None else list(dense.shape)
            raise ValueError(f"dense vectors must be {wanted}, got {shown}")

    def finish(self, **facts: Any) -> None:
        """Declare the store complete, adding last facts to the manifest.

        Raises:
            StoreError: it holds no row.
        """
        self._finish("no document was added to the code store", **facts)


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
        if self.facts.get("label_column") != column:
            return None
        kept = self.table([_LABEL])[_LABEL].combine_chunks().dictionary_encode()
        names = kept.dictionary.to_pylist()
        return [names[place] for place in kept.indices.to_pylist()]

    def text_hashes(self) -> list[str | None]:
        """Return ``text_hash`` of the N texts; None where there was none, or it wasn't kept."""
        kept = self.table(["text_hash"])["text_hash"].to_pylist()
        return [None if digest is None else digest.hex() for digest in kept]

    def known(self, name: str) -> KnownRows:
        """Return what its rows, called ``name`` in messages, are known by: ids and checksums of the texts."""
        ids = Strings(self.table(["id"])["id"])
        if not all("checksums" in entry.notes for entry in self._shards):
            return KnownRows(ids, name=name)
        return KnownRows(ids, self.table(["text_crc32"])["text_crc32"].to_numpy(), name)

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


def _text_hash(text: str) -> bytes | None:
    return bytes.fromhex(text_hash(text)) if text.strip() else None


def _narrow(codes: SparseCodes, dtype: torch.dtype) -> SparseCodes:
    """Return the codes in the stored dtype, without entries that are 0 in it."""
    values = codes.values.to(dtype)
    if not bool(torch.isfinite(values).all()):
        raise StoreError(f"code values don't fit {dtype}; store them as float32")
    kept = values != 0
    wide = torch.uint16 if codes.num_latents <= 1 << 16 else torch.int32
    if bool(kept.all()):
        return SparseCodes(codes.indptr, codes.indices.to(wide), values, codes.num_latents, check=False)
    before = torch.zeros(kept.numel() + 1, dtype=torch.int64)
    torch.cumsum(kept, dim=0, out=before[1:])
    indices = codes.indices.to(torch.int64)[kept].to(wide)
    return SparseCodes(before[codes.indptr], indices, values[kept], codes.num_latents, check=False)

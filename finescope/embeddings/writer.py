"""Writing document codes: what a shard of them holds, and a store of them shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.corpus.known import text_crc32
from finescope.embeddings.store import KIND, LABEL
from finescope.embeddings.words import WordCounts
from finescope.errors import StoreError
from finescope.ops.checks import all_finite
from finescope.storage.files import PathLike
from finescope.storage.identity import text_hash
from finescope.storage.shards import id_column, printable
from finescope.storage.store import StoreWriter

_OWN = ("id", "index", "n_tokens", "place", "nnz", "characters", "text_hash", "text_crc32", LABEL)


def fixed_facts(num_latents: int, dtype: torch.dtype, dense_width: int | None) -> dict[str, Any]:
    """Return the plain values that every store of codes has, F, the values' dtype and D.

    Raises:
        ValueError: a dtype that isn't stored.
    """
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"codes are stored as float16 or float32, not {dtype}")
    name = str(dtype).removeprefix("torch.")
    return {"num_latents": num_latents, "dtype": name, "dense_width": dense_width}


@dataclass(frozen=True)
class CodeShard:
    """What a shard of a store of codes holds.

    Attributes:
        tensors: CPU tensors by name.
        table: a pyarrow table, one line a document.
        counts: plain values for the manifest.
        width: D of the dense vectors; None if there are none.
    """

    tensors: dict[str, Tensor]
    table: Any
    counts: dict[str, int]
    width: int | None


@dataclass(frozen=True)
class Documents:
    """What is known of n documents beside their codes. All have n entries.

    Attributes:
        ids: of the documents.
        n_tokens: tokens of each; 0 means that there was no text.
        places: where each row came from.
        texts: of which the number of characters, a hash, a checksum and the counts of words are kept.
        labels: "" for none.
        dense: floating [n,D].
        columns: kept in the table as they are.
    """

    ids: Sequence[str]
    n_tokens: Sequence[int] | None = None
    places: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    dense: Tensor | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def check(self, n: int) -> None:
        """Refuse what isn't of n documents.

        Raises:
            ValueError: naming it; or a column that has the name of one of the store's own.
        """
        given = {name: getattr(self, name) for name in ("ids", "n_tokens", "places", "texts", "labels")}
        for name, values in {**given, **self.columns}.items():
            if values is not None and len(values) != n:
                raise ValueError(f"{name} has {len(values)} values for {n} codes")
        reserved = set(_OWN) & set(self.columns)
        if reserved:
            raise ValueError(f"column {sorted(reserved)[0]!r} is the store's own; rename it")
        if self.dense is not None and (self.dense.dim() != 2 or self.dense.shape[0] != n):
            raise ValueError(f"dense vectors must be [{n},D], got {list(self.dense.shape)}")

    def table(self, first: int) -> dict[str, Any]:
        """Return what the store's table says of them; ``first`` is the number of the first.

        Raises:
            StoreError: columns that Parquet can't hold.
        """
        import pyarrow as pa

        n, texts = len(self.ids), self.texts
        unknown = [None] * n
        found = {
            "id": id_column(self.ids),
            "index": pa.array(range(first, first + n), pa.int64()),
            "n_tokens": pa.array(unknown if self.n_tokens is None else self.n_tokens, pa.int64()),
            "place": [""] * n if self.places is None else [printable(place) for place in self.places],
            "nnz": None,  # its place among the columns
            "characters": pa.array(unknown if texts is None else map(len, texts), pa.int64()),
            "text_hash": pa.array(unknown if texts is None else map(_text_hash, texts), pa.binary(16)),
        }
        if self.labels is not None:
            found[LABEL] = pa.array(self.labels, pa.string()).dictionary_encode()
        for name, values in self.columns.items():
            try:
                found[name] = pa.array(list(values))
            except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
                raise StoreError(f"column {name!r} can't be kept beside the codes: {error}") from error
        if texts is not None:
            found["text_crc32"] = pa.array(map(text_crc32, texts), pa.uint32())
        return found


def shard_of_codes(codes: SparseCodes, documents: Documents, *, dtype: torch.dtype, first: int) -> CodeShard:
    """Return what is stored of n documents.

    Args:
        codes: n rows over F latents.
        documents: what is known of them.
        dtype: of the stored values.
        first: number of the first document in the store.

    Raises:
        StoreError: a value too large for the dtype, or columns that Parquet can't hold.
        ValueError: lengths that don't agree.
    """
    import pyarrow as pa

    n, dense = len(codes), documents.dense
    documents.check(n)
    stored = _narrow(codes, dtype)
    tensors = {"indptr": stored.indptr, "indices": stored.indices, "values": stored.values}
    if dense is not None:
        half = dense.detach().cpu().to(torch.float16)
        # One dtype for each shard: whoever reads them turns them into wider ones anyway.
        tensors["dense"] = half if all_finite(half) else dense.detach().cpu().float()
    table = documents.table(first)
    table["nnz"] = pa.array(np.diff(stored.indptr.numpy()), pa.int64())
    counts = {"tokens": int(sum(documents.n_tokens or [])), "nnz": stored.nnz}
    if documents.texts is not None:
        counts["checksums"] = n
        words = WordCounts.of(documents.texts)
        tensors |= words.tensors()
        counts["words"] = words.counts.num_latents
    return CodeShard(tensors, pa.table(table), counts, None if dense is None else int(dense.shape[1]))


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
        self.num_latents, self._dtype, self._dense_width = num_latents, dtype, dense_width
        fixed = fixed_facts(num_latents, dtype, dense_width)
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
        documents = Documents(ids, n_tokens, places, texts, labels, dense, columns or {})
        shard = shard_of_codes(codes, documents, dtype=self._dtype, first=self.num_rows)
        if codes.num_latents != self.num_latents:
            raise ValueError(
                f"the store holds codes over {self.num_latents} latents, not {codes.num_latents}"
            )
        if shard.width != self._dense_width:
            raise ValueError(f"dense vectors must be of width {self._dense_width}, got {shard.width}")
        self._shards.write(shard.tensors, shard.table, {**shard.counts, **entry})

    def finish(self, **facts: Any) -> None:
        """Declare the store complete, adding last facts to the manifest.

        Raises:
            StoreError: it holds no row.
        """
        self._finish("no document was added to the code store", **facts)


def _text_hash(text: str) -> bytes | None:
    return bytes.fromhex(text_hash(text)) if text.strip() else None


def _narrow(codes: SparseCodes, dtype: torch.dtype) -> SparseCodes:
    """Return the codes in the stored dtype, without entries that are 0 in it."""
    values = codes.values.to(dtype)
    if not all_finite(values):
        raise StoreError(f"code values don't fit {dtype}; store them as float32")
    kept = values != 0
    wide = torch.uint16 if codes.num_latents <= 1 << 16 else torch.int32
    if bool(kept.all()):
        return SparseCodes(codes.indptr, codes.indices.to(wide), values, codes.num_latents, check=False)
    before = torch.zeros(kept.numel() + 1, dtype=torch.int64)
    torch.cumsum(kept, dim=0, out=before[1:])
    indices = codes.indices.to(torch.int64)[kept].to(wide)
    return SparseCodes(before[codes.indptr], indices, values[kept], codes.num_latents, check=False)

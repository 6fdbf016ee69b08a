"""Document codes: the SAE's token codes, pooled over each document, in memory or streamed to disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finescope.activations.collect import RowChain
from finescope.activations.store import ActivationStore
from finescope.codes import SparseCodes
from finescope.corpus.reader import Corpus
from finescope.embeddings.pooler import POOLINGS, Encoder, PooledRows, Pooler, ShardBuilder
from finescope.embeddings.store import CodeStore, CodeStoreWriter
from finescope.errors import InputError
from finescope.storage.files import PathLike
from finescope.storage.identity import sha256_tensors

if TYPE_CHECKING:
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row

__all__ = ["POOLINGS", "CodeStore", "embed_rows", "extract_embeddings"]

_CHUNK_CHARACTERS = 1 << 25


def extract_embeddings(
    sae: Encoder,
    activations: Any,
    top_k: int = 100,
    *,
    pooling: str = "mean",
    offsets: Tensor | None = None,
    mask: Tensor | None = None,
    batch_tokens: int = 8192,
) -> SparseCodes:
    """Turn token activations into one sparse code per document.

    Every token is encoded to its K strongest latents; the latents of a document's tokens are pooled, and its
    M strongest are kept. The result has the same bytes for every ``batch_tokens``.

    Args:
        sae: a trained autoencoder of width D.
        activations: a tensor or array [N,S,D]; [B,D] with ``offsets``, or without (every row is a document of
            one token); a list or other iterable of N tensors [T,D]; or an ``ActivationStore``.
        top_k: M, latents kept per document; all that fired if there are fewer.
        pooling: "mean" over all tokens of the document, "max", "sum", "sqrt_mean" or "count".
        offsets: int64 [N+1], with [B,D]: document n holds tokens offsets[n] … offsets[n+1]-1.
        mask: bool [N,S], with [N,S,D]: False for padding.
        batch_tokens: tokens encoded at a time.

    Returns:
        codes [N,F], float32.

    Raises:
        InputError: activations of another width than the SAE's, of a wrong shape, or with NaN or infinities
            (the document is named).
        ValueError: an unknown pooling, or ``top_k`` below 1.
    """
    pooler = Pooler(sae, pooling, top_k, batch_tokens)
    parts: list[PooledRows] = []
    waiting: list[Tensor] = []
    tokens = number = 0
    for document in _documents(activations, offsets, mask):
        if document.dim() != 2 or document.shape[1] != sae.d_in or not document.is_floating_point():
            raise InputError(_wrong_width(sae, document, f"document {number + len(waiting)}"))
        waiting.append(document)
        tokens += document.shape[0]
        if tokens >= batch_tokens:
            parts.append(pooler.documents(waiting, number))
            number += len(waiting)
            waiting, tokens = [], 0
    if waiting:
        parts.append(pooler.documents(waiting, number))
    if not parts:
        return SparseCodes.from_dense(torch.zeros(0, sae.num_latents))
    return SparseCodes.cat([part.codes(sae.num_latents) for part in parts])


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
    dtype: torch.dtype | None = None,
    shard_rows: int = 4096,
    mode: str = "resume",
    progress: Callable[[int, int], None] | None = None,
) -> CodeStore:
    """Embed every row of a corpus into a store of document codes, streaming.

    Activations never reach the disk, and memory doesn't grow with the corpus. A run that was stopped goes on
    after its last finished shard; one that was finished does nothing. Row i of the corpus is row i of the
    store; a row without text has an empty code. A corpus is read through once beforehand, so that a broken
    line near its end is reported before the model has run for hours.

    Args:
        sae: a trained autoencoder of the tap's width.
        tap: model and layer.
        rows: a corpus, or rows.
        directory: the store.
        top_k: M, latents kept per document.
        pooling: as ``extract_embeddings``.
        dense: keep the mean activation vector of each document too, float16 [N,D], for the dense baseline.
        keep_columns: columns of the rows (labels, for example) to keep in the store's table.
        dtype: of stored values; by default float16, and float32 for "sum" and "count", which can outgrow it.
        shard_rows: documents per shard.
        mode: "resume" or "overwrite".
        progress: called with (rows done, tokens done) as documents are finished.

    Raises:
        InputError: an SAE of another width than the layer, bad rows, NaN activations (the document is named).
        StoreError: the folder holds other work, a finished shard is damaged, the corpus changed, or the disk
            is full. Finished shards stay, nothing is half-written.
        ValueError: an unknown pooling, or ``top_k`` or ``shard_rows`` below 1.
    """
    if tap.width != sae.d_in:
        raise InputError(
            f"the SAE reads activations of width {sae.d_in}, but layer {tap.layer!r} gives width "
            f"{tap.width}; use the model and layer that the SAE was trained on"
        )
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")
    pooler = Pooler(sae, pooling, top_k, max(tap.batch_tokens, 8192))
    corpus = rows if isinstance(rows, Corpus) else None
    fingerprint = {
        "corpus": corpus.fingerprint() if corpus is not None else None,
        "tap": tap.fingerprint(),
        "sae": _sae_fingerprint(sae),
        "top_k": top_k,
        "pooling": pooling,
        "columns": list(keep_columns),
    }
    with CodeStoreWriter(
        directory,
        sae.num_latents,
        dtype=dtype or (torch.float32 if pooling in ("sum", "count") else torch.float16),
        dense_width=tap.width if dense else None,
        fingerprint=fingerprint,
        facts={"pooling": pooling, "top_k": top_k, "source": tap.describe()},
        mode=mode,
    ) as writer:
        if writer.complete:
            if corpus is None:
                RowChain().expect(rows, writer.facts)
        else:
            own_ids = True
            if corpus is not None:
                own_ids = (corpus.stats or corpus.scan()).own_ids > 0
            writer.describe(own_ids=own_ids)
            source = iter(corpus.rows(records=bool(keep_columns)) if corpus is not None else rows)
            _embed_all(tap, pooler, source, writer, dense, keep_columns, shard_rows, progress)
    return CodeStore(directory)


def _embed_all(
    tap: ActivationTap,
    pooler: Pooler,
    source: Iterator[Row],
    writer: CodeStoreWriter,
    dense: bool,
    keep_columns: Sequence[str],
    shard_rows: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    chain = RowChain()
    done, tokens = writer.num_rows, writer.num_tokens
    if writer.last_entry is not None:
        chain.skip(source, done, str(writer.last_entry["chain"]))
    for chunk in _shards(source, shard_rows):
        shard = ShardBuilder(pooler, tap.width if dense else None, len(chunk))
        for batch in tap.batches(chunk, chunk_rows=len(chunk)):
            finished = shard.add(batch)
            if progress is not None and finished:
                progress(done + shard.num_done, tokens + shard.num_tokens)
        for row in chunk:
            chain.add(row)
        writer.write(
            shard.codes(),
            [row.id for row in chunk],
            n_tokens=shard.token_counts,
            places=[row.place for row in chunk],
            dense=shard.dense,
            columns={name: [row.record.get(name) for row in chunk] for name in keep_columns},
            chain=chain.value,
        )
        done, tokens = done + len(chunk), tokens + shard.num_tokens
    if done == 0:
        raise InputError("there are no rows to embed")
    writer.finish(rows_read=done, chain=chain.value)


def _shards(rows: Iterator[Row], limit: int) -> Iterator[list[Row]]:
    """Cut rows into shards by number and by characters, so that a shard's token ids fit in memory."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.content)
        if len(chunk) >= limit or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _documents(activations: Any, offsets: Tensor | None, mask: Tensor | None) -> Iterator[Tensor]:
    if isinstance(activations, ActivationStore):
        return (document.activations for document in activations.documents())
    if isinstance(activations, np.ndarray):
        activations = torch.from_numpy(activations)
    if not isinstance(activations, Tensor):
        if offsets is not None or mask is not None:
            raise InputError("offsets go with activations [B,D], a mask with [N,S,D]")
        return (torch.as_tensor(document) for document in activations)
    if activations.dim() == 3 and offsets is None:
        if mask is None:
            return iter(activations.unbind(0))
        if mask.shape != activations.shape[:2]:
            raise InputError(f"the mask has shape {list(mask.shape)}, not {list(activations.shape[:2])}")
        return (document[kept.bool()] for document, kept in zip(activations, mask, strict=True))
    if activations.dim() == 2 and mask is None:
        if offsets is None:
            return (row[None] for row in activations)
        ends = torch.as_tensor(offsets).tolist()
        if not ends or ends[0] != 0 or ends[-1] != activations.shape[0] or sorted(ends) != ends:
            raise InputError(f"offsets must rise from 0 to {activations.shape[0]}, the number of tokens")
        return (activations[low:high] for low, high in itertools.pairwise(ends))
    raise InputError(
        f"activations must be [N,S,D], [B,D] with offsets, or a list of [T,D]; got {list(activations.shape)}"
    )


def _wrong_width(sae: Encoder, document: Tensor, name: str) -> str:
    if document.dim() == 2 and document.is_floating_point():
        return (
            f"the SAE reads activations of width {sae.d_in}, but {name} has width {document.shape[1]}; "
            "use the model and layer that the SAE was trained on"
        )
    return f"{name} has activations {document.dtype} {list(document.shape)}, not floating [T,{sae.d_in}]"


def _sae_fingerprint(sae: Encoder) -> dict[str, Any]:
    if hasattr(sae, "identity"):
        return dict(sae.identity())
    found: dict[str, Any] = {"d_in": sae.d_in, "num_latents": sae.num_latents}
    if hasattr(sae, "state_dict"):
        found["weights"] = sha256_tensors(sae.state_dict())
    config = getattr(sae, "cfg", None)
    if config is not None:
        found["k"] = getattr(config, "k", None)
    return found

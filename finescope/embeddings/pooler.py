"""The two steps of an embedding: tokens to codes by the SAE, token codes to one code per document."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.embeddings.tokens import PaddedTokens, SparseTokens, TokenCodes
from finescope.errors import InputError
from finescope.ops import sparse_matmul
from finescope.ops.checks import REDUCTIONS, all_finite

if TYPE_CHECKING:
    from finescope.activations.batches import ActivationBatch

POOLINGS = REDUCTIONS
"""How token codes become one document code: mean over all tokens, maximum, sum, root of the mean, number of
tokens that hold the latent."""
_PANEL_BYTES = 32 << 20
"""Activations that are held in float64 while they are added up."""


def repool(codes: SparseCodes, stored: str, wanted: str) -> SparseCodes:
    """Return document codes as if pooled another way: mean and sqrt_mean are each other's square and root.

    Keeping the M strongest latents commutes with the root, so only the rounding of the stored values differs.

    Raises:
        ValueError: the two poolings are not related in this way.
    """
    if stored == wanted:
        return codes
    change = {("sqrt_mean", "mean"): np.square, ("mean", "sqrt_mean"): np.sqrt}.get((stored, wanted))
    if change is None:
        raise ValueError(
            f"codes pooled by {stored} can't be turned into {wanted}; embed again with that pooling"
        )
    held = codes.values.detach()
    wide = (held.float() if held.dtype == torch.bfloat16 else held).numpy()  # NumPy has no bfloat16
    # NumPy's root is exact; torch's may be off in the last place, by where in the tensor a number stands.
    values = torch.from_numpy(change(wide.astype(np.float64 if wide.dtype == np.float64 else np.float32)))
    return SparseCodes(codes.indptr, codes.indices, values, codes.num_latents, check=False)


class Encoder(Protocol):
    """What is needed of an SAE."""

    d_in: int
    num_latents: int

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Return the codes [B,F] of activations [B,D].

        Whose codes are of one length has ``encode`` instead or as well, which returns (values [B,K], latents
        [B,K]), as a pair or as ``top_acts`` and ``top_indices``; that is used where there is one.
        """


@dataclass
class PooledRows:
    """Pooled codes of n documents: values [n,M] and latents [n,M], -1 where there is none."""

    values: Tensor
    indices: Tensor

    def codes(self, num_latents: int) -> SparseCodes:
        return SparseCodes.from_padded(self.values, self.indices, num_latents)


class Pooler:
    """Encodes tokens and pools documents.

    Attributes:
        sae: the autoencoder.
        max_norm: tokens of a larger norm are left out; None leaves out none.
    """

    def __init__(
        self, sae: Encoder, pooling: str, top_k: int, batch_tokens: int, max_norm: float | None = None
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self.sae = sae
        self._pooling, self._keep = pooling, min(top_k, sae.num_latents)
        self._batch = batch_tokens
        self.max_norm = max_norm
        parameter = next(iter(sae.parameters()), None) if hasattr(sae, "parameters") else None
        self._device = parameter.device if parameter is not None else None

    @torch.no_grad()
    def encode(self, activations: Tensor) -> TokenCodes:
        """Return the codes of activations [B,D], where the SAE lies."""
        parts: list[Any] = []
        for part in activations.split(self._batch):  # type: ignore[no-untyped-call]
            rows = part.to(self._device) if self._device is not None else part
            encode = getattr(self.sae, "encode", None)
            if encode is None:
                parts.append(SparseTokens(self.sae.encode_sparse(rows)))
                continue
            encoded = encode(rows)
            top = (encoded.top_acts, encoded.top_indices) if hasattr(encoded, "top_acts") else encoded
            parts.append(PaddedTokens(top[0].detach(), top[1].detach()))
        first: TokenCodes = parts[0]
        return first.joined(parts[1:]) if parts[1:] else first

    def pool(self, tokens: TokenCodes | None, offsets: Tensor) -> PooledRows:
        """Pool token codes where they lie, by offsets [n+1]; None are no tokens."""
        if tokens is None:
            tokens = PaddedTokens(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64))
        return PooledRows(*tokens.pool(offsets, self._pooling, self._keep))

    def documents(self, documents: list[Tensor], first: int) -> PooledRows:
        """Encode and pool whole documents [T,D]; ``first`` is the number of the first, for errors."""
        lengths = [document.shape[0] for document in documents]
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64)
        tokens = torch.cat(documents)
        if not all_finite(tokens):
            token = int((~torch.isfinite(tokens).all(dim=1)).nonzero()[0])
            number = int(torch.searchsorted(offsets, token, right=True)) - 1
            raise InputError(
                f"document {first + number} has NaN or infinite activations at token "
                f"{token - int(offsets[number])}; leave it out, or read it again in float32"
            )
        if self.max_norm is not None:
            from finescope.activations.batches import (
                within,  # the model's side: not for who leaves out nothing
            )

            kept = within(tokens, self.max_norm)
            tokens = tokens[kept]
            offsets = torch.cat([offsets[:1], kept.cpu().cumsum(dim=0)])[offsets]
        return self.pool(self.encode_checked(tokens), offsets)

    def encode_checked(self, tokens: Tensor) -> TokenCodes | None:
        """Encode activations [B,D] that are known to be finite; None of no tokens.

        Raises:
            InputError: the codes aren't finite, so the SAE is broken.
        """
        if tokens.shape[0] == 0:
            return None
        codes = self.encode(tokens)
        if not codes.finite():
            raise InputError(
                "the SAE gives NaN or infinite codes for finite activations; its weights are broken"
            )
        return codes


def sums_by(offsets: Sequence[int], activations: Tensor) -> Tensor:
    """Return the sums float64 [n,D] of runs of activations [B,D], by offsets [n+1], on the CPU.

    Of each run one token after the other, so that nothing else has a say in the bytes.
    """
    at_once = max(1, _PANEL_BYTES // (8 * activations.shape[1]))
    parts, low = [torch.zeros(0, activations.shape[1], dtype=torch.float64)], 0
    while low < len(offsets) - 1:
        high = max(low + 1, bisect.bisect_right(offsets, offsets[low] + at_once) - 1)
        panel = activations[offsets[low] : offsets[high]].double()
        count = len(panel)
        runs = SparseCodes(
            torch.tensor(offsets[low : high + 1], device=panel.device) - offsets[low],
            torch.arange(count, dtype=torch.int32, device=panel.device),
            torch.ones(count, device=panel.device),
            max(1, count),
            check=False,
        )
        parts.append(sparse_matmul(runs, panel if count else panel.new_zeros(1, panel.shape[1])).cpu())
        low = high
    return torch.cat(parts)


class ShardBuilder:
    """Collects the codes of one shard's documents as batches of windows come in, in any order.

    Attributes:
        token_counts: tokens of each document.
        sink_counts: how many of them were left out.
        num_done: documents that are finished.
        num_tokens: tokens of all documents.
        aside: by the place of a document that is set aside, why; its code is empty.
        new: places of the documents that were finished since the last piece.
        dense: [rows,D], means of activations, or None.
    """

    def __init__(self, pooler: Pooler, dense_width: int | None, rows: int) -> None:
        self._pooler = pooler
        self._rows: list[tuple[Tensor, Tensor] | None] = [None] * rows
        self._pieces: dict[int, dict[int, TokenCodes | None]] = {}
        self._sums: dict[int, dict[int, tuple[int, Tensor]]] = {}
        self.token_counts = [0] * rows
        self.sink_counts = [0] * rows
        self.num_done = self.num_tokens = 0
        self.aside: dict[int, str] = {}
        self.new: list[int] = []
        self.dense = None if dense_width is None else torch.zeros(rows, dense_width)

    def add(self, batch: ActivationBatch, places: Sequence[int] | None = None) -> int:
        """Take a batch; return how many documents it finished.

        Sinks count as tokens of their documents, and in nothing else.

        Args:
            batch: windows of documents.
            places: places in the shard of the documents, by their ``index``; by default that is the place.
        """
        read = batch.offsets
        if self._pooler.max_norm is not None:
            batch = batch.without_sinks(self._pooler.max_norm)
        codes = self._pooler.encode_checked(batch.activations)
        sums = None if self.dense is None else sums_by(batch.offsets, batch.activations)
        before = self.num_done
        self.num_tokens += read[-1]
        whole: list[int] = []
        spans: list[tuple[int, int]] = []
        for number, (document, part) in enumerate(zip(batch.documents, batch.parts, strict=True)):
            low, high = batch.offsets[number], batch.offsets[number + 1]
            place = document.index if places is None else places[document.index]
            if document.bad:
                self.set_aside(place, document.bad)
                continue
            if sums is not None:
                self._add_dense(place, document.parts, part, high - low, sums[number])
            tokens = read[number + 1] - read[number]
            self.token_counts[place] += tokens
            self.sink_counts[place] += tokens - (high - low)
            if document.parts == 1:
                whole.append(place)
                spans.append((low, high))
                continue
            pieces = self._pieces.setdefault(place, {})
            # A long document must not fill the device until its last window has come.
            pieces[part] = None if codes is None else codes.rows(low, high).kept()
            if len(pieces) == document.parts:
                ordered = [pieces[position] for position in range(document.parts)]
                del self._pieces[place]
                self._pool([place], [part for part in ordered if part is not None])
        if whole:
            parts = [] if codes is None else [codes.rows(low, high) for low, high in spans]
            self._pool(whole, parts, ragged=True)
        return self.num_done - before

    def set_aside(self, place: int, reason: str) -> None:
        """Forget what is known of a document. It is in no piece, so that whoever resumes finds it again."""
        if place in self.aside:
            return
        self.aside[place] = reason
        for held in (self._pieces, self._sums):
            held.pop(place, None)
        self.token_counts[place] = self.sink_counts[place] = 0
        self._rows[place] = (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        self.num_done += 1

    def _pool(self, documents: list[int], parts: list[TokenCodes], *, ragged: bool = False) -> None:
        """Pool parts into documents: one document each if ``ragged``, else all into the one document."""
        lengths = [len(part) for part in parts] if ragged else [sum(len(part) for part in parts)]
        if ragged and not parts:
            lengths = [0] * len(documents)
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64)
        tokens = parts[0].joined(parts[1:]) if parts else None
        pooled = self._pooler.pool(tokens, offsets)
        for row, index in enumerate(documents):
            kept = pooled.indices[row] >= 0
            self._rows[index] = (pooled.values[row][kept], pooled.indices[row][kept])
        self.new += documents
        self.num_done += len(documents)

    def _add_dense(self, index: int, parts: int, part: int, tokens: int, total: Tensor) -> None:
        """Take the sum [D] of the activations of a document's window."""
        assert self.dense is not None
        if parts == 1:
            self.dense[index] = total / max(1, tokens)
            return
        sums = self._sums.setdefault(index, {})
        sums[part] = (tokens, total.clone())  # a view would keep the batch's
        if len(sums) == parts:
            # In the order of the windows: float64 sums, too, depend on their order.
            whole = sums_by([0, parts], torch.stack([sums[position][1] for position in range(parts)]))[0]
            self.dense[index] = whole / max(1, sum(count for count, _ in sums.values()))
            del self._sums[index]

    def piece(self) -> dict[str, Tensor]:
        """Return the documents that were finished since the last piece, n of them, for ``take_back``."""
        rows = [row for row in map(self._rows.__getitem__, self.new) if row is not None]
        tensors = {
            "places": torch.tensor(self.new, dtype=torch.int64),
            "tokens": torch.tensor([self.token_counts[place] for place in self.new], dtype=torch.int64),
            "sinks": torch.tensor([self.sink_counts[place] for place in self.new], dtype=torch.int64),
            "lengths": torch.tensor([indices.numel() for _, indices in rows], dtype=torch.int64),
            "values": torch.cat([values for values, _ in rows]),
            "indices": torch.cat([indices for _, indices in rows]),
        }
        if self.dense is not None:
            tensors["dense"] = self.dense[self.new]
        self.new = []
        return tensors

    def take_back(self, piece: Mapping[str, Tensor]) -> list[int]:
        """Take documents of an earlier run; return their places."""
        places: list[int] = piece["places"].tolist()
        lengths = piece["lengths"].tolist()
        values, indices = piece["values"].split(lengths), piece["indices"].split(lengths)  # type: ignore[no-untyped-call]
        counts = zip(piece["tokens"].tolist(), piece["sinks"].tolist(), strict=True)
        for place, (tokens, sinks), *row in zip(places, counts, values, indices, strict=True):
            self._rows[place] = (row[0].clone(), row[1].clone())
            self.token_counts[place], self.sink_counts[place] = tokens, sinks
            self.num_tokens += tokens
        if self.dense is not None:
            self.dense[places] = piece["dense"]
        self.num_done += len(places)
        return places

    def codes(self) -> SparseCodes:
        """Return the codes of all documents of the shard."""
        rows = [row for row in self._rows if row is not None]
        if len(rows) != len(self._rows):
            raise RuntimeError(f"{len(self._rows) - len(rows)} documents of the shard were never read")
        lengths = [row[1].numel() for row in rows]
        num_latents = self._pooler.sae.num_latents
        return SparseCodes(
            torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64),
            torch.cat([row[1] for row in rows]).to(torch.int32),
            torch.cat([row[0] for row in rows]),
            num_latents,
        )

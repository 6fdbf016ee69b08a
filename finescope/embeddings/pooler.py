"""The two steps of an embedding: tokens to codes by the SAE, token codes to one code per document."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.errors import InputError
from finescope.ops import pool_codes
from finescope.ops.checks import REDUCTIONS

if TYPE_CHECKING:
    from finescope.activations.tap import ActivationBatch

POOLINGS = REDUCTIONS
"""How token codes become one document code: mean over all tokens, maximum, sum, root of the mean, number of
tokens that hold the latent."""


class Encoder(Protocol):
    """What is needed of an SAE."""

    d_in: int
    num_latents: int

    def encode(self, x: Tensor) -> Any:
        """Return (values [B,K], latents [B,K]) of activations [B,D], as a pair or with these names."""


@dataclass
class PooledRows:
    """Pooled codes of n documents: values [n,M] and latents [n,M], -1 where there is none."""

    values: Tensor
    indices: Tensor

    def codes(self, num_latents: int) -> SparseCodes:
        return SparseCodes.from_padded(self.values, self.indices, num_latents)


class Pooler:
    """Encodes tokens and pools documents."""

    def __init__(self, sae: Encoder, pooling: str, top_k: int, batch_tokens: int) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self.sae = sae
        self._pooling, self._keep = pooling, min(top_k, sae.num_latents)
        self._batch = batch_tokens
        parameter = next(iter(sae.parameters()), None) if hasattr(sae, "parameters") else None
        self._device = parameter.device if parameter is not None else None

    @torch.no_grad()
    def encode(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [B,K] and latents [B,K] of activations [B,D], where the SAE lies."""
        values, indices = [], []
        for part in activations.split(self._batch):  # type: ignore[no-untyped-call]
            encoded = self.sae.encode(part.to(self._device) if self._device is not None else part)
            top = (encoded.top_acts, encoded.top_indices) if hasattr(encoded, "top_acts") else encoded
            values.append(top[0].detach())
            indices.append(top[1].detach())
        return torch.cat(values), torch.cat(indices)

    def pool(self, values: Tensor, indices: Tensor, offsets: Tensor) -> PooledRows:
        """Pool token codes [B,K] where they lie, by offsets [n+1]; the documents' codes come to the CPU."""
        offsets = offsets.to(values.device)
        pooled = pool_codes(values, indices, offsets, reduce=self._pooling, keep=self._keep)
        return PooledRows(*(side.cpu() for side in pooled))

    def documents(self, documents: list[Tensor], first: int) -> PooledRows:
        """Encode and pool whole documents [T,D]; ``first`` is the number of the first, for errors."""
        lengths = [document.shape[0] for document in documents]
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64)
        tokens = torch.cat(documents)
        finite = torch.isfinite(tokens).all(dim=1)
        if not bool(finite.all()):
            token = int((~finite).nonzero()[0])
            number = int(torch.searchsorted(offsets, token, right=True)) - 1
            raise InputError(
                f"document {first + number} has NaN or infinite activations at token "
                f"{token - int(offsets[number])}; leave it out, or read it again in float32"
            )
        values, indices = self.encode_checked(tokens)
        return self.pool(values, indices, offsets)

    def encode_checked(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode activations [B,D] that are known to be finite.

        Raises:
            InputError: the codes aren't finite, so the SAE is broken.
        """
        if tokens.shape[0] == 0:
            return torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64)
        values, indices = self.encode(tokens)
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                "the SAE gives NaN or infinite codes for finite activations; its weights are broken"
            )
        return values, indices


class ShardBuilder:
    """Collects the codes of one shard's documents as batches of windows come in, in any order."""

    def __init__(self, pooler: Pooler, dense_width: int | None, rows: int) -> None:
        self._pooler = pooler
        self._rows: list[tuple[Tensor, Tensor] | None] = [None] * rows
        self._pieces: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._sums: dict[int, dict[int, Tensor]] = {}
        self.token_counts = [0] * rows
        self.num_done = self.num_tokens = 0
        self.dense = None if dense_width is None else torch.zeros(rows, dense_width)

    def add(self, batch: ActivationBatch) -> int:
        """Take a batch; return how many documents it finished."""
        values, indices = self._pooler.encode_checked(batch.activations)
        before = self.num_done
        whole: list[int] = []
        spans: list[tuple[int, int]] = []
        for number, (document, part) in enumerate(zip(batch.documents, batch.parts, strict=True)):
            low, high = batch.offsets[number], batch.offsets[number + 1]
            self._add_dense(document.index, document.parts, part, batch.activations[low:high])
            self.token_counts[document.index] += high - low
            self.num_tokens += high - low
            if document.parts == 1:
                whole.append(document.index)
                spans.append((low, high))
                continue
            pieces = self._pieces.setdefault(document.index, {})
            # A long document must not fill the device until its last window has come.
            pieces[part] = (values[low:high].to("cpu", copy=True), indices[low:high].to("cpu", copy=True))
            if len(pieces) == document.parts:
                ordered = [
                    pieces[position] for position in range(document.parts) if pieces[position][0].numel()
                ]
                del self._pieces[document.index]
                self._pool([document.index], ordered)
        if whole:
            self._pool(whole, [(values[low:high], indices[low:high]) for low, high in spans], ragged=True)
        return self.num_done - before

    def _pool(
        self, documents: list[int], parts: list[tuple[Tensor, Tensor]], *, ragged: bool = False
    ) -> None:
        """Pool parts into documents: one document each if ``ragged``, else all into the one document."""
        lengths = (
            [part[0].shape[0] for part in parts] if ragged else [sum(part[0].shape[0] for part in parts)]
        )
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int64)
        values = torch.cat([part[0] for part in parts]) if parts else torch.zeros(0, 1)
        indices = torch.cat([part[1] for part in parts]) if parts else torch.zeros(0, 1, dtype=torch.int64)
        pooled = self._pooler.pool(values, indices, offsets)
        for row, index in enumerate(documents):
            kept = pooled.indices[row] >= 0
            self._rows[index] = (pooled.values[row][kept], pooled.indices[row][kept])
        self.num_done += len(documents)

    def _add_dense(self, index: int, parts: int, part: int, activations: Tensor) -> None:
        if self.dense is None:
            return
        sums = self._sums.setdefault(index, {})
        sums[part] = activations.double().sum(dim=0).cpu()
        if len(sums) == parts:
            # In the order of the windows: float64 sums, too, depend on their order.
            total = torch.stack([sums[position] for position in range(parts)]).sum(dim=0)
            tokens = self.token_counts[index] + activations.shape[0]
            self.dense[index] = total / max(1, tokens)
            del self._sums[index]

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

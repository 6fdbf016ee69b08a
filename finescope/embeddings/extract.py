"""Document codes in memory: the SAE's token codes, pooled over each document."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.activations.store import ActivationStore
from finescope.codes import SparseCodes
from finescope.embeddings.pooler import Encoder, PooledRows, Pooler
from finescope.errors import InputError


def extract_embeddings(
    sae: Encoder,
    activations: Any,
    top_k: int = 100,
    *,
    pooling: str = "mean",
    offsets: Tensor | None = None,
    mask: Tensor | None = None,
    max_norm: float | None = None,
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
        max_norm: tokens of a larger norm are left out: attention sinks, see ``finescope.activations.sinks``.
        batch_tokens: tokens encoded at a time.

    Returns:
        codes [N,F], float32.

    Raises:
        InputError: activations of another width than the SAE's, of a wrong shape, or with NaN or infinities
            (the document is named).
        ValueError: an unknown pooling, or ``top_k`` below 1.
    """
    pooler = Pooler(sae, pooling, top_k, batch_tokens, max_norm)
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

"""Token codes to document codes: the default body of ``pool_codes``, and the same of codes in CSR form."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks
from finescope.ops.fixed_order import sqrt
from finescope.ops.registry import default

# Entries (tokens × k) that are sorted at a time; a single longer document makes a longer block.
_BLOCK_ENTRIES = 1 << 20


def _segments(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """Number the runs of equal keys. Returns the run of each entry, and the first entry of each run."""
    change = torch.zeros(keys[0].shape[0], dtype=torch.bool, device=keys[0].device)
    change[:1] = True
    for key in keys:
        change[1:] |= key[1:] != key[:-1]
    return change.cumsum(0) - 1, change.nonzero().squeeze(1)


def _sums(values: Tensor, segment: Tensor, count: int) -> Tensor:
    # On the CPU a one-dimensional index_add_ adds one entry after the other, so the order is that of the
    # tokens.
    return torch.zeros(count, dtype=torch.float64, device=values.device).index_add_(0, segment, values)


def _pool(
    document: Tensor, token: Tensor, latent: Tensor, value: Tensor, lengths: Tensor, reduce: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce entries in token order to one value for each (document, latent), sorted by both."""
    number, width = latent, int(latent.amax()) + 1 if latent.numel() else 1
    if width >= 1 << 32:  # too wide for one key: number the latents that occur
        occurring, number = torch.unique(latent, return_inverse=True)
        width = occurring.shape[0]
    order = torch.argsort(document * width + number, stable=True)
    document, token, latent, value = document[order], token[order], latent[order], value[order]
    segment, first = _segments(document, latent)
    if reduce in ("max", "count"):
        # Latents that a token holds twice count once, with the sum of their values.
        part, start = _segments(document, latent, token)
        value, segment = _sums(value, part, start.shape[0]), segment[start]
    if reduce == "max":
        high, low = (torch.zeros(first.shape[0], dtype=torch.float64, device=value.device) for _ in range(2))
        high.scatter_reduce_(0, segment, value, "amax")
        low.scatter_reduce_(0, segment, value, "amin")  # signed codes: the one of the largest size
        pooled = torch.where(-low > high, low, high)
    elif reduce == "count":
        pooled = _sums(torch.ones_like(value), segment, first.shape[0])
    else:
        pooled = _sums(value, segment, first.shape[0])
    document, latent = document[first], latent[first]
    if reduce in ("mean", "sqrt_mean"):
        pooled /= lengths[document]
    return document, latent, sqrt(pooled.abs()) * pooled.sign() if reduce == "sqrt_mean" else pooled


def _rank(document: Tensor, documents: int) -> Tensor:
    """The place of each entry inside its document, for entries sorted by document."""
    starts = torch.searchsorted(document, torch.arange(documents, device=document.device))
    return torch.arange(document.shape[0], device=document.device) - starts[document]


@default("pool_codes", cpu_only=True)
def _pool_codes(
    values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int
) -> tuple[Tensor, Tensor]:
    checks.pool_codes(values, indices, offsets, reduce, keep)
    checks.offsets_in_order(offsets, values.shape[0])
    offsets = offsets.contiguous()
    documents, k = offsets.shape[0] - 1, values.shape[1]
    out = torch.zeros((documents, keep), dtype=torch.float32)
    latents = torch.full((documents, keep), -1, dtype=torch.int64)
    lengths = offsets.diff()
    block = max(1, _BLOCK_ENTRIES // max(1, k))
    first = 0
    while first < documents:
        # As many whole documents as fit, and at least one.
        last = int(torch.searchsorted(offsets, offsets[first] + block, right=True)) - 1
        last = min(max(last, first + 1), documents)
        tokens = slice(int(offsets[first]), int(offsets[last]))
        held = (values[tokens] > 0) & values[tokens].isfinite()
        token, slot = held.nonzero(as_tuple=True)
        latent = indices[tokens][token, slot]
        if latent.numel() and int(latent.amin()) < 0:
            raise IndexError(f"indices holds {int(latent.amin())} with a positive value; latents start at 0")
        document = torch.searchsorted(offsets[first : last + 1], token + tokens.start, right=True) - 1
        value = values[tokens][token, slot].double()
        entries = _pool(document, token, latent, value, lengths[first:last], reduce)
        _store(*entries, out[first:last], latents[first:last])
        first = last
    return out, latents


def _store(document: Tensor, latent: Tensor, pooled: Tensor, out: Tensor, latents: Tensor) -> None:
    """Write the strongest entries of every document, as many as there is room for, in ascending latents."""
    documents, keep = out.shape
    strong = torch.argsort(pooled.abs(), descending=True, stable=True)
    strong = strong[torch.argsort(document[strong], stable=True)]
    strong = strong[_rank(document[strong], documents) < keep]
    strong = torch.sort(strong).values  # back to ascending documents and latents
    document, place = document[strong], _rank(document[strong], documents)
    out[document, place] = pooled[strong].float()
    latents[document, place] = latent[strong]


def pool_sparse(codes: SparseCodes, offsets: Tensor, reduce: str, keep: int) -> tuple[Tensor, Tensor]:
    """Do what ``pool_codes`` does with token codes [B,F] of any number of latents per token, on the CPU.

    Codes may be negative: those are added up with their signs, and strong is what is large in size.

    Args:
        codes: [B,F].
        offsets: int64 [N+1], from 0 to B.
        reduce: see ``pool_codes``.
        keep: M.
    """
    checks.pool_options(offsets, reduce, keep)
    checks.offsets_in_order(offsets, len(codes))
    documents = offsets.shape[0] - 1
    out = torch.zeros((documents, keep), dtype=torch.float32)
    latents = torch.full((documents, keep), -1, dtype=torch.int64)
    lengths, starts = offsets.diff(), codes.indptr[offsets]  # of every document, in tokens and in entries
    first = 0
    while first < documents:
        last = int(torch.searchsorted(starts, starts[first] + _BLOCK_ENTRIES, right=True)) - 1
        last = min(max(last, first + 1), documents)
        entries = slice(int(starts[first]), int(starts[last]))
        value = codes.values[entries].double()
        held = value.isfinite() & (value != 0)
        place = held.nonzero().squeeze(1) + entries.start
        token = torch.searchsorted(codes.indptr, place, right=True) - 1
        document = torch.searchsorted(starts[first : last + 1], place, right=True) - 1
        latent = codes.indices[place].to(torch.int64)
        pooled = _pool(document, token, latent, value[held], lengths[first:last], reduce)
        _store(*pooled, out[first:last], latents[first:last])
        first = last
    return out, latents

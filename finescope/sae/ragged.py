"""Codes with any number of latents per token: from padded rows, and through the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import sparse_decode

# Rows of codes are padded to a power of two of at least this, so that most batches take few calls.
_NARROWEST = 16


def from_rows(values: Tensor, indices: Tensor, num_latents: int) -> SparseCodes:
    """Return codes of padded rows in any order; entries of 0 are dropped, NaN are kept.

    Args:
        values: [B,K].
        indices: int64 [B,K], each latent once in a row.
        num_latents: F.
    """
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    kept = values != 0
    indptr = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(kept.sum(1), 0, out=indptr[1:])
    return SparseCodes(indptr, indices[kept].to(torch.int32), values[kept], num_latents, check=False)


def positive(codes: SparseCodes) -> SparseCodes:
    """Return codes without the entries that are not positive; NaN stay."""
    return chosen(codes, ~(codes.values <= 0))


def chosen(codes: SparseCodes, kept: Tensor) -> SparseCodes:
    """Return codes with some of their entries: those where ``kept``, bool [nnz], is true."""
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    return SparseCodes(
        before[codes.indptr], codes.indices[kept], codes.values[kept], codes.num_latents, check=False
    )


def strongest(codes: SparseCodes, k: int) -> SparseCodes:
    """Return the k largest entries of every row; of equal ones those of the lower latents."""
    lengths = codes.indptr.diff()
    if not len(codes) or int(lengths.max()) <= k:
        return codes
    row = torch.repeat_interleave(torch.arange(len(codes), device=lengths.device), lengths)
    order = codes.values.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    rank = torch.arange(codes.nnz, device=lengths.device) - codes.indptr[row]
    kept = torch.zeros(codes.nnz, dtype=torch.bool, device=lengths.device)
    kept[order[rank < k]] = True
    return chosen(codes, kept)


def decode_codes(codes: SparseCodes, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``sparse_decode`` of codes [B,F]: in ascending order of the latents, for any number of them.

    Rows of like length are decoded together, padded to a power of two: less than twice the entries there are.

    Args:
        codes: on the device of the weights.
        weight: decoder rows [F,D].
        bias: [D], or None.
    """
    out = torch.empty(len(codes), weight.shape[1], dtype=weight.dtype, device=weight.device)
    starts, lengths = codes.indptr[:-1], codes.indptr.diff()
    longest = int(lengths.max()) if len(codes) else 0
    low, width = -1, _NARROWEST
    while low < longest:
        rows = ((lengths > low) & (lengths <= width)).nonzero().squeeze(1)
        if len(rows):
            values, indices = padded(codes, starts[rows], lengths[rows], width)
            out[rows] = sparse_decode(values, indices, weight, bias)
        low, width = width, 2 * width
    return out


def padded(codes: SparseCodes, starts: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return rows of codes as values [R,width] and latents int64 [R,width], 0 and 0 behind their ends."""
    slots = torch.arange(width, device=starts.device)
    held = slots < lengths[:, None]
    places = torch.where(held, starts[:, None] + slots, 0)
    if not codes.nnz:
        return codes.values.new_zeros(places.shape), torch.zeros_like(places)
    values = torch.where(held, codes.values[places], 0)
    return values, torch.where(held, codes.indices[places].to(torch.int64), 0)

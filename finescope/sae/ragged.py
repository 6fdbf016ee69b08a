"""Codes with any number of latents per token: from padded rows, in parts, and through the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import sparse_decode

# Rows of codes are padded to a power of two of at least this, so that most batches take few calls.
_NARROWEST = 16
PAIRS = 1 << 19
"""Pairs of a token and a latent that are sorted at a time, in a few MiB."""
_FIRST_ROWS = 64


def top_rows(
    rows: Tensor, k: int, num_latents: int, top: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> SparseCodes:
    """Return the codes of rows [B,D] by a function that gives K values and latents of each.

    A block [B,K] of these takes more room than the codes do, so few rows are looked at together where K is
    large, and what is found of them is put where all of it will lie.

    Args:
        rows: [B,D].
        k: how many pairs of a token and a latent one row counts for.
        num_latents: F.
        top: gives values and latents [b,K] of rows [b,D].
    """
    tall = max(1, PAIRS // (4 * k))
    if len(rows) <= tall:
        return from_rows(*top(rows), num_latents)
    indptr = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
    room: list[_Room] = []
    for first in range(0, len(rows), tall):
        values, indices = top(rows[first : first + tall])
        codes = from_rows(values, indices, num_latents)
        if not room:
            most = len(rows) * values.shape[1]
            room = [_Room(most, codes.indices), _Room(most, codes.values)]
        last = first + len(codes)
        torch.add(codes.indptr[1:], indptr[first], out=indptr[first + 1 : last + 1])
        room[0].add(codes.indices)
        room[1].add(codes.values)
    latents, acts = (held.filled() for held in room)
    return SparseCodes(indptr, latents, acts, num_latents, check=False)


class _Room:
    """Room for the parts of a tensor of which only the largest size is known.

    In the CPU's memory what isn't written to takes none, and what is left over at the end is given back in
    place: to put parts together, or to copy the beginning of a larger tensor, would hold all of it twice.
    """

    def __init__(self, most: int, like: Tensor):
        self._like, self._used = like[:0].clone(), 0
        self._bytes = np.empty(most * like.element_size(), np.uint8) if like.device.type == "cpu" else None
        self._tensor = like.new_empty(most if self._bytes is None else 0)

    def add(self, part: Tensor) -> None:
        """Take the next part."""
        whole = self._tensor if self._bytes is None else self._of(self._bytes)
        whole[self._used : self._used + len(part)] = part
        self._used += len(part)

    def filled(self) -> Tensor:
        """Return all parts, one after the other; there is no more room then."""
        if self._bytes is None:
            kept = self._tensor[: self._used]
            return kept if self._used == len(self._tensor) else kept.clone()
        self._bytes.resize(self._used * self._like.element_size(), refcheck=False)  # nobody else looks at it
        return self._of(self._bytes)

    def _of(self, held: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(held).view(self._like.dtype)


def from_rows(values: Tensor, indices: Tensor, num_latents: int) -> SparseCodes:
    """Return codes of padded rows in any order; entries of 0 are dropped, NaN are kept.

    Args:
        values: [B,K].
        indices: int64 [B,K], each latent once in a row.
        num_latents: F.
    """
    held = (values != 0).sum(1)
    indptr = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(held, 0, out=indptr[1:])
    room = int(indptr[-1])
    latents = torch.empty(room, dtype=torch.int32, device=values.device)
    acts = values.new_empty(room)
    tall = max(1, PAIRS // max(1, values.shape[1]))
    for first in range(0, len(values), tall):
        rows = slice(first, first + tall)
        ascending, order = indices[rows].sort(dim=1)
        sorted_values = values[rows].gather(1, order)
        kept = sorted_values != 0
        place = slice(int(indptr[first]), int(indptr[min(first + tall, len(values))]))
        latents[place], acts[place] = ascending[kept].to(torch.int32), sorted_values[kept]
    return SparseCodes(indptr, latents, acts, num_latents, check=False)


def in_parts(
    rows: Tensor,
    num_latents: int,
    encode: Callable[[Tensor], SparseCodes],
    choose: Callable[[SparseCodes], SparseCodes],
) -> SparseCodes:
    """Return ``choose(encode(rows))`` without holding all that is not chosen.

    Args:
        rows: [B,D].
        num_latents: F.
        encode: gives codes of rows; a token's are the same among any others.
        choose: leaves some entries of codes out.
    """
    parts: list[SparseCodes] = []
    found = first = 0
    tall = max(1, min(_FIRST_ROWS, PAIRS // max(1, num_latents)))
    while first < len(rows) or not parts:
        codes = encode(rows[first : first + tall])
        parts.append(choose(codes))
        first, found = first + tall, found + codes.nnz
        tall = max(1, PAIRS // 2 * first // max(1, found))
    return SparseCodes.cat(parts)


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
    starts, lengths = codes.indptr[:-1], codes.indptr.diff()
    long = (lengths > k).nonzero().squeeze(1)
    if not len(long):
        return codes
    width = int(lengths.max())
    slots = torch.arange(width, device=lengths.device)
    kept = torch.ones(codes.nnz, dtype=torch.bool, device=lengths.device)
    for rows in long.split(max(1, PAIRS // (8 * width))):  # type: ignore[no-untyped-call]
        values, _ = padded(codes, starts[rows], lengths[rows], width, empty=-math.inf)
        least = values.topk(k, dim=1).values[:, -1:]
        above, ties = values > least, values == least
        best = above | (ties & (ties.cumsum(1) <= k - above.sum(1, keepdim=True)))
        held = slots < lengths[rows, None]
        kept[(starts[rows, None] + slots)[held]] = best[held]
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
        alike = ((lengths > low) & (lengths <= width)).nonzero().squeeze(1)
        tall = max(1, 4 * PAIRS // width)
        for first in range(0, len(alike), tall):
            rows = alike[first : first + tall]
            values, indices = padded(codes, starts[rows], lengths[rows], width)
            out[rows] = sparse_decode(values, indices, weight, bias)
        low, width = width, 2 * width
    return out


def padded(
    codes: SparseCodes, starts: Tensor, lengths: Tensor, width: int, *, empty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return rows of codes as values [R,width] and latents int64 [R,width], ``empty`` and 0 behind their
    ends."""
    slots = torch.arange(width, device=starts.device)
    held = slots < lengths[:, None]
    places = torch.where(held, starts[:, None] + slots, 0)
    if not codes.nnz:
        return codes.values.new_zeros(places.shape), torch.zeros_like(places)
    values = torch.where(held, codes.values[places], empty)
    return values, torch.where(held, codes.indices[places].to(torch.int64), 0)

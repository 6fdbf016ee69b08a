"""Pairs of a token and a latent: codes in training, any number of latents per token, and their gradients.

The two operations here are differentiable and cost what the pairs do. They are made of the operations for
codes of K latents: the pairs of a token fill as many slots of ``_SLOT`` as they need, and the token's row is
read for each.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from finescope.ops import threshold_encode
from finescope.ops.schemas import call

_SLOT = 16
# Of all pairs there could be, the share from which on a product with a matrix costs less than picking rows.
_CROWDED = 1 / 32
_BLOCK_ELEMENTS = 1 << 24


class Slots(NamedTuple):
    """Pairs in rows of equal length."""

    token: Tensor
    """[R] int64: the token of each row, ascending."""
    place: Tensor
    """[R,S] int64: the number of each pair, 0 where there is none."""
    held: Tensor
    """[R,S] bool: whether there is one."""


class Entries:
    """E pairs of B tokens and F latents: by token, and in it by latent.

    Attributes:
        indptr: int64 [B+1], where the pairs of each token start.
        latents: int64 [E].
        num_latents: F.
    """

    def __init__(self, indptr: Tensor, latents: Tensor, num_latents: int) -> None:
        self.indptr, self.latents, self.num_latents = indptr, latents, num_latents

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def tokens(self) -> int:
        """B."""
        return len(self.indptr) - 1

    @property
    def crowded(self) -> bool:
        """Whether there are so many that [B,F] is no larger an effort."""
        return len(self) > _CROWDED * self.tokens * self.num_latents

    @cached_property
    def token(self) -> Tensor:
        """The token of each pair, int64 [E]."""
        numbers = torch.arange(self.tokens, device=self.indptr.device)
        return torch.repeat_interleave(numbers, self.indptr.diff(), output_size=len(self))

    @cached_property
    def slots(self) -> Slots:
        """The pairs in rows of equal length."""
        lengths = self.indptr.diff()
        rows = (lengths + _SLOT - 1) // _SLOT
        numbers = torch.arange(self.tokens, device=rows.device)
        token = torch.repeat_interleave(numbers, rows)
        rank = torch.arange(len(token), device=rows.device) - (rows.cumsum(0) - rows)[token]
        slot = rank[:, None] * _SLOT + torch.arange(_SLOT, device=rows.device)
        held = slot < lengths[token, None]
        return Slots(token, torch.where(held, self.indptr[token, None] + slot, 0), held)

    def chosen(self, kept: Tensor) -> Entries:
        """Return the pairs where ``kept``, bool [E], is true."""
        before = pad(kept.cumsum(0), (1, 0))
        return Entries(before[self.indptr], self.latents[kept], self.num_latents)

    def padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [E] and their latents as rows of slots, [R,S] each; 0 and 0 where there is none."""
        slots = self.slots
        if not len(self):
            return values.new_zeros(slots.place.shape), slots.place
        return values[slots.place].where(slots.held, 0), self.latents[slots.place].where(slots.held, 0)

    def dense(self, values: Tensor) -> Tensor:
        """Return values [E] as a matrix [B,F]."""
        matrix = values.new_zeros(self.tokens * self.num_latents)
        return matrix.index_put_((self.token * self.num_latents + self.latents,), values).view(
            self.tokens, -1
        )

    def per_token(self, values: Tensor) -> Tensor:
        """Return the sum of values [E] over the pairs of every token, [B]."""
        return values.new_zeros(self.tokens).index_add(0, self.token, values)


def exceeding(
    x: Tensor, weight: Tensor, bias: Tensor, limits: Tensor | float, *, crowded: bool
) -> tuple[Entries, Tensor]:
    """Find the pairs whose pre-activation exceeds the latent's limit, without gradients.

    Args:
        x: centred activations [B,D].
        weight: encoder rows [F,D].
        bias: [F].
        limits: [F], or one for all.
        crowded: whether many are to be expected; then they are found, and valued, by a product in the type of
            ``x``.

    Returns:
        the pairs, and their pre-activations [E].
    """
    latents = len(weight)
    if not crowded:
        codes = threshold_encode(x, weight, bias, limits)
        return Entries(codes.indptr, codes.indices.to(torch.int64), latents), codes.values
    places, values = [], []
    tall = max(1, _BLOCK_ELEMENTS // latents)
    for first in range(0, len(x), tall):
        product = torch.addmm(bias, x[first : first + tall], weight.T)
        place = (~(product <= limits)).view(-1).nonzero().squeeze(1)  # NaN are seen, too
        places.append(place + first * latents)
        values.append(product.view(-1)[place])
    place = torch.cat(places)
    starts = torch.arange(len(x) + 1, device=x.device) * latents
    return Entries(torch.searchsorted(place, starts), place % latents, latents), torch.cat(values)


def with_gradient(
    pre: Tensor, entries: Entries, x: Tensor, b_dec: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return pre-activations [E] as functions of the parameters: ``<weight[f], x[b] − b_dec> + bias[f]``.

    Args:
        pre: their values.
        entries: the pairs.
        x: activations [B,D]; no gradient flows to them.
        b_dec: centre [D].
        weight: encoder rows [F,D].
        bias: [F].
    """
    out: Tensor = _Encode.apply(pre, entries, x, b_dec, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, entries: Entries, x: Tensor, b_dec: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(x, b_dec, weight)
        return pre.view_as(pre)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, b_dec, weight = ctx.saved_tensors
        entries, centred = ctx.entries, x - b_dec
        if entries.crowded:
            matrix = entries.dense(grad)
            grad_weight, grad_bias = matrix.T @ centred, matrix.sum(0)
        else:
            padded, latents = entries.padded(grad)
            rows = centred.index_select(0, entries.slots.token)
            grad_weight = call("scatter_rows", padded, latents, rows, entries.num_latents)
            grad_bias = call("scatter_values", padded, latents, entries.num_latents)
        # Summed over the batch first, b_dec's gradient is one pass over the encoder.
        return None, None, None, torch.mv(weight.T, grad_bias).neg_(), grad_weight, grad_bias


def decode(values: Tensor, entries: Entries, weight: Tensor) -> Tensor:
    """Return ``Σ values · weight[latent]`` over the pairs of every token, [B,D]; differentiable in both.

    Args:
        values: [E].
        entries: the pairs.
        weight: decoder rows [F,D].
    """
    out: Tensor = _Decode.apply(values, entries, weight)  # type: ignore[no-untyped-call]
    return out


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, entries: Entries, weight: Tensor) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(values, weight)
        if entries.crowded:
            return entries.dense(values) @ weight
        parts = call("sparse_decode", *entries.padded(values), weight, None)
        token = entries.slots.token
        out: Tensor = parts.new_zeros(entries.tokens, weight.shape[1])
        # Row after row of a token, so that the sum has one order.
        first = torch.searchsorted(token, torch.arange(entries.tokens + 1, device=token.device))
        counts = first.diff()
        for rank in range(int(counts.max()) if entries.tokens else 0):
            having = (counts > rank).nonzero().squeeze(1)
            out[having] += parts[first[having] + rank]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        entries = ctx.entries
        if entries.crowded:
            matrix = entries.dense(values)
            grad_weight = matrix.T @ grad
            return (grad @ weight.T)[entries.token, entries.latents], None, grad_weight
        padded, latents = entries.padded(values)
        rows = grad.index_select(0, entries.slots.token)
        dots, grad_weight = call("decode_grads", padded, latents, weight, rows)
        return dots[entries.slots.held], None, grad_weight

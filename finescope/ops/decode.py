"""Default bodies of ``sparse_decode`` and of the three operations that its backward and the encoder's use.

The four are closed under differentiation: the gradient of each is made of the others, and none ever builds a
[B,k,D] array.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.ops import checks
from finescope.ops.fixed_order import pair_dots
from finescope.ops.registry import default
from finescope.ops.schemas import call

# Elements of the output that are summed at a time: the block and one gathered block stay in cache.
_BLOCK_ELEMENTS = 1 << 17


@default("sparse_decode")
def _sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    checks.sparse_decode(values, indices, weight, bias)
    checks.positions_in_range(indices, weight.shape[0], "indices")
    dtype = checks.result_dtype(values, weight, bias)
    out = torch.empty((values.shape[0], weight.shape[1]), dtype=weight.dtype, device=weight.device)
    tall = max(1, _BLOCK_ELEMENTS // max(1, weight.shape[1]))
    scales, columns = values.to(dtype), indices.T.contiguous()
    for first in range(0, values.shape[0], tall):
        rows = slice(first, min(first + tall, values.shape[0]))
        total = torch.zeros((rows.stop - rows.start, weight.shape[1]), dtype=dtype, device=weight.device)
        # One term after the other, each multiplied, rounded, then added: the order every backend keeps.
        for slot in range(values.shape[1]):
            term = weight.index_select(0, columns[slot, rows]).to(dtype)
            total += term.mul_(scales[rows, slot, None])
        if bias is not None:
            total += bias.to(dtype)
        out[rows] = total
    return out


@default("sampled_dot")
def _sampled_dot(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    checks.sampled_dot(rows, indices, weight)
    checks.positions_in_range(indices, weight.shape[0], "indices")
    positions = torch.arange(rows.shape[0], device=rows.device)
    return pair_dots(rows, positions, weight, indices).to(checks.result_dtype(rows, weight))


def segment_sums(latents: Tensor, num_latents: int, table: Tensor, row: Tensor, scale: Tensor) -> Tensor:
    """Sum ``scale[p] · table[row[p]]`` over the pairs p of each latent, in ascending p. Returns [F,D].

    Latents with the most pairs come first, so that round r adds the r-th pair of every latent that has one to
    the first rows of a small block: each latent sees its pairs in order, each term is multiplied, rounded,
    then added, and there is nothing to race for. The time grows with the pairs, and with the pairs of the
    commonest latent.
    """
    out = torch.zeros((num_latents, table.shape[1]), dtype=table.dtype, device=table.device)
    ordered, order = torch.sort(latents, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_latents + 1, device=latents.device))
    counts, busiest = torch.sort(starts.diff(), descending=True)
    busiest = busiest[: int((counts > 0).sum())]
    tall = max(1, _BLOCK_ELEMENTS // max(1, table.shape[1]))
    for first in range(0, busiest.shape[0], tall):
        chosen = busiest[first : first + tall]
        count = counts[first : first + chosen.shape[0]]
        rounds = torch.arange(int(count[0]), device=count.device)
        active = chosen.shape[0] - torch.searchsorted(count.flip(0), rounds, right=True)
        total = table.new_zeros((chosen.shape[0], table.shape[1]))
        start = starts[chosen]
        for step, height in enumerate(active.tolist()):
            pair = order.index_select(0, start[:height] + step)
            term = table.index_select(0, row.index_select(0, pair))
            total[:height] += term.mul_(scale.index_select(0, pair)[:, None])
        out[chosen] = total
    return out


@default("scatter_rows")
def _scatter_rows(values: Tensor, indices: Tensor, rows: Tensor, num_latents: int) -> Tensor:
    checks.scatter_rows(values, indices, rows, num_latents)
    checks.positions_in_range(indices, num_latents, "indices")
    dtype = checks.result_dtype(values, rows)
    token = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(indices.shape[1])
    scale = values.reshape(-1).to(dtype)
    return segment_sums(indices.reshape(-1), num_latents, rows.to(dtype), token, scale)


@default("decode_grads")
def _decode_grads(values: Tensor, indices: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return (
        call("sampled_dot", grad, indices, weight),
        call("scatter_rows", values, indices, grad, weight.shape[0]),
    )


@default("scatter_values")
def _scatter_values(values: Tensor, indices: Tensor, num_latents: int) -> Tensor:
    checks.scatter_values(values, indices, num_latents)
    checks.positions_in_range(indices, num_latents, "indices")
    table = values.reshape(-1, 1).to(checks.result_dtype(values))
    pair = torch.arange(table.shape[0], device=table.device)
    return segment_sums(indices.reshape(-1), num_latents, table, pair, torch.ones_like(table[:, 0])).squeeze(
        1
    )

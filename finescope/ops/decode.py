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

# Elements of the output that are summed at a time; the block and one gathered block stay in cache.
_DECODE_ELEMENTS = 1 << 17


@default("sparse_decode")
def _sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    checks.sparse_decode(values, indices, weight, bias)
    checks.positions_in_range(indices, weight.shape[0], "indices")
    dtype = checks.result_dtype(values, weight, bias)
    out = torch.empty((values.shape[0], weight.shape[1]), dtype=weight.dtype, device=weight.device)
    tall = max(1, _DECODE_ELEMENTS // max(1, weight.shape[1]))
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


def _by_latent(indices: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """Sort the pairs (b, j) by latent, keeping their order inside a latent.

    Returns:
        int64 [B·k] flat pair numbers in order, and int64 [F+1], where each latent's pairs start.
    """
    latents, order = torch.sort(indices.reshape(-1), stable=True)
    starts = torch.searchsorted(latents, torch.arange(num_latents + 1, device=indices.device))
    return order, starts


@default("scatter_rows")
def _scatter_rows(values: Tensor, indices: Tensor, rows: Tensor, num_latents: int) -> Tensor:
    checks.scatter_rows(values, indices, rows, num_latents)
    checks.positions_in_range(indices, num_latents, "indices")
    dtype = checks.result_dtype(values, rows)
    width = rows.shape[1]
    if not (indices.numel() and width):
        return torch.zeros((num_latents, width), dtype=dtype, device=rows.device)
    order, starts = _by_latent(indices, num_latents)
    # One bag for each latent: the sum over its pairs, in order, of value × row. No atomics, no [B,k,D].
    return torch.nn.functional.embedding_bag(
        order // indices.shape[1],
        rows.to(dtype).contiguous(),
        starts,
        mode="sum",
        per_sample_weights=values.reshape(-1)[order].to(dtype),
        include_last_offset=True,
    )


@default("scatter_values")
def _scatter_values(values: Tensor, indices: Tensor, num_latents: int) -> Tensor:
    checks.scatter_values(values, indices, num_latents)
    checks.positions_in_range(indices, num_latents, "indices")
    dtype = checks.result_dtype(values)
    if not indices.numel():
        return torch.zeros(num_latents, dtype=dtype, device=values.device)
    order, starts = _by_latent(indices, num_latents)
    sums = torch.nn.functional.embedding_bag(
        order,
        values.reshape(-1, 1).to(dtype),
        starts,
        mode="sum",
        include_last_offset=True,
    )
    return sums.squeeze(1)

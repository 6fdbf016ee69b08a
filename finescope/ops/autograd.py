"""One backward for each differentiable operation, for every backend, made of the other operations.

The results of the others (searches, pooling) never require a gradient, whatever their inputs do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finescope.ops.schemas import call


def _cast(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)


# ------------------------------------------------------------------ topk_encode


def _encode_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, *_ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, *output)


def _encode_backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, values, indices = ctx.saved_tensors
    # Entries that are zero stand for latents that did not fire: no gradient goes through them.
    grad = torch.where(values > 0, grad_values, 0.0)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = call("sparse_decode", grad, indices, weight, None) if needs_x else None
    grad_weight = call("scatter_rows", grad, indices, x, weight.shape[0]) if needs_weight else None
    grad_bias = call("scatter_values", grad, indices, weight.shape[0]) if needs_bias else None
    return _cast(grad_x, x), _cast(grad_weight, weight), _cast(grad_bias, bias), None, None


torch.library.register_autograd("finescope::topk_encode", _encode_backward, setup_context=_encode_context)

# ------------------------------------------------------------------ threshold_encode

# Entries of a row are taken so many at a time, so that rows of any length make one call.
_SEGMENT = 32


def _threshold_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, scale, offset, *_ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, scale, offset, *output)


def _segments(indptr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut rows of entries into segments.

    Returns:
        the row of each, int64 [S]; whether there are entries, and their places, [S,_SEGMENT].
    """
    lengths = indptr.diff()
    counts = (lengths + (_SEGMENT - 1)) // _SEGMENT
    row = torch.repeat_interleave(counts)
    within = torch.arange(row.shape[0], device=row.device) - (counts.cumsum(0) - counts)[row]
    slots = within[:, None] * _SEGMENT + torch.arange(_SEGMENT, device=row.device)
    held = slots < lengths[row, None]
    return row, held, torch.where(held, indptr[row, None] + slots, 0)


def _threshold_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, offset, values, indices, indptr = ctx.saved_tensors
    # torch leaves out what has its default.
    needs = (*ctx.needs_input_grad, False, False)
    row, held, place = _segments(indptr)
    latents = torch.where(held, indices[place].to(torch.int64), 0)
    # The mark of a row that is not finite passes no gradient.
    grad = torch.where(held & ~values[place].isnan(), grad[place], 0.0)
    slope = grad if scale is None else grad * scale.to(grad.dtype)[latents]
    grad_x = grad_weight = grad_bias = grad_scale = grad_offset = None
    if needs[0]:
        parts = call("sparse_decode", slope, latents, weight.to(slope.dtype), None)
        grad_x = call("scatter_rows", torch.ones_like(slope[:, :1]), row[:, None], parts, x.shape[0])
    if needs[1]:
        grad_weight = call("scatter_rows", slope, latents, x[row], weight.shape[0])
    if needs[2] and scale is None:  # else it decides only which are kept
        grad_bias = call("scatter_values", grad, latents, weight.shape[0])
    if needs[4]:
        dots = call("sampled_dot", x[row], latents, weight)
        grad_scale = call("scatter_values", grad * dots, latents, weight.shape[0])
    if needs[5]:
        grad_offset = call("scatter_values", grad, latents, weight.shape[0])
    found = ((grad_x, x), (grad_weight, weight), (grad_bias, bias), (None, x), (grad_scale, scale))
    return (*(_cast(gradient, like) for gradient, like in found), _cast(grad_offset, offset), None)


torch.library.register_autograd(
    "finescope::threshold_encode", _threshold_backward, setup_context=_threshold_context
)

# ------------------------------------------------------------------ sparse_decode


def _decode_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, weight, bias = ctx.saved_tensors
    needs_values, _, needs_weight, needs_bias = ctx.needs_input_grad
    if needs_values and needs_weight and not torch.is_grad_enabled():
        grad_values, grad_weight = call("decode_grads", values, indices, weight, grad)
    else:  # one of them only, or results that are to be differentiated themselves
        grad_values = call("sampled_dot", grad, indices, weight) if needs_values else None
        grad_weight = call("scatter_rows", values, indices, grad, weight.shape[0]) if needs_weight else None
    grad_bias = grad.sum(dim=0) if needs_bias else None
    return _cast(grad_values, values), None, _cast(grad_weight, weight), _cast(grad_bias, bias)


torch.library.register_autograd("finescope::sparse_decode", _decode_backward, setup_context=_decode_context)

# ------------------------------------------------------------------ the helpers, for second derivatives


def _sampled_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sampled_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, indices, weight = ctx.saved_tensors
    needs_rows, _, needs_weight = ctx.needs_input_grad
    grad_rows = call("sparse_decode", grad, indices, weight, None) if needs_rows else None
    grad_weight = call("scatter_rows", grad, indices, rows, weight.shape[0]) if needs_weight else None
    return _cast(grad_rows, rows), None, _cast(grad_weight, weight)


torch.library.register_autograd("finescope::sampled_dot", _sampled_backward, setup_context=_sampled_context)


def _scatter_rows_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, rows, _ = inputs
    ctx.save_for_backward(values, indices, rows)


def _scatter_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, rows = ctx.saved_tensors
    needs_values, _, needs_rows, _ = ctx.needs_input_grad
    grad_values = call("sampled_dot", rows, indices, grad) if needs_values else None
    grad_rows = call("sparse_decode", values, indices, grad, None) if needs_rows else None
    return _cast(grad_values, values), None, _cast(grad_rows, rows), None


torch.library.register_autograd(
    "finescope::scatter_rows", _scatter_rows_backward, setup_context=_scatter_rows_context
)


def _scatter_values_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, indices, _ = inputs
    ctx.save_for_backward(values, indices)


def _scatter_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices = ctx.saved_tensors
    return _cast(grad[indices], values), None, None


torch.library.register_autograd(
    "finescope::scatter_values", _scatter_values_backward, setup_context=_scatter_values_context
)

# ------------------------------------------------------------------ what has no derivative


def _constant_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    # Without this torch hands out results that claim a gradient, and warns once they are used for one.
    ctx.mark_non_differentiable(*([output] if isinstance(output, Tensor) else output))


def _constant_backward(ctx: Any, *_: Tensor) -> Tensor:
    raise RuntimeError("this operation has no derivative")


for _name in (
    "pool_codes",
    "cosine_topk",
    "pair_scores",
    "sparse_cosine_topk",
    "sparse_pair_scores",
    "sparse_matmul",
    "sparse_products",
):
    torch.library.register_autograd(
        f"finescope::{_name}", _constant_backward, setup_context=_constant_context
    )

"""The encoder of an SAE as one differentiable function of activations, centre, weights and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finescope.ops import sparse_decode, topk_encode
from finescope.ops.schemas import call


def encode_centred(x: Tensor, b_dec: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the top-k of ``relu((x − b_dec) @ weight.T + bias)``, as ``finescope.ops.topk_encode`` does.

    Composing subtraction and ``topk_encode`` gives the same values; this function differs in its backward.
    The gradient of ``b_dec`` is −Σ_b ∂L/∂x_b, for which autograd would first build ∂L/∂x [B,D] by gathering
    B·K rows of ``weight``. Summed over the batch first, it is −(∂L/∂bias) @ weight: one pass over ``weight``.

    Args:
        x: activations [B,D].
        b_dec: centre [D], subtracted from every row.
        weight: encoder rows [F,D].
        bias: encoder bias [F].
        k: latents kept per token.

    Returns:
        Values [B,k] descending and indices [B,k] int64.
    """
    values, indices = _EncodeCentred.apply(x, b_dec, weight, bias, k)  # type: ignore[no-untyped-call]
    return values, indices


class _EncodeCentred(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, weight: Tensor, bias: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        centred = x - b_dec
        values, indices = topk_encode(centred, weight, bias, k)
        # Inputs, not `centred`: autograd knows those, so second derivatives are right too.
        ctx.save_for_backward(x, b_dec, weight, values, indices)
        ctx.mark_non_differentiable(indices)
        ctx.dtypes = (x.dtype, b_dec.dtype, weight.dtype, bias.dtype)
        return values, indices

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, _grad_indices: Any) -> tuple[Tensor | None, ...]:
        x, b_dec, weight, values, indices = ctx.saved_tensors
        x_dtype, centre_dtype, weight_dtype, bias_dtype = ctx.dtypes
        needs_x, needs_centre, needs_weight, needs_bias, _ = ctx.needs_input_grad
        latents = weight.shape[0]
        grad = torch.where(values > 0, grad_values, 0)  # a latent that relu cut off passes nothing on

        grad_x = grad_centre = grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = call("scatter_rows", grad, indices, x - b_dec, latents).to(weight_dtype)
        if needs_x:
            grad_x = sparse_decode(grad, indices, weight, None).to(x_dtype)
        if needs_bias or needs_centre:
            per_latent = call("scatter_values", grad, indices, latents)
            if needs_bias:
                grad_bias = per_latent.to(bias_dtype)
            if needs_centre:
                grad_centre = torch.mv(weight.T, per_latent.to(weight_dtype)).neg_().to(centre_dtype)
        return grad_x, grad_centre, grad_weight, grad_bias, None

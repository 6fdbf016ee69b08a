"""Forward pass, loss terms and backward of an SAE as one function of its four parameters.

The definition is :mod:`finescope.sae.composed`. Here are the same values and gradients, to rounding, made so
that

- the decoder rows of a token are read once, for both reconstructions and for the gradient of the code;
- the pairs (token, latent) are sorted once, for the gradients of encoder, bias and decoder;
- each [F,D] gradient is written once: what AuxK adds goes into the dead rows only.

Letters: K latents in the code, K' ≥ K in the encoding (4K with MultiTopK).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from finescope.ops import topk_encode
from finescope.ops.schemas import call
from finescope.sae import composed, losses
from finescope.sae.composed import Options, SaeTerms

# The gradient of the reconstruction is kept divided by this. Activations near the bottom of float32 have
# factors near its top, whose sum would overflow before it meets the residual. A power of two rounds nothing.
_ROOM = 64.0


class _Aux(NamedTuple):
    """The AuxK problem over n dead latents, as far as its backward needs it."""

    error: Tensor
    """ê − e, [B,D]"""
    codes: tuple[Tensor, ...]
    """(activations [B,n],) where it is dense, else (values, indices, dots), each [B,k_aux]."""
    scale: float


def supports(x: Tensor, parameters: tuple[Tensor, ...]) -> bool:
    """Whether this stands in for the composition: one dtype, gradients for the parameters and only them."""
    return (
        torch.is_grad_enabled()
        and not x.requires_grad
        and x.dtype in (torch.float32, torch.float64)
        and all(parameter.requires_grad and parameter.dtype == x.dtype for parameter in parameters)
        and not torch.is_autocast_enabled(x.device.type)
    )


def forward(
    x: Tensor,
    b_dec: Tensor,
    weight: Tensor,
    bias: Tensor,
    decoder: Tensor,
    dead: Tensor | None,
    options: Options,
    whole: losses.Whole | None = None,
) -> SaeTerms:
    """Do what :func:`composed.forward` does; no gradient flows to ``x``."""
    outputs: tuple[Tensor, ...] = _SaeTerms.apply(  # type: ignore[no-untyped-call]
        x, b_dec, weight, bias, decoder, dead, options, whole
    )
    return SaeTerms(*outputs)


class _SaeTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        b_dec: Tensor,
        weight: Tensor,
        bias: Tensor,
        decoder: Tensor,
        dead: Tensor | None,
        options: Options,
        whole: losses.Whole | None,
    ) -> tuple[Tensor, ...]:
        k = options.k
        centred = x - b_dec
        values, indices = topk_encode(centred, weight, bias, options.wide)
        out, residual, dots, errors = call("decode_residual", values, indices, decoder, b_dec, x, k)

        energy = x.square().sum(-1)
        real = energy > 0
        variance, count = whole or (losses.total_variance(x), real.sum().clamp_min(1))
        # The weights of a token's error in the normalised MSE, and of its code in L1.
        mse_weight = torch.where(real, (energy.double() * count).reciprocal(), 0.0)
        l1_weight = torch.where(real, energy.rsqrt() / count, 0.0)
        fvu = errors[0].sum() / variance
        mse = errors[0].mul(mse_weight).sum().to(x.dtype)
        l1 = values[:, :k].sum(-1).mul(l1_weight).sum()
        multi_topk = errors[-1].sum() / variance if options.multi_topk else variance.new_zeros(())

        aux = _aux_forward(centred, residual[0], weight, bias, decoder, dead, options.k_aux)
        auxk = variance.new_zeros(()) if aux is None else aux.error.square().sum() * (aux.scale / variance)

        ctx.options, ctx.aux_scale, ctx.whole = options, 0.0 if aux is None else aux.scale, whole
        kept = () if aux is None else (aux.error, *aux.codes)
        inputs = x, b_dec, weight, bias, decoder, dead
        weights = variance, mse_weight, l1_weight
        ctx.save_for_backward(*inputs, centred, values, indices, residual, dots, *weights, *kept)
        code = values[:, :k], indices[:, :k]
        ctx.mark_non_differentiable(code[1])
        ctx.set_materialize_grads(False)
        return out, *code, fvu, mse, l1, multi_topk, auxk

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, kept = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        if torch.is_grad_enabled():
            found = _differentiable(ctx.options, ctx.whole, inputs, grads)
        else:
            found = _backward(ctx.options, ctx.aux_scale, inputs, kept, grads)
        return None, *found, None, None, None


def _differentiable(
    options: Options, whole: losses.Whole | None, inputs: tuple[Any, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of the parameters as functions of them: by autograd, through the composition."""
    x, *parameters, dead = inputs
    b_dec, weight, bias, decoder = parameters
    terms = composed.forward(x, b_dec, weight, bias, decoder, dead, options, whole)
    chosen = [(term, grad) for term, grad in zip(terms, grads, strict=True) if grad is not None]
    outputs, gradients = zip(*chosen, strict=True)
    return torch.autograd.grad(outputs, parameters, gradients, create_graph=True, materialize_grads=True)


def _backward(
    options: Options,
    aux_scale: float,
    inputs: tuple[Any, ...],
    kept: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor, ...]:
    """Return the gradients of (b_dec, weight, bias, decoder); entries of ``grads`` may be None."""
    _, _, weight, _, decoder, dead = inputs
    centred, values, indices, residual, dots, variance, mse_weight, l1_weight, *aux = kept
    g_out, g_values, _, g_fvu, g_mse, g_l1, g_multi, g_aux = grads
    k, wide, latents = options.k, options.wide, weight.shape[0]

    # ∂L/∂x̂ is a multiple of each residual, token by token; so is the code's gradient. Factors in float64.
    scale = torch.zeros_like(mse_weight)
    if g_fvu is not None:
        scale += g_fvu / variance.double()
    if g_mse is not None:
        scale += g_mse * mse_weight
    wide_scale = variance.new_zeros((), dtype=torch.float64)
    if g_multi is not None:
        wide_scale += g_multi / variance.double()
        if wide == k and options.multi_topk:
            scale += wide_scale
    scale = scale.mul_(-2 / _ROOM).to(residual.dtype)[:, None]
    wide_scale = wide_scale.mul_(-2 / _ROOM).to(residual.dtype)
    grad = torch.empty_like(residual)
    torch.mul(residual[0], scale, out=grad[0])
    grad_values = dots[0] * scale
    if wide > k:
        torch.mul(residual[1], wide_scale, out=grad[1])
        grad[0] += grad[1]
        grad_values.addcmul_(dots[1], wide_scale)
    grad_values *= _ROOM
    if g_out is not None:
        grad[0].add_(g_out, alpha=1 / _ROOM)
        grad_values[:, :k] += call("sampled_dot", g_out.contiguous(), indices[:, :k], decoder)
    if g_l1 is not None:
        grad_values[:, :k] += (g_l1 * l1_weight)[:, None]
    if g_values is not None:
        grad_values[:, :k] += g_values
    grad_values.masked_fill_(~(values > 0), 0.0)  # a latent that relu cut off passes nothing on

    grad_weight, grad_bias, grad_decoder = call(
        "weight_grads", grad_values, values * _ROOM, indices, centred, grad, k, latents
    )
    if aux and g_aux is not None:
        step = g_aux * aux_scale / variance
        gradients = grad_weight, grad_bias, grad_decoder
        _aux_backward(centred, decoder, dead, aux[0] * step, aux[1:], step, gradients)
    # b_dec is added to the output and taken off the input; the latter is one pass over the encoder.
    grad_centre = grad[0].sum(0).mul_(_ROOM).sub_(torch.mv(weight.T, grad_bias))
    return grad_centre, grad_weight, grad_bias, grad_decoder


def _aux_forward(
    centred: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    decoder: Tensor,
    dead: Tensor | None,
    k_aux: int | None,
) -> _Aux | None:
    """Reconstruct the residual [B,D] from the strongest dead latents; see :func:`losses.auxk`."""
    if dead is None or not len(dead):
        return None
    budget = losses.aux_budget(centred.shape[1], k_aux)
    keep = min(budget, len(dead))
    scale = min(len(dead) / budget, 1.0)
    rows, offsets, columns = (p.index_select(0, dead) for p in (weight, bias, decoder))
    if losses.aux_is_dense(len(dead), budget):
        acts = _keep_strongest_(torch.addmm(offsets, centred, rows.T).relu_(), keep)
        return _Aux(torch.addmm(residual, acts, columns, beta=-1), (acts,), scale)
    values, indices = topk_encode(centred, rows, offsets, keep)
    _, error, dots, _ = call("decode_residual", values, indices, columns, None, residual, keep)
    return _Aux(error[0].neg_(), (values, indices, dots[0]), scale)


def _aux_backward(
    centred: Tensor,
    decoder: Tensor,
    dead: Tensor,
    grad: Tensor,
    codes: list[Tensor],
    step: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add AuxK's gradients to the rows of the dead latents; ``grad`` [B,D] is half of ê's."""
    if len(codes) == 1:
        (acts,) = codes
        grad_acts = torch.mm(grad, decoder.index_select(0, dead).T).masked_fill_(~(acts > 0), 0.0)
        parts = grad_acts.T @ centred, grad_acts.sum(0), acts.T @ grad
    else:
        values, indices, dots = codes
        grad_values = (dots * -step).masked_fill_(~(values > 0), 0.0)
        parts = call(
            "weight_grads", grad_values, values, indices, centred, grad[None], values.shape[1], len(dead)
        )
    for total, part in zip(gradients, parts, strict=True):
        total.index_add_(0, dead, part, alpha=2.0)


def _keep_strongest_(acts: Tensor, keep: int) -> Tensor:
    """Set all but the ``keep`` largest of every row of ``acts`` [B,n], which are not negative, to zero."""
    surplus = acts.shape[1] - keep
    if surplus <= 0:
        return acts
    if acts.device.type == "cpu":
        # About half of a row is zero already; most rows have nothing to lose. Elsewhere asking would cost a
        # wait for the device.
        crowded = ((acts > 0).sum(1) > keep).nonzero().squeeze(1)
        if len(crowded):
            acts[crowded] = _without_smallest(acts[crowded], surplus)
        return acts
    return _without_smallest(acts, surplus)


def _without_smallest(acts: Tensor, surplus: int) -> Tensor:
    return acts.scatter_(1, acts.topk(surplus, dim=1, largest=False, sorted=False).indices, 0.0)

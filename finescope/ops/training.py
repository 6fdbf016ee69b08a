"""Default bodies of ``decode_residual`` and ``weight_grads``: what a training step does besides encoding.

Both are compositions of the operations of :mod:`finescope.ops.decode`; compiled, each crosses memory once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.ops import checks
from finescope.ops.decode import segment_sums
from finescope.ops.fixed_order import pair_dots
from finescope.ops.registry import default
from finescope.ops.schemas import call


@default("decode_residual")
def _decode_residual(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.decode_residual(values, indices, weight, bias, target, k)
    out = call("sparse_decode", values[:, :k], indices[:, :k], weight, bias)
    residuals = [target - out]
    dots = [call("sampled_dot", residuals[0], indices[:, :k], weight)]
    if k < values.shape[1]:
        residuals.append(residuals[0] - call("sparse_decode", values[:, k:], indices[:, k:], weight, None))
        dots[0] = torch.nn.functional.pad(dots[0], (0, values.shape[1] - k))
        dots.append(call("sampled_dot", residuals[1], indices, weight))
    positions = torch.arange(target.shape[0], device=target.device)
    errors = [pair_dots(e, positions, e, positions[:, None]).squeeze(1).to(e.dtype) for e in residuals]
    return out, torch.stack(residuals), torch.stack(dots), torch.stack(errors)


@default("weight_grads")
def _weight_grads(
    grad_values: Tensor, values: Tensor, indices: Tensor, x: Tensor, grad: Tensor, k: int, num_latents: int
) -> tuple[Tensor, Tensor, Tensor]:
    checks.weight_grads(grad_values, values, indices, x, grad, k, num_latents)
    encoder = call("scatter_rows", grad_values, indices, x, num_latents)
    bias = call("scatter_values", grad_values, indices, num_latents)
    if grad.shape[0] == 1 or k == values.shape[1]:
        return encoder, bias, call("scatter_rows", values, indices, grad[0], num_latents)
    # Later pairs take their rows from the second gradient; one sum per latent all the same.
    batch = torch.arange(x.shape[0], device=x.device)[:, None]
    later = torch.arange(values.shape[1], device=x.device) >= k
    row = (batch + later * x.shape[0]).view(-1)
    decoder = segment_sums(indices.reshape(-1), num_latents, grad.flatten(0, 1), row, values.reshape(-1))
    return encoder, bias, decoder

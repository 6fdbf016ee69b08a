"""Default body of ``sae_adam_step_``: Adam on the unit sphere, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from finescope.ops import checks
from finescope.ops.registry import default

# Elements of a parameter that one block of the update touches. Parameter, gradient, both moments and the
# temporaries of a block (6 x 4 bytes x 65536) then stay in cache between the elementwise passes, and the
# [F,D] matrices cross the memory bus once instead of about ten times.
_BLOCK_ELEMENTS = 65_536


@default("sae_adam_step_", in_place=True)
def _sae_adam_step_(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
    scales: Tensor | None,
) -> None:
    checks.sae_adam_step(parameter, grad, exp_avg, exp_avg_sq, step, unit_norm, scales)
    # Adam's two bias corrections, folded into the step size and eps so that the blocks needn't apply them.
    root2 = math.sqrt(1 - beta2**step)
    step_size = lr * root2 / (1 - beta1**step)
    eps = eps * root2
    if scales is not None:
        size, shift = scales.to(torch.promote_types(parameter.dtype, torch.float32)).unbind()
    for w, g, m, v in _blocks(parameter, grad, exp_avg, exp_avg_sq, rows=unit_norm):
        if unit_norm:
            along = torch.linalg.vecdot(g, w, dim=1).unsqueeze_(1)
            g = torch.addcmul(g, along, w, value=-1)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if scales is None:
            w.addcdiv_(m, v.sqrt().add_(eps), value=-step_size)
        else:
            w.sub_(m * size / v.sqrt().add_(shift))
        if unit_norm:
            normalise_rows_(w)


def normalise_rows_(weight: Tensor) -> Tensor:
    """Scale every row of ``weight`` [F,D] to unit length in place; zero rows stay zero."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    return weight.div_(norms.masked_fill_(norms == 0, 1.0))


def _blocks(*tensors: Tensor, rows: bool) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same elements of all tensors, few enough to stay in cache; whole rows if ``rows``."""
    first = tensors[0]
    if not all(tensor.is_contiguous() for tensor in tensors) or first.device.type != "cpu":
        return [tensors]  # no common flat order to cut, or (off the CPU) nothing gained by cutting
    if rows:
        size = max(1, _BLOCK_ELEMENTS // max(1, first.shape[1]))
        return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
    return zip(*(torch.split(tensor.view(-1), _BLOCK_ELEMENTS) for tensor in tensors), strict=True)

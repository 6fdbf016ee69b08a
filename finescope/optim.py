"""Adam for sparse autoencoders: decoder rows stay unit vectors, and the update is done block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

# Elements of a parameter that one block of the update touches. Parameter, gradient, both moments and the
# temporaries of a block (6 x 4 bytes x 65536) then stay in cache between the elementwise passes, and the
# [F,D] matrices cross the memory bus once instead of about ten times.
_BLOCK_ELEMENTS = 65_536


class SaeAdam(torch.optim.Optimizer):
    """Adam whose ``unit_norm`` parameters keep every row on the unit sphere.

    For a parameter W[F,D] in a group with ``unit_norm=True`` a step is, row by row,

    1. ``g ← g − ⟨g, w⟩ w``: drop the gradient's component along the row, which renormalisation would undo;
    2. Adam (Kingma & Ba, 2015) with bias correction on what is left;
    3. ``w ← w / ‖w‖``.

    Rows whose gradient is zero in a step are still decayed and moved by their moments, as in Adam. Parameters
    of the other groups get plain Adam. The gradients are not modified.

    Args:
        params: parameters, or groups with any of the options below.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the denominator after bias correction; 6.25e-10 is the value of Gao et al. (2024), small
            because gradients of a loss that is normalised over a batch are small.
        unit_norm: apply steps 1 and 3; only for matrices [F,D], float32 or float64.

    Raises:
        ValueError: an option out of range, ``unit_norm`` on what is not a matrix, or a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
        *,
        unit_norm: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_norm": unit_norm})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its options are checked here."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise ValueError("SaeAdam needs dense gradients: Adam moves rows without a gradient too")
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        adam_step(
            parameter,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            step=state["step"],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            unit_norm=group["unit_norm"],
        )


def adam_step(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    unit_norm: bool,
) -> None:
    """Do one update of :class:`SaeAdam` in place on ``parameter``, ``exp_avg`` and ``exp_avg_sq``.

    All four tensors have one shape ([F,D] if ``unit_norm``) and dtype; ``step`` counts from 1.
    """
    beta1, beta2 = betas
    # Adam's two bias corrections, folded into the step size and eps so that the blocks needn't apply them.
    root2 = math.sqrt(1 - beta2**step)
    step_size = lr * root2 / (1 - beta1**step)
    eps = eps * root2
    for w, g, m, v in _blocks(parameter, grad, exp_avg, exp_avg_sq, rows=unit_norm):
        if unit_norm:
            along = torch.linalg.vecdot(g, w, dim=1).unsqueeze_(1)
            g = torch.addcmul(g, along, w, value=-1)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.addcdiv_(m, v.sqrt().add_(eps), value=-step_size)
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


def _check_group(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    if not group["lr"] >= 0:
        raise ValueError(f"lr must not be negative, got {group['lr']}")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"betas must lie in [0, 1), got {group['betas']}")
    if not group["eps"] >= 0:
        raise ValueError(f"eps must not be negative, got {group['eps']}")
    if group["unit_norm"]:
        for parameter in group["params"]:
            if parameter.dim() != 2:
                raise ValueError(f"unit_norm needs a matrix [F,D], got shape {tuple(parameter.shape)}")
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"unit_norm needs float32 or float64 weights, got {parameter.dtype}")

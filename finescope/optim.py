"""Adam for sparse autoencoders: decoder rows stay unit vectors, and an update crosses memory once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from finescope.ops.adam import normalise_rows_
from finescope.ops.schemas import call

__all__ = ["SaeAdam", "normalise_rows_"]


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
        capturable: keep the number of the step, and compute with it, where the parameter is, so that a CUDA
            graph of :meth:`step` counts on when it is replayed. Then ``lr`` may be a 0-dim float64 tensor
            there too, to be changed between replays; a number is fixed by the capture.

    Raises:
        ValueError: an option out of range, ``unit_norm`` on what is not a matrix, or a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
        *,
        unit_norm: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "unit_norm": unit_norm, "capturable": capturable}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)  # state dicts of before it was an option

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its options are checked here."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def start_at(self, step: int) -> None:
        """Make moments of zeros for every parameter, as if ``step`` steps had been taken; they are to be
        filled.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": step,
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what ``closure`` returned.

        Raises:
            RuntimeError: a CUDA graph is being captured without ``capturable``, so that every replay would
                repeat one step, or before the first step, so that every replay would start anew.
        """
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError("SaeAdam.step is captured in a CUDA graph only with SaeAdam(capturable=True)")
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
            if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "take one step of SaeAdam before capturing it: the first makes the moments"
                )
            # As in torch.optim: float32, which state dicts are loaded as.
            state["step"] = parameter.new_zeros((), dtype=torch.float32) if group["capturable"] else 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if group["capturable"] and not isinstance(state["step"], Tensor):  # the option was set on the way
            state["step"] = parameter.new_full((), state["step"], dtype=torch.float32)
        state["step"] += 1
        moments = state["exp_avg"], state["exp_avg_sq"]
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        options = beta1, beta2, eps, group["unit_norm"]
        if group["capturable"]:
            scales = _scales(state["step"], lr, beta1, beta2, eps)
            call("sae_adam_step_", parameter, grad, *moments, 1, 0.0, *options, scales)
        else:
            call("sae_adam_step_", parameter, grad, *moments, state["step"], float(lr), *options)
        # A backward that saved the parameter must notice the change.
        torch.autograd.graph.increment_version(parameter)


def _scales(step: Tensor, lr: float | Tensor, beta1: float, beta2: float, eps: float) -> Tensor:
    """Return step size and eps of step ``step``, Adam's bias corrections folded in: float64 [2]."""
    number = step.double()
    root2 = (1 - beta2**number).sqrt()
    return torch.stack([lr * root2 / (1 - beta1**number), eps * root2])


def _check_group(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    # Looking into a tensor would wait for the device.
    if not isinstance(group["lr"], Tensor) and not group["lr"] >= 0:
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

"""What a forward pass up to the layer that is read takes: parameters and floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finescope.activations.layer import Layer


@dataclass(frozen=True)
class ForwardCost:
    """What one window takes.

    The matrix products of a token don't depend on its window, those of attention go with every pair of its
    tokens: a window of t tokens takes ``per_token * t + per_pair * t**2``. For blocks of P parameters in
    matrices and an attention of width A that is 2P + 4A·t a token.

    Attributes:
        parameters: of the modules that run; those above the layer don't.
        per_token: floating-point operations of matrix products; a multiplication and an addition are two.
        per_pair: those of attention.
    """

    parameters: int
    per_token: float
    per_pair: float

    def of(self, lengths: Iterable[int]) -> float:
        """Return the operations of windows of these lengths, without padding."""
        return sum(self.per_token * length + self.per_pair * length**2 for length in lengths)


def forward_cost(model: nn.Module, layer: Layer, probe: list[int]) -> ForwardCost:
    """Count what a forward pass takes, by running two: of a text, and of its first half.

    Args:
        model: of the layer.
        layer: where the pass ends.
        probe: token ids of a text of two tokens or more.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    ran: dict[int, int] = {}

    def see(module: nn.Module, _inputs: Any) -> None:
        ran.update((id(weight), weight.numel()) for weight in module.parameters(recurse=False))

    def operations(length: int) -> int:
        ids = torch.tensor([probe[:length]])
        # Attention in one kernel isn't counted on every device; in single products it is.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            layer(ids, torch.ones_like(ids))
        return int(counter.get_total_flops())

    handles = [module.register_forward_pre_hook(see) for module in model.modules()]
    try:
        half = len(probe) // 2
        first, second = operations(half), operations(2 * half)
    finally:
        for handle in handles:
            handle.remove()
    per_pair = (second - 2 * first) / (2 * half**2)
    return ForwardCost(sum(ran.values()), first / half - per_pair * half, per_pair)

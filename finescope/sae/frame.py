"""What happens to activations before an SAE's encoder, and is undone after its decoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

NORMALISATIONS = ("none", "layer_norm", "constant_norm")

_EPSILON = 1e-5  # SAELens' and OpenAI's, added to the standard deviation


class Undo(NamedTuple):
    """How a reconstruction [B,D] gets back to where its activations came from: ``out · factor + offset``."""

    factor: Tensor | float
    offset: Tensor | float


@dataclass(frozen=True)
class Frame:
    """The activations that an SAE was trained on, as a function of those that a model gives.

    In this order: rounded, the mean over D taken out, normalised, scaled.
    """

    subtract_b_dec: bool = True
    """Whether the encoder sees x − b_dec."""
    normalise: str = "none"
    """``layer_norm``: (x − mean) / (std + 1e-5) over D, std with D − 1; ``constant_norm``: √D · x / ‖x‖."""
    scale: float = 1.0
    """What activations are multiplied by."""
    scale_out: float = 1.0
    """What reconstructions are divided by; ``scale`` unless input and output are two places of the model."""
    remove_mean: bool = False
    """Whether the mean over D is taken out: the SAE saw a model whose residual stream has none."""
    round_to: str = ""
    """Element type that activations are rounded to, as torch names it; empty for none."""
    undo: bool = True
    """Whether reconstructions are brought back from the normalisation. Transcoders' are not."""

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISATIONS:
            raise ValueError(f"normalise must be one of {', '.join(NORMALISATIONS)}, got {self.normalise!r}")
        if not all(math.isfinite(scale) and scale > 0 for scale in (self.scale, self.scale_out)):
            raise ValueError(f"scales must be positive and finite, got {self.scale} and {self.scale_out}")

    @property
    def plain(self) -> bool:
        """Whether activations are taken as they are."""
        return dataclasses.replace(self, subtract_b_dec=True) == Frame()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that aren't at their defaults."""
        return {name: value for name, value in vars(self).items() if value != getattr(_PLAIN, name)}

    def enter(self, x: Tensor) -> tuple[Tensor, Undo]:
        """Return activations [B,D] as the SAE takes them, and the way back."""
        factor: Tensor | float = 1.0
        offset: Tensor | float = 0.0
        if self.round_to:
            x = x.to(getattr(torch, self.round_to)).to(x.dtype)
        if self.remove_mean:
            offset = x.mean(-1, keepdim=True)
            x = x - offset
        if self.normalise == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            x = x - mean
            spread = x.std(-1, keepdim=True)
            x = x / (spread + _EPSILON)
            factor, offset = spread, offset + mean
        elif self.normalise == "constant_norm":
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
            factor = torch.where(norm > 0, norm, 1.0)  # a token of zeros stays one
            x = x / factor
        if self.scale != 1:
            x = x * self.scale
        if not self.undo:
            return x, Undo(1.0, 0.0)
        return x, Undo(factor / self.scale_out, offset)


_PLAIN = Frame()

"""What happens to activations before an SAE's encoder, and is undone after its decoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finescope.ops.fixed_order import pair_dots, squared_norms

NORMALISATIONS = ("none", "layer_norm", "constant_norm")

_EPSILON = 1e-5  # SAELens' and OpenAI's, added to the standard deviation


class Undo(NamedTuple):
    """How a reconstruction [B,D] gets back to where its activations came from: ``out · factor + offset``."""

    factor: Tensor | float
    offset: Tensor | float


@dataclass(frozen=True)
class Frame:
    """The activations that an SAE was trained on, as a function of those that a model gives.

    Activations are, in this order, rounded, freed of their mean over D, normalised, scaled.
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
    """Element type, as torch names it, in which the SAE's library computes: activations, sums and what is
    added to them are rounded to it; empty for the exact values of the weights as stored."""
    wide: int = 1
    """Times K latents that the library's own reconstructions are made of."""
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
        return dataclasses.replace(self, subtract_b_dec=True, wide=1) == _PLAIN

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that aren't at their defaults."""
        return {name: value for name, value in vars(self).items() if value != getattr(_PLAIN, name)}

    def words(self) -> list[str]:
        """Return what is done to activations, in order, for people; empty if they are taken as they are."""
        said = []
        if self.round_to:
            said.append(f"everything is rounded to {self.round_to}")
        if self.remove_mean:
            said.append("the mean over the width is taken out")
        if self.normalise == "layer_norm":
            said.append("mean 0 and standard deviation 1 over the width")
        elif self.normalise == "constant_norm":
            said.append("brought to the norm √D")
        if self.scale != 1:
            said.append(f"multiplied by {self.scale:.6g}")
        return said

    def round(self, x: Tensor) -> Tensor:
        """Return values rounded to the library's element type, if it computes in a narrow one."""
        return x.to(getattr(torch, self.round_to)).to(x.dtype) if self.round_to else x

    def enter(self, x: Tensor) -> tuple[Tensor, Undo]:
        """Return activations [B,D] as the SAE takes them, and the way back."""
        factor: Tensor | float = 1.0
        offset: Tensor | float = 0.0
        if self.round_to:  # every step once, of a result that is wider
            x = self.round(x.to(torch.promote_types(x.dtype, torch.float32)))
        if self.remove_mean:
            offset = _means(x)
            x = x - offset
        if self.normalise == "layer_norm":
            mean = self.round(_means(x))
            x = self.round(x - mean)
            factor, offset = self.round(_lengths(x, x.shape[-1] - 1)), offset + mean
            x = self.round(x / self.round(factor + _EPSILON))
        elif self.normalise == "constant_norm":
            length = _lengths(x, x.shape[-1])
            factor = torch.where(length > 0, length, 1.0)  # a token of zeros stays one
            if self.round_to:  # the library multiplies by √D / ‖x‖, which torch computes by the reciprocal
                root = math.sqrt(x.shape[-1])
                times = self.round(self.round(1 / self.round(root * factor)) * root)
                x, factor = self.round(x * times), 1 / times
            else:
                x = x / factor
        if self.scale != 1:
            x = self.round(x * self.scale)
        if not self.undo:
            return x, Undo(1.0, 0.0)
        return x, Undo(factor / self.scale_out, offset)


_PLAIN = Frame()


# Sums over D in a fixed order, so that a token is the same among any others.
def _means(x: Tensor) -> Tensor:
    """Return the mean of every row [B,D], as [B,1]."""
    rows = torch.arange(len(x), device=x.device)
    sums = pair_dots(x, rows, x.new_ones(1, x.shape[1]), torch.zeros_like(rows)[:, None])
    return (sums / x.shape[1]).to(x.dtype)


def _lengths(x: Tensor, count: int) -> Tensor:
    """Return √(‖x‖² / count) of every row [B,D], as [B,1]."""
    squares = squared_norms(x, torch.arange(len(x), device=x.device))
    return (squares / count).sqrt()[:, None].to(x.dtype)

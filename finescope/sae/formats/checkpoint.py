"""What a file of any format is turned into: an architecture's name, plain tensors in our names, and facts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from finescope.sae.frame import Frame


@dataclass(frozen=True)
class Origin:
    """Where an SAE comes from, for people and for those who must feed it. None: nobody says."""

    format: str = "finescope"
    model: str | None = None
    """The language model, as its library names it."""
    hook: str | None = None
    """The place in the model, in the words of the library that trained the SAE."""
    hook_out: str | None = None
    """The place that is reconstructed, where it is another one."""
    bos: bool | None = None
    """Whether a beginning-of-sequence token stood before every text."""
    trained_as: str | None = None
    """The architecture in training, where it is saved as another one."""
    k: float | None = None
    """Latents per token that it was trained for."""
    l0: float | None = None
    """Latents per token that were measured."""
    notes: tuple[str, ...] = ()
    """What a reader of the files should know besides."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are known."""
        return {name: value for name, value in vars(self).items() if value not in (None, ())}


@dataclass
class Checkpoint:
    """An SAE as plain values. ``finescope.sae.architectures`` builds modules of it."""

    architecture: str
    tensors: dict[str, Tensor]
    """By our names: ``encoder.weight`` [F,D], ``encoder.bias`` [F], ``W_dec`` [F,D], ``b_dec`` [D], and what
    the architecture or the way into it has besides."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of ``SaeConfig`` besides the sizes."""
    frame: Frame = field(default_factory=Frame)
    origin: Origin = field(default_factory=Origin)

"""What a training step makes small: the terms that architectures share, over codes of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from finescope.sae import losses
from finescope.sae.entries import Entries


class TrainingTerms(NamedTuple):
    """The loss terms of a batch, scalars that gradients flow through, and which latents fired."""

    fvu: Tensor
    """Fraction of variance unexplained."""
    reconstruction_loss: Tensor
    """Mean over tokens of ‖error‖² / ‖x‖²."""
    l1_loss: Tensor
    """Mean over tokens of Σ|activations| / ‖x‖."""
    auxk_loss: Tensor
    """AuxK over the dead latents."""
    multi_topk_fvu: Tensor
    """The second reconstruction's, where there is one."""
    sparsity_loss: Tensor
    """The architecture's own term, where it has one."""
    main: tuple[Tensor, Tensor]
    """FVU and normalised MSE that are to be small: those above or, of a Matryoshka, over all its widths."""
    fired: Tensor
    """int64 [n]: the latents that were active, each as often as it was; F stands for none."""


class Batch:
    """Activations [B,D] of a step, or some of them, and what the terms of the whole step are divided by."""

    def __init__(self, x: Tensor, whole: Batch | None = None) -> None:
        self.x = x
        energy = x.square().sum(1)
        self._real = energy > 0
        self._energy = torch.where(self._real, energy, 1.0)
        self._count: Tensor = self._real.sum().clamp_min(1) if whole is None else whole._count
        self.variance: Tensor = losses.total_variance(x) if whole is None else whole.variance
        self.tokens: int = len(x) if whole is None else whole.tokens
        """B of the whole step."""

    def parts(self, tokens: int) -> Iterator[Batch]:
        """Yield the batch in parts of so many tokens, whose terms add up to its own."""
        if tokens >= len(self.x):
            yield self
            return
        for rows in self.x.split(tokens):  # type: ignore[no-untyped-call]
            yield Batch(rows, self)

    def fvu(self, residual: Tensor) -> Tensor:
        """Return the fraction of variance unexplained that a residual [B,D] is."""
        return losses.fvu(residual, self.variance)

    def mse(self, residual: Tensor) -> Tensor:
        """Return the mean over tokens of ‖residual‖² / ‖x‖²; zero tokens are left out."""
        return self._mean(residual.square().sum(1) / self._energy)

    def l1(self, values: Tensor, entries: Entries) -> Tensor:
        """Return the mean over tokens of Σ|values| / ‖x‖; zero tokens are left out."""
        return self._mean(entries.per_token(values.abs()) * self._energy.rsqrt())

    def _mean(self, ratio: Tensor) -> Tensor:
        return torch.where(self._real, ratio, 0.0).sum() / self._count

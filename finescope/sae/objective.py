"""What a training step makes small: the terms that architectures share, over codes of any length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from finescope.sae import losses
from finescope.sae.entries import Entries
from finescope.sae.parallel import ALONE, Ranks


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
    pairs: int
    """Pairs of a token and a latent that the terms took work for."""


class Batch:
    """This rank's activations of a step, or some of them, and what the terms of the step are divided by.

    Attributes:
        x: [b,D].
        ranks: the processes that have the others.
        tokens: B, how many activations the whole step has.
    """

    def __init__(self, x: Tensor, ranks: Ranks = ALONE, step: Batch | None = None) -> None:
        self.x, self.ranks = x, ranks
        self.tokens: int = len(x) if step is None else step.tokens
        if step is not None:
            self.whole = step.whole
        elif not ranks.alone:
            self.tokens, self.whole = _whole_of(x, ranks)

    @cached_property
    def whole(self) -> losses.Whole:
        """What the terms are divided by, of the whole step."""
        return losses.Whole(losses.total_variance(self.x), self._real.sum().clamp_min(1))

    @property
    def variance(self) -> Tensor:
        """Of the whole step; the denominator of the fractions."""
        return self.whole.variance

    @cached_property
    def _squares(self) -> Tensor:
        return self.x.square().sum(1)

    @cached_property
    def _real(self) -> Tensor:
        return self._squares > 0

    @cached_property
    def _energy(self) -> Tensor:
        return torch.where(self._real, self._squares, 1.0)

    def parts(self, tokens: int) -> Iterator[Batch]:
        """Yield the batch in parts of so many tokens, whose terms add up to its own."""
        if tokens >= len(self.x):
            yield self
            return
        for rows in self.x.split(tokens):  # type: ignore[no-untyped-call]
            yield Batch(rows, self.ranks, self)

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
        return torch.where(self._real, ratio, 0.0).sum() / self.whole.real


def _whole_of(x: Tensor, ranks: Ranks) -> tuple[int, losses.Whole]:
    """Return the number of tokens of all ranks' activations, and what their terms are divided by."""
    mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
    squares = x.square().sum(1)
    sums = (squares > 0).sum(), (x - mean).square().sum(), squares.sum()
    mine = torch.cat([torch.stack([x.new_tensor(len(x)), *sums]).double(), mean.double()])
    found = torch.stack(ranks.gather(mine))
    (counts, real, spreads, energies), means = found[:, :4, None].unbind(1), found[:, 4:]
    tokens = counts.sum()
    centre = (counts * means).sum(0) / tokens
    variance = spreads.sum() + (counts * (means - centre).square()).sum()
    fraction = losses.denominator(variance.to(x.dtype), energies.sum().to(x.dtype), x.dtype)
    return int(tokens), losses.Whole(fraction, real.sum().clamp_min(1).to(torch.int64))

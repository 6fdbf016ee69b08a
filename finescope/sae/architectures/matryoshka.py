"""Matryoshka BatchTopK (Bussmann et al., 2025): the first latents alone reconstruct too, in nested groups."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from finescope.errors import InputError
from finescope.sae.architectures.batchtopk import BatchTopKAutoencoder
from finescope.sae.entries import Entries, decode


class MatryoshkaAutoencoder(BatchTopKAutoencoder):
    """As BatchTopK; in training each width of ``cfg.matryoshka_widths`` reconstructs from its latents alone.

    The main term is the mean of the reconstructions' errors (dictionary_learning's, with equal weights), or
    with ``cfg.matryoshka_loss`` "sum" their sum (SAELens's).
    """

    architecture = "matryoshka"

    def check_sizes(self) -> None:
        super().check_sizes()
        widths = self.cfg.matryoshka_widths
        if not widths:
            latents = self.num_latents
            self.cfg.matryoshka_widths = sorted({max(1, latents // part) for part in (16, 8, 4, 2, 1)})
        elif widths[-1] != self.num_latents:
            raise InputError(
                f"the last of matryoshka_widths must be the number of latents, {self.num_latents}, got"
                f" {widths[-1]}"
            )

    def reconstructions(self, values: Tensor, entries: Entries) -> list[Tensor]:
        outs: list[Tensor] = []
        out: Tensor = self.b_dec
        for low, high in pairwise([0, *self.cfg.matryoshka_widths]):
            inside = (entries.latents >= low) & (entries.latents < high)
            out = decode(values[inside], entries.chosen(inside), self.W_dec) + out
            outs.append(out)
        return outs

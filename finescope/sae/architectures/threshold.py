"""What architectures share whose tokens have any number of latents: encoding above limits, and training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import PackedMatrix, threshold_encode
from finescope.sae import losses
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.entries import Entries, decode, exceeding, with_gradient
from finescope.sae.objective import Batch, TrainingTerms
from finescope.sae.threshold import rounded

# Pairs of a token and a latent that a step holds at a time, where its terms can be added up over parts.
_PAIRS = 1 << 22


class TrainingCodes(NamedTuple):
    """Codes of a batch, and what is asked of them besides reconstructing it."""

    entries: Entries
    values: Tensor
    """[E] activations; 0 for pairs that are there for their gradients."""
    penalised: Tensor
    """[E] what the L1 term is of."""
    sparsity: Tensor
    """The architecture's own term, a scalar."""


class ThresholdAutoencoder(Autoencoder):
    """Latents fire where encoder.weight @ x' + gate > limit; the gate is ``encoder.bias`` but in Gated."""

    @property
    def gate(self) -> Tensor:
        """What is added to the dots before they are compared, [F]."""
        return self.encoder.bias

    def exceeding(
        self,
        rows: Tensor,
        limits: Tensor | float,
        *,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> SparseCodes:
        """Return ``threshold_encode`` of rows [B,D] that have come through ``enter``; gate and limits [F]."""
        weight, gate, packed = self.encoder.weight, self.gate, self.packed_encoder(rows)
        encode: Callable[..., SparseCodes] = partial(threshold_encode, rows, weight)
        if packed is not None:
            encode = partial(PackedMatrix.of(weight, "encode", packed).threshold_encode, rows)
        if self.frame.round_to and scale is None:
            return rounded(encode, gate, limits, getattr(torch, self.frame.round_to))
        return encode(gate, limits, scale=scale, offset=offset)

    # ------------------------------------------------------------------ training

    @property
    def additive(self) -> bool:
        """Whether the terms of a batch are sums over its tokens, so that it may be taken in parts."""
        return True

    def training_terms(self, batch: Batch, dead: Tensor | None, k_aux: int | None) -> Iterator[TrainingTerms]:
        tokens = max(1, int(_PAIRS / max(1.0, self.expected_l0))) if self.additive else len(batch.x)
        for part in batch.parts(tokens):
            with torch.autocast(batch.x.device.type, enabled=False):
                terms = self._terms(part, dead, k_aux)
            yield terms

    @abstractmethod
    def training_codes(self, batch: Batch) -> TrainingCodes:
        """Return the codes of a batch, with gradients."""

    def found(self, batch: Batch, limits: Tensor | float) -> tuple[Entries, Tensor]:
        """Return the pairs of a batch that exceed limits [F], and pre-activations [E] with gradients."""
        weight, gate = self.encoder.weight, self.gate
        with torch.no_grad():
            crowded = self.expected_l0 * 32 > self.num_latents
            entries, pre = exceeding(batch.x - self.b_dec, weight, gate, limits, crowded=crowded)
        return entries, with_gradient(pre, entries, batch.x, self.b_dec, weight, gate)

    def reconstructions(self, values: Tensor, entries: Entries) -> list[Tensor]:
        """Return the reconstructions [B,D] that the main term is the mean of; the last is of all latents."""
        return [decode(values, entries, self.W_dec) + self.b_dec]

    def _terms(self, batch: Batch, dead: Tensor | None, k_aux: int | None) -> TrainingTerms:
        entries, values, penalised, sparsity = self.training_codes(batch)
        residuals = [batch.x - out for out in self.reconstructions(values, entries)]
        share = len(residuals) if self.cfg.matryoshka_loss == "mean" else 1
        fvu, mse = ([term(residual) for residual in residuals] for term in (batch.fvu, batch.mse))
        auxk = batch.variance.new_zeros(())
        if dead is not None and len(dead):
            weights = self.encoder.weight, self.gate, self.W_dec
            rows = losses.AuxWeights(*(weight.index_select(0, dead) for weight in weights))
            auxk = losses.auxk(batch.x, self.b_dec, residuals[-1], rows, batch.variance, k_aux)
        return TrainingTerms(
            fvu=fvu[-1],
            reconstruction_loss=mse[-1],
            l1_loss=batch.l1(penalised, entries),
            auxk_loss=auxk,
            multi_topk_fvu=batch.variance.new_zeros(()),
            sparsity_loss=sparsity,
            main=(torch.stack(fvu).sum() / share, torch.stack(mse).sum() / share),
            fired=entries.latents[values.detach() > 0],
            pairs=len(entries),
        )

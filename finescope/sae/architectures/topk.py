"""The TopK sparse autoencoder as a module; parameter names and shapes are those of sparsify's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.errors import InputError
from finescope.sae import composed, fused, losses
from finescope.sae.architectures.base import Autoencoder, check_k
from finescope.sae.objective import Batch, TrainingTerms
from finescope.sae.ragged import top_rows


class EncoderOutput(NamedTuple):
    """A sparse code per token, strongest latent first."""

    top_acts: Tensor
    """[...,K] activations, not negative, descending; float32 (float64 if activations or weights are)."""
    top_indices: Tensor
    """[...,K] int64 latents; equal activations in ascending order of the latent."""


class ForwardOutput(NamedTuple):
    """Reconstruction, code and loss terms of one batch. Every loss is a scalar, averaged over all tokens."""

    sae_out: Tensor
    """[...,D] reconstruction from the K latents."""
    latent_acts: Tensor
    """[...,K] activations of the code; K also where MultiTopK is on."""
    latent_indices: Tensor
    """[...,K] int64 latents of the code."""
    fvu: Tensor
    """Fraction of variance unexplained by ``sae_out``."""
    auxk_loss: Tensor
    """AuxK over the dead latents; 0 where there are none."""
    l1_loss: Tensor
    """Mean over tokens of Σ|activations| / ‖x‖."""
    reconstruction_loss: Tensor
    """Mean over tokens of ‖error‖² / ‖x‖² (the supplement's normalised MSE)."""
    multi_topk_fvu: Tensor
    """Fraction of variance unexplained from 4K latents; 0 without ``cfg.multi_topk``."""


class SparseAutoencoder(Autoencoder):
    """A TopK sparse autoencoder (Gao et al., 2024) for activations of width D.

    The code is the top-K of relu(encoder.weight @ (x − b_dec) + encoder.bias), the reconstruction
    Σ_j a_j W_dec[j] + b_dec.

    Parameters: ``encoder.weight`` [F,D], ``encoder.bias`` [F], ``W_dec`` [F,D], ``b_dec`` [D]. The decoder
    starts as the encoder's rows at unit length (tied initialisation), both biases at zero.

    Args:
        d_in: D.
        cfg: F, K and options; ``SaeConfig()`` if left out.
        dtype: of the parameters.
        device: of the parameters.
        seed: of the initialisation, which is the same on every device and leaves the global generator alone.

    Raises:
        InputError: K exceeds F, or D is not positive.
    """

    architecture = "topk"

    def check_sizes(self) -> None:
        check_k(self)

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, num_latents={self.num_latents}, k={self.cfg.k}"

    def encode(self, x: Tensor) -> EncoderOutput:
        """Return the K strongest latents of every token.

        Args:
            x: activations [...,D], any floating dtype; any number of leading dimensions.

        Raises:
            InputError: the last dimension isn't D, or the dtype isn't floating.
        """
        values, indices = self._top(self.enter(x)[0], self.cfg.k)
        shape = (*x.shape[:-1], self.cfg.k)
        return EncoderOutput(values.view(shape), indices.view(shape))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the reconstruction [...,D] of activations [...,D], without gradients.

        It is that of :meth:`encode_sparse`, except for an SAE of sparsify that says ``multi_topk``: sparsify
        reconstructs from 4K latents then, without its skip connection, and so does this.
        """
        if self.frame.wide == 1:
            return super().reconstruct(x)
        with torch.no_grad():
            rows, _ = self.enter(x)
            codes = self._top(rows, min(self.frame.wide * self.cfg.k, self.num_latents))
            out = composed.decode(*codes, self.W_dec, self.b_dec)
            return out.view(*x.shape[:-1], self.d_out)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return top_rows(rows, self.cfg.k, self.num_latents, partial(self._top, k=self.cfg.k))

    def forward(
        self, x: Tensor, dead_mask: Tensor | None = None, *, k_aux: int | None = None
    ) -> ForwardOutput:
        """Encode and decode ``x`` and return the reconstruction, the code and every loss term.

        The 4K latents of MultiTopK come from the same encoding: the first K of the sorted 4K are the top K.
        Under ``torch.autocast`` the decoder's rows are read in the autocast dtype.

        Args:
            x: activations [...,D]; all leading dimensions are the batch, B tokens in all.
            dead_mask: bool [F], True for latents that AuxK shall revive; or their numbers, int64 [n], each
                once, for which nothing waits for the device. None for none.
            k_aux: dead latents that AuxK lets take part per token; D/2 if left out.

        Raises:
            InputError: the width of ``x`` isn't D, its dtype isn't floating, or ``dead_mask`` is neither
                bool [F] nor int64 [n].
        """
        if self.needs_inputs or not self.frame.plain or not self.frame.subtract_b_dec:
            raise InputError(
                "the losses are those of a plain autoencoder; this one normalises its activations, predicts "
                "others or passes them on: call reconstruct(x)"
            )
        return self._forward(x, dead_mask, k_aux, None)

    def _forward(
        self, x: Tensor, dead_mask: Tensor | None, k_aux: int | None, whole: losses.Whole | None
    ) -> ForwardOutput:
        flat = self._rows(x)
        dead = None if dead_mask is None else self._dead_latents(dead_mask)
        parameters = self.b_dec, self.encoder.weight, self.encoder.bias, self.W_dec
        way = fused if fused.supports(flat, parameters) else composed
        options = composed.Options(self.cfg.k, self._wide_k(), self.cfg.multi_topk, k_aux)
        terms = way.forward(flat, *parameters, dead, options, whole)

        shape = (*x.shape[:-1], self.cfg.k)
        return ForwardOutput(
            sae_out=terms.out.view(x.shape),
            latent_acts=terms.values.view(shape),
            latent_indices=terms.indices.view(shape),
            fvu=terms.fvu,
            auxk_loss=terms.auxk,
            l1_loss=terms.l1,
            reconstruction_loss=terms.mse,
            multi_topk_fvu=terms.multi_topk,
        )

    def training_terms(self, batch: Batch, dead: Tensor | None, k_aux: int | None) -> Iterator[TrainingTerms]:
        out = self._forward(batch.x, dead, k_aux, None if batch.ranks.alone else batch.whole)
        yield TrainingTerms(
            fvu=out.fvu,
            reconstruction_loss=out.reconstruction_loss,
            l1_loss=out.l1_loss,
            auxk_loss=out.auxk_loss,
            multi_topk_fvu=out.multi_topk_fvu,
            sparsity_loss=torch.zeros_like(out.fvu),
            main=(out.fvu, out.reconstruction_loss),
            fired=torch.where(out.latent_acts > 0, out.latent_indices, self.num_latents).view(-1),
            pairs=out.latent_indices.numel(),
        )

    def _wide_k(self) -> int:
        """Return how many latents one encoding for the losses needs."""
        factor = losses.MULTI_TOPK_FACTOR if self.cfg.multi_topk else 1
        return min(factor * self.cfg.k, self.num_latents)

    def _top(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the top-k of rows [B,D] that have come through ``enter``."""
        values, indices = self.top(rows, self.encoder.bias, k)
        return self.scaled(values, indices), indices

    def _dead_latents(self, mask: Tensor) -> Tensor:
        if mask.dtype == torch.int64 and mask.dim() == 1:
            return mask
        if mask.dtype != torch.bool or mask.shape != (self.num_latents,):
            raise InputError(
                f"dead_mask must be bool [{self.num_latents}] or int64 [n], got {mask.dtype}"
                f" {tuple(mask.shape)}"
            )
        return mask.nonzero().squeeze(1)

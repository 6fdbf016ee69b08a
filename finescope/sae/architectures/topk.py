"""The TopK sparse autoencoder as a module; parameter names and shapes are those of sparsify's checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finescope.config import SaeConfig
from finescope.errors import InputError
from finescope.ops.packed import PackedCache
from finescope.ops.schemas import call
from finescope.optim import normalise_rows_
from finescope.sae import composed, fused, losses
from finescope.sae.functional import encode_centred

# As many rows are scanned while the weights are read once, which is what looking for changes of them costs.
_FEW_ROWS = 4


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


class SparseAutoencoder(nn.Module):
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

    def __init__(
        self,
        d_in: int,
        cfg: SaeConfig | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        cfg = SaeConfig() if cfg is None else cfg
        if d_in < 1:
            raise InputError(f"the width of the activations must be positive, got {d_in}")
        self.d_in = d_in
        self.cfg = cfg
        self.num_latents = cfg.latents(d_in)
        if cfg.k > self.num_latents:
            raise InputError(
                f"k={cfg.k} latents per token were asked for, but the autoencoder has only"
                f" {self.num_latents}; lower k or raise num_latents"
            )
        # By way of meta: the layer's own initialisation would draw from the global generator.
        device = torch.get_default_device() if device is None else torch.device(device)
        encoder = nn.Linear(d_in, self.num_latents, device="meta", dtype=dtype)
        self.encoder = encoder.to_empty(device=device)
        self.W_dec = nn.Parameter(torch.empty_like(self.encoder.weight))
        self.b_dec = nn.Parameter(torch.empty(d_in, dtype=dtype, device=device))
        self._packed = PackedCache()  # of the encoder, for inference
        if not self.b_dec.is_meta:
            self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 42) -> None:
        """Draw new weights: uniform encoder rows, the decoder tied to them, both biases zero."""
        bound = 1 / math.sqrt(self.d_in)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(self.num_latents, self.d_in).uniform_(-bound, bound, generator=generator)
        self.encoder.weight.copy_(weight)
        self.encoder.bias.zero_()
        self.W_dec.copy_(weight)
        if self.cfg.normalize_decoder:
            normalise_rows_(self.W_dec)
        self.b_dec.zero_()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the parameters."""
        return self.b_dec.dtype

    def extra_repr(self) -> str:
        return f"d_in={self.d_in}, num_latents={self.num_latents}, k={self.cfg.k}"

    def encode(self, x: Tensor) -> EncoderOutput:
        """Return the K strongest latents of every token.

        Args:
            x: activations [...,D], any floating dtype; any number of leading dimensions.

        Raises:
            InputError: the last dimension isn't D, or the dtype isn't floating.
        """
        values, indices = self._encode(self._rows(x), self.cfg.k)
        shape = (*x.shape[:-1], self.cfg.k)
        return EncoderOutput(values.view(shape), indices.view(shape))

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Return the reconstruction [...,D] of codes [...,K], in the dtype of the weights.

        Args:
            top_acts: activations [...,K] of any K.
            top_indices: int64 latents [...,K].

        Raises:
            InputError: the two shapes differ.
            IndexError: a latent outside 0..F−1 (raised by the operation).
        """
        if top_acts.shape != top_indices.shape or top_acts.dim() == 0:
            raise InputError(
                "activations and indices of a code must have one shape [...,K], got"
                f" {tuple(top_acts.shape)} and {tuple(top_indices.shape)}"
            )
        kept = top_acts.shape[-1]
        rows = math.prod(top_acts.shape[:-1])
        flat = top_acts.reshape(rows, kept), top_indices.reshape(rows, kept)
        out = composed.decode(*flat, self.W_dec, self.b_dec)
        return out.view(*top_acts.shape[:-1], self.d_in)

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
        flat = self._rows(x)
        dead = None if dead_mask is None else self._dead_latents(dead_mask)
        parameters = self.b_dec, self.encoder.weight, self.encoder.bias, self.W_dec
        way = fused if fused.supports(flat, parameters) else composed
        options = composed.Options(self.cfg.k, self._wide_k(), self.cfg.multi_topk, k_aux)
        terms = way.forward(flat, *parameters, dead, options)

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

    @torch.no_grad()
    def set_decoder_norm_to_unit_norm(self) -> None:
        """Scale every decoder row to unit length; zero rows stay."""
        normalise_rows_(self.W_dec)

    def save(self, directory: str | Path) -> None:
        """Write ``cfg.json`` and ``sae.safetensors``, sparsify's layout, into ``directory``.

        Raises:
            StoreError: the files can't be written.
        """
        from finescope.sae.formats.sparsify import save_sae

        save_sae(self, directory)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        hookpoint: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SparseAutoencoder:
        """Read an SAE that FineScope or sparsify saved.

        Args:
            directory: holds ``cfg.json`` and ``sae.safetensors``, or a sub-directory per hookpoint that does.
            hookpoint: which sub-directory, e.g. ``layers.10``; may be left out where there is only one.
            device: of the parameters; the CPU if left out.
            dtype: of the parameters; as stored if left out.

        Raises:
            InputError: there is no SAE, the hookpoint isn't there, or it is of a kind that isn't supported.
            StoreError: a file is damaged, or its tensors don't have the shapes that ``cfg.json`` says.
        """
        from finescope.sae.formats.sparsify import load_sae

        return load_sae(directory, hookpoint=hookpoint, device=device, dtype=dtype)

    def _wide_k(self) -> int:
        """Return how many latents one encoding for the losses needs."""
        factor = losses.MULTI_TOPK_FACTOR if self.cfg.multi_topk else 1
        return min(factor * self.cfg.k, self.num_latents)

    def _rows(self, x: Tensor) -> Tensor:
        """Return ``x`` [...,D] as rows [B,D] in the wider of its own dtype and the parameters'."""
        if not x.is_floating_point():
            raise InputError(f"activations must be floating-point numbers, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.d_in:
            raise InputError(
                f"activations of shape {tuple(x.shape)} don't fit this autoencoder of width {self.d_in}; use"
                " activations of the model and layer that it was trained on"
            )
        flat = x.reshape(math.prod(x.shape[:-1]), self.d_in)
        return flat.to(torch.promote_types(flat.dtype, self.dtype))

    def _encode(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled() and len(rows) > _FEW_ROWS:
            packed = self._packed.get(self.encoder.weight, "encode")
            if packed is not None:
                weight, bias = self.encoder.weight, self.encoder.bias
                found: tuple[Tensor, Tensor] = call(
                    "topk_encode_packed", rows - self.b_dec, weight, bias, packed, k
                )
                return found
        return encode_centred(rows, self.b_dec, self.encoder.weight, self.encoder.bias, k)

    def _dead_latents(self, mask: Tensor) -> Tensor:
        if mask.dtype == torch.int64 and mask.dim() == 1:
            return mask
        if mask.dtype != torch.bool or mask.shape != (self.num_latents,):
            raise InputError(
                f"dead_mask must be bool [{self.num_latents}] or int64 [n], got {mask.dtype}"
                f" {tuple(mask.shape)}"
            )
        return mask.nonzero().squeeze(1)

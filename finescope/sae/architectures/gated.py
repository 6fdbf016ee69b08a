"""Gated (Rajamanoharan et al., 2024): one affine form of the dot decides whether a latent fires, another how
much."""

from __future__ import annotations

from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.ragged import positive
from finescope.sae.threshold import threshold_encode


class GatedAutoencoder(Autoencoder):
    """Codes [e + gate_bias > 0] · relu(exp(r_mag) · e + mag_bias) with e = encoder.weight @ x'.

    Parameters besides those of all: ``r_mag``, ``gate_bias``, ``mag_bias`` [F]; there is no ``encoder.bias``.
    """

    architecture = "gated"
    has_encoder_bias = False

    r_mag: Tensor
    gate_bias: Tensor
    mag_bias: Tensor

    def add_parameters(self) -> None:
        for name in ("r_mag", "gate_bias", "mag_bias"):
            self.register_parameter(name, nn.Parameter(self.b_dec.new_empty(self.num_latents)))

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        gain = self.r_mag.double().exp()
        weight = self.encoder.weight
        kept = threshold_encode(rows, weight, self.gate_bias, 0.0, scale=gain, offset=self.mag_bias)
        return positive(kept)

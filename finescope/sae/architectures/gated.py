"""Gated (Rajamanoharan et al., 2024): one affine form of a dot says if a latent fires, another how much."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.sae.architectures.threshold import ThresholdAutoencoder, TrainingCodes
from finescope.sae.entries import decode
from finescope.sae.objective import Batch
from finescope.sae.ragged import in_parts, positive


class GatedAutoencoder(ThresholdAutoencoder):
    """Codes [e + gate_bias > 0] · relu(exp(r_mag) · e + mag_bias) with e = encoder.weight @ x'.

    In training the L1 term is of the gates relu(e + gate_bias), and the architecture's own term is the error
    of what they reconstruct through a decoder that gets no gradients of it.

    Parameters besides those of all: ``r_mag``, ``gate_bias``, ``mag_bias`` [F]; there is no ``encoder.bias``.
    """

    architecture = "gated"
    has_encoder_bias = False
    l1_times_k = 10.0  # measured: see plan_training

    r_mag: Tensor
    gate_bias: Tensor
    mag_bias: Tensor

    def add_parameters(self) -> None:
        for name in ("r_mag", "gate_bias", "mag_bias"):
            self.register_parameter(name, nn.Parameter(self.b_dec.new_empty(self.num_latents)))

    def reset_parameters(self, seed: int = 42) -> None:
        super().reset_parameters(seed)
        for parameter in (self.r_mag, self.gate_bias, self.mag_bias):
            parameter.data.zero_()

    @property
    def gate(self) -> Tensor:
        return self.gate_bias

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        open_gates = partial(
            self.exceeding, limits=0.0, scale=self.r_mag.double().exp(), offset=self.mag_bias
        )
        return in_parts(rows, self.num_latents, open_gates, positive)

    def training_codes(self, batch: Batch) -> TrainingCodes:
        entries, gates = self.found(batch, 0.0)
        latents = entries.latents
        dots = gates - self.gate_bias[latents]
        values = torch.relu(self.r_mag.exp()[latents] * dots + self.mag_bias[latents])
        out = decode(gates, entries, self.W_dec.detach()) + self.b_dec.detach()
        return TrainingCodes(entries, values, gates, batch.fvu(batch.x - out))

"""ReLU: every latent with a positive pre-activation fires; sparsity comes from an L1 penalty in training."""

from __future__ import annotations

from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.architectures.threshold import ThresholdAutoencoder


class ReluAutoencoder(ThresholdAutoencoder):
    """Codes relu(encoder.weight @ x' + encoder.bias)."""

    architecture = "relu"

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return self.exceeding(rows, 0.0)

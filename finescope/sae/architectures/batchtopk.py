"""BatchTopK (Bussmann et al., 2024): K latents per token on average; one threshold for all once it is
trained."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.architectures.threshold import ThresholdAutoencoder


class BatchTopKAutoencoder(ThresholdAutoencoder):
    """Codes p · [p > threshold], p = relu(encoder.weight @ x' + encoder.bias).

    The threshold is the running mean of the smallest activation that training kept. A negative one is of an
    SAE that never got there: every positive pre-activation is kept then.

    Besides what all have: the buffer ``threshold`` [], float64.
    """

    architecture = "batchtopk"

    threshold: Tensor

    def add_parameters(self) -> None:
        self.register_buffer("threshold", self.b_dec.new_empty((), dtype=torch.float64))

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return self.exceeding(rows, self.threshold.clamp(min=0))

"""ReLU: every latent with a positive pre-activation fires; sparsity comes from an L1 penalty in training."""

from __future__ import annotations

from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.architectures.threshold import ThresholdAutoencoder, TrainingCodes
from finescope.sae.objective import Batch


class ReluAutoencoder(ThresholdAutoencoder):
    """Codes relu(encoder.weight @ x' + encoder.bias), sparse by ``TrainingConfig.l1_weight``."""

    architecture = "relu"
    l1_times_k = 5.0  # measured: see plan_training

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return self.exceeding(rows, 0.0)

    def training_codes(self, batch: Batch) -> TrainingCodes:
        entries, values = self.found(batch, 0.0)
        return TrainingCodes(entries, values, values, batch.variance.new_zeros(()))

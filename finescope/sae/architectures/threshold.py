"""What architectures share whose latents fire above thresholds known in advance."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.threshold import threshold_encode, threshold_encode_rounded


class ThresholdAutoencoder(Autoencoder):
    """Codes p · [p > limit] with p = encoder.weight @ x' + encoder.bias."""

    def exceeding(self, rows: Tensor, limits: Tensor | float) -> SparseCodes:
        """Return the latents of rows [B,D] that exceed limits [F]."""
        weight, bias = self.encoder.weight, self.encoder.bias
        if self.frame.round_to:
            return threshold_encode_rounded(rows, weight, bias, limits, getattr(torch, self.frame.round_to))
        return threshold_encode(rows, weight, bias, limits)

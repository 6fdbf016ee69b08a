"""JumpReLU (Rajamanoharan et al., 2024): a latent fires where it exceeds a threshold of its own."""

from __future__ import annotations

from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.sae.architectures.base import check_k
from finescope.sae.architectures.threshold import ThresholdAutoencoder
from finescope.sae.ragged import strongest


class JumpReluAutoencoder(ThresholdAutoencoder):
    """Codes relu(p) · [p > threshold] with p = encoder.weight @ x' + encoder.bias, decided in float64.

    Parameters besides those of all: ``threshold`` [F].
    """

    architecture = "jumprelu"

    threshold: Tensor

    def add_parameters(self) -> None:
        self.threshold = nn.Parameter(self.b_dec.new_empty(self.num_latents))

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        limits = self.threshold if self.signed else self.threshold.clamp(min=0)
        return self.exceeding(rows, limits)


class CappedJumpReluAutoencoder(JumpReluAutoencoder):
    """As JumpReLU, but of the latents that exceed their thresholds the K strongest, as latentsae has them."""

    architecture = "capped_jumprelu"

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return strongest(super().encode_rows(rows), self.cfg.k)


class SignedJumpReluAutoencoder(JumpReluAutoencoder):
    """Codes p · [p > threshold], as circuit-tracer has them: below a negative threshold p may be negative
    too."""

    architecture = "signed_jumprelu"
    signed = True

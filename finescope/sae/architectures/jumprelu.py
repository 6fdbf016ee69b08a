"""JumpReLU (Rajamanoharan et al., 2024): a latent fires where it exceeds a threshold of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.ops import topk_encode
from finescope.sae.architectures.base import check_k
from finescope.sae.architectures.threshold import ThresholdAutoencoder, TrainingCodes
from finescope.sae.objective import Batch
from finescope.sae.ragged import in_parts, strongest


class JumpReluAutoencoder(ThresholdAutoencoder):
    """Codes relu(p) · [p > threshold] with p = encoder.weight @ x' + encoder.bias, decided in float64.

    Thresholds get gradients through a window around them, as wide as ``bandwidth`` (straight-through,
    equations 11 and 12 of the paper): of what leaves the code there, and of the term that asks for sparsity,
    ``cfg.sparsity``: (L0 / K − 1)² for "target", L0 for "step", Σ tanh(c · activation · ‖decoder row‖) for
    "tanh".

    Parameters besides those of all: ``threshold`` [F]; a trained one also has the buffer ``bandwidth`` [].
    """

    architecture = "jumprelu"

    threshold: Tensor
    bandwidth: Tensor

    def add_parameters(self) -> None:
        self.threshold = nn.Parameter(self.b_dec.new_empty(self.num_latents))

    def reset_parameters(self, seed: int = 42) -> None:
        super().reset_parameters(seed)
        self.threshold.data.zero_()

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        limits = self.threshold if self.signed else self.threshold.clamp(min=0)
        return self.exceeding(rows, limits)

    # ------------------------------------------------------------------ training

    @property
    def additive(self) -> bool:
        return self.cfg.sparsity != "target"

    def prepare_training(self) -> None:
        self.register_buffer("bandwidth", self.b_dec.new_zeros(()))

    def start_from(self, sample: Tensor) -> None:
        """Begin with thresholds above which 2K latents of a token of the sample [n,D] fire, on average."""
        wanted = min(2 * self.cfg.k, self.num_latents)
        values, _ = topk_encode(sample - self.b_dec, self.encoder.weight, self.encoder.bias, wanted)
        start = values[:, -1].mean()
        self.threshold.data.fill_(float(start))
        self.bandwidth.fill_(self.cfg.bandwidth or float(start))
        self.expected_l0 = float(wanted)

    def learning_rate_factors(self) -> dict[str, float]:
        """Thresholds have the size of activations, which weights don't."""
        return {"threshold": 10 * float(self.bandwidth)}

    @torch.no_grad()
    def after_step(self) -> None:
        self.threshold.clamp_(min=0)  # below it, the gate would let negative activations through

    def training_codes(self, batch: Batch) -> TrainingCodes:
        width = float(self.bandwidth)
        entries, pre = self.found(batch, self.threshold.detach() - width / 2)
        limits = self.threshold[entries.latents]
        values: Tensor = _Jump.apply(pre, limits, width)  # type: ignore[no-untyped-call]
        if self.cfg.sparsity == "tanh":
            norms = torch.linalg.vector_norm(self.W_dec, dim=1)[entries.latents]
            term = torch.tanh(self.cfg.tanh_scale * values * norms).sum() / batch.tokens
            return TrainingCodes(entries, values, values, term)
        fires: Tensor = _Step.apply(pre, limits, width)  # type: ignore[no-untyped-call]
        l0 = fires.sum() / batch.tokens
        if self.cfg.sparsity == "step":
            return TrainingCodes(entries, values, values, l0)
        if not batch.ranks.alone:  # the term is of the mean over all ranks, of which each gives a share
            l0 = l0 + (torch.stack(batch.ranks.gather(l0.detach())).sum() - l0.detach())
        term = (l0 / self.cfg.k - 1).square()
        share = term.detach() / batch.ranks.size
        return TrainingCodes(entries, values, values, term - term.detach() + share)


class _Jump(torch.autograd.Function):
    """p · [p > limit] of pairs [E]."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, limit: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, limit)
        ctx.width = width
        return pre * (pre > limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, limit = ctx.saved_tensors
        near = ((pre - limit).abs() < ctx.width / 2) * grad
        return grad * (pre > limit), near * limit / -ctx.width, None


class _Step(torch.autograd.Function):
    """[p > limit] of pairs [E]; its gradient goes to the limit only."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, limit: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(pre, limit)
        ctx.width = width
        return (pre > limit).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, limit = ctx.saved_tensors
        return None, ((pre - limit).abs() < ctx.width / 2) * grad / -ctx.width, None


class CappedJumpReluAutoencoder(JumpReluAutoencoder):
    """As JumpReLU, but of the latents that exceed their thresholds the K strongest, as latentsae has them."""

    architecture = "capped_jumprelu"

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        cut = partial(strongest, k=self.cfg.k)
        return in_parts(rows, self.num_latents, super().encode_rows, cut)


class SignedJumpReluAutoencoder(JumpReluAutoencoder):
    """Codes p · [p > threshold], as circuit-tracer has them: above a negative threshold p may be negative."""

    architecture = "signed_jumprelu"
    signed = True

"""One training step of a BatchTopK and of a JumpReLU against dense autograd and the libraries they come from.

Peers: ``dense autograd`` keeps the [B,F] matrix; ``dictionary_learning`` and ``sae-lens``, where they are
installed, take the step of their own trainers on the same weights and batch, gradient clipping and counts of
dead latents included. Loss and gradients are compared with dense autograd's first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.bench_train_step import SIZE, B, D, F, K, activations
from benchmarks.training import Parameters, Peer, Ragged, check_gradients
from finescope.config import SaeConfig
from finescope.ops import topk_encode
from finescope.sae.architectures import architecture_class

BANDWIDTH = 0.2
"""Of a JumpReLU, as a share of its thresholds."""


class Jump(torch.autograd.Function):
    """p · [p > t], and [p > t], with straight-through gradients of t."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, t: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(p, t)
        ctx.width = width
        fires = p > t
        return p * fires, fires.to(p.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_fires: Tensor) -> tuple[Tensor | None, ...]:
        p, t = ctx.saved_tensors
        near = ((p - t).abs() < ctx.width / 2) / -ctx.width
        return grad * (p > t), (near * (grad * t + grad_fires)).sum(0), None


def batchtopk_loss(p: Parameters, x: Tensor) -> Tensor:
    pre = torch.relu(torch.nn.functional.linear(x - p["b_dec"], p["encoder.weight"], p["encoder.bias"]))
    values, places = pre.flatten().topk(K * B, sorted=False)
    acts = torch.zeros_like(pre).flatten().scatter(0, places, values).view_as(pre)
    error = x - (acts @ p["W_dec"] + p["b_dec"])
    return error.square().sum() / (x - x.mean(0)).square().sum()


def jumprelu_loss(p: Parameters, x: Tensor, width: float) -> Tensor:
    pre = torch.nn.functional.linear(x - p["b_dec"], p["encoder.weight"], p["encoder.bias"])
    acts, fires = Jump.apply(pre, p["threshold"], width)
    error = x - (acts @ p["W_dec"] + p["b_dec"])
    main = error.square().sum() / (x - x.mean(0)).square().sum()
    return main + (fires.sum() / B / K - 1).square()


def dictionary_learning(sae: Any, x: Tensor) -> Callable[[], object]:
    """A step of its BatchTopK trainer."""
    trainers = pytest.importorskip("dictionary_learning.trainers.batch_top_k")
    trainer = trainers.BatchTopKTrainer(
        steps=10**6, activation_dim=D, dict_size=F, k=K, layer=0, lm_name="", device="cpu", lr=1e-4
    )
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(sae.encoder.weight)
        trainer.ae.encoder.bias.copy_(sae.encoder.bias)
        trainer.ae.decoder.weight.copy_(sae.W_dec.T)
        trainer.ae.b_dec.copy_(sae.b_dec)
    return lambda: trainer.update(trainer.threshold_start_step + 1, x)


def sae_lens(sae: Any, x: Tensor) -> Callable[[], object]:
    """A step of its JumpReLU trainer."""
    saes = pytest.importorskip("sae_lens.saes.jumprelu_sae")
    trainers = pytest.importorskip("sae_lens.training.sae_trainer")
    config = pytest.importorskip("sae_lens.config")
    theirs = saes.JumpReLUTrainingSAE(
        saes.JumpReLUTrainingSAEConfig(
            d_in=D,
            d_sae=F,
            jumprelu_bandwidth=float(sae.bandwidth),
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=float(K),
        )
    )
    with torch.no_grad():
        theirs.W_enc.copy_(sae.encoder.weight.T)
        theirs.b_enc.copy_(sae.encoder.bias)
        theirs.W_dec.copy_(sae.W_dec)
        theirs.b_dec.copy_(sae.b_dec)
        theirs.threshold.copy_(sae.threshold)
    cfg = config.SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=B, lr=1e-4, lr_end=1e-5
    )
    trainer = trainers.SAETrainer(cfg, theirs, iter(()))
    return lambda: trainer.step(x)


LIBRARIES = {
    "batchtopk": ("dictionary_learning", dictionary_learning),
    "jumprelu": ("sae-lens", sae_lens),
}


def made(architecture: str, x: Tensor) -> Any:
    """An autoencoder of which K latents of a token of ``x`` fire on average."""
    kind = architecture_class(architecture)
    sae = kind(D, SaeConfig(architecture=architecture, num_latents=F, k=K, multi_topk=False))
    sae.prepare_training()
    with torch.no_grad():
        sae.start_from(x)
        values, _ = topk_encode(x, sae.encoder.weight, sae.encoder.bias, 4 * K)
        limit = values.flatten().kthvalue(values.numel() - K * B).values
        sae.threshold.fill_(float(limit))
        if architecture == "jumprelu":
            sae.bandwidth.fill_(BANDWIDTH * float(limit))
    sae.expected_l0 = float(K)
    return sae


@pytest.mark.parametrize("architecture", LIBRARIES, ids=[f"{SIZE}-{name}" for name in LIBRARIES])
def bench_train_ragged(benchmark: Any, architecture: str) -> None:
    x = activations()
    sae = made(architecture, x)
    extras = (float(sae.bandwidth),) if architecture == "jumprelu" else ()
    loss = jumprelu_loss if architecture == "jumprelu" else batchtopk_loss
    ours, dense = Ragged(sae), Peer(loss, sae, extras)
    torch.testing.assert_close(ours.backward(x), dense.backward(x), rtol=1e-4, atol=1e-6)
    check_gradients(ours, {name: p.grad for name, p in dense.parameters.items()}, 1e-2)
    ours.adam.zero_grad(set_to_none=True)
    dense.adam.zero_grad(set_to_none=True)
    work: dict[str, Callable[[], object]] = {"dense autograd": lambda: dense.step(x)}
    name, library = LIBRARIES[architecture]
    try:
        work[name] = library(sae, x)
    except pytest.skip.Exception:
        print(f"  {name} is not installed")
    harness.compare(benchmark, lambda: ours.step(x), work, rounds=5)

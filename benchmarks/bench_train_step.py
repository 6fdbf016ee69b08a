"""One training step of an SAE against dense autograd and against the best that torch's sparse parts give.

Peers: ``dense`` keeps the [B,F] matrix and lets autograd work; ``sparse`` has an encoder with a hand-written
sparse backward (index_add), a decoder made of embedding_bag, and torch's fused Adam. AuxK in the peer decodes
k_aux latents per token by embedding_bag from masked pre-activations, as trainers do. Losses and gradients
are compared first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks import harness
from benchmarks.training import ALPHA, Ours, Parameters, Peer, check_gradients, dense_loss
from finescope.config import SaeConfig
from finescope.sae import SparseAutoencoder

B, D, F, K = 2048, 512, 16384, 32
SIZE = f"B{B}-D{D}-F{F}-K{K}"
DEAD = 400


class SparseEncoder(torch.autograd.Function):
    """relu and top-k of a dense product, and top-k among the dead; the backward adds B·k rows to zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, dead: Tensor | None) -> Any:
        pre = torch.relu_(torch.addmm(bias, x, weight.T))
        found = [pre.topk(k, dim=1)]
        if dead is not None:
            found.append(torch.where(dead, pre, 0.0).topk(D // 2, dim=1))
        values, indices = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        ctx.save_for_backward(x, weight, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        grad = grad * (values > 0)
        k = values.shape[1]
        grad_weight, place = torch.zeros_like(weight), indices.reshape(-1)
        for first in range(0, B, 256):  # in slices: B·k·D elements at once would not fit into the cache
            update = grad[first : first + 256, :, None] * x[first : first + 256, None, :]
            grad_weight.index_add_(0, place[first * k : (first + 256) * k], update.view(-1, D))
        grad_bias = torch.zeros(F).index_add_(0, place, grad.reshape(-1))
        # Only b_dec wants the gradient of x, summed over the batch; the peer is given that short cut.
        return (grad_bias @ weight / B).expand_as(x), grad_weight, grad_bias, None, None


def decode(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    return embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def sparse_loss(p: Parameters, x: Tensor, multi: bool, dead: Tensor | None) -> Tensor:
    variance = ((x - x.mean(0)) ** 2).sum()
    wide = 4 * K if multi else K
    values, indices = SparseEncoder.apply(x - p["b_dec"], p["encoder.weight"], p["encoder.bias"], wide, dead)
    error = x - decode(values[:, :K], indices[:, :K], p["W_dec"]) - p["b_dec"]
    loss = error.square().sum() / variance
    if multi:
        rest = error - decode(values[:, K:wide], indices[:, K:wide], p["W_dec"])
        loss = loss + rest.square().sum() / variance / 8
    if dead is not None:
        aux = decode(values[:, wide:], indices[:, wide:], p["W_dec"]) - error.detach()
        loss = loss + ALPHA * aux.square().sum() / variance
    return loss


def activations() -> Tensor:
    """Sums of a few of 4000 directions plus noise: what an SAE is for."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4000, D, generator=generator))
    pick = torch.randint(0, 4000, (B, 24), generator=generator)
    strength = torch.rand(B, 24, generator=generator) + 0.2
    return decode(strength, pick, directions) + 0.05 * torch.randn(B, D, generator=generator)


def check_equal(ours: Ours, peer: Peer, x: Tensor) -> None:
    torch.testing.assert_close(ours.backward(x), peer.backward(x), rtol=1e-4, atol=1e-6)
    # float32 products decide a few near-ties of the peer's top-k differently.
    check_gradients(ours, {name: p.grad for name, p in peer.parameters.items()}, 1e-2)
    ours.adam.zero_grad(set_to_none=True)
    peer.adam.zero_grad(set_to_none=True)


@pytest.mark.parametrize("full", [False, True], ids=[f"{SIZE}-fvu", f"{SIZE}-multi_topk+auxk"])
def bench_train_step(benchmark: Any, full: bool) -> None:
    x = activations()
    dead = (torch.arange(F) % (F // DEAD) == 0) & (torch.arange(F) < DEAD * (F // DEAD)) if full else None
    sae = SparseAutoencoder(D, SaeConfig(num_latents=F, k=K, multi_topk=full))
    numbers = None if dead is None else dead.nonzero()[:, 0]
    peers = {
        "sparse backward, embedding_bag": Peer(sparse_loss, sae, (full, dead)),
        "dense autograd": Peer(dense_loss, sae, (K, full, numbers, D // 2)),
    }
    ours = Ours(sae, dead)
    for peer in peers.values():
        check_equal(ours, peer, x)
    work = {name: lambda peer=peer: peer.step(x) for name, peer in peers.items()}
    harness.compare(benchmark, lambda: ours.step(x), work, rounds=5)

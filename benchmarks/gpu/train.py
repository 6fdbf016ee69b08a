"""A training step against dense autograd in bf16, compiled: loss, backward and the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import Bench
from finescope.config import SaeConfig
from finescope.optim import SaeAdam
from finescope.sae import SparseAutoencoder, losses

ALPHA = 1 / 32
Parameters = dict[str, Tensor]


def dense_loss(p: Parameters, x: Tensor, k: int, multi: bool, dead: Tensor | None, k_aux: int) -> Tensor:
    """The loss of an SAE with the [B,F] matrix, as one writes it in torch."""

    def kept(acts: Tensor, count: int) -> Tensor:
        values, indices = acts.topk(count, dim=1)
        return torch.zeros_like(acts).scatter(1, indices, values)

    variance = ((x - x.mean(0)) ** 2).sum()
    pre = torch.relu(torch.nn.functional.linear(x - p["b_dec"], p["encoder.weight"], p["encoder.bias"]))
    error = x - (kept(pre, k) @ p["W_dec"] + p["b_dec"])
    loss = error.square().sum() / variance
    if multi:
        wide = x - (kept(pre, 4 * k) @ p["W_dec"] + p["b_dec"])
        loss = loss + wide.square().sum() / variance / 8
    if dead is not None:
        acts = kept(pre.index_select(1, dead), min(k_aux, len(dead)))
        aux = acts @ p["W_dec"].index_select(0, dead) - error.detach()
        loss = loss + ALPHA * min(1.0, len(dead) / k_aux) * aux.square().sum() / variance
    return loss


class Peer:
    """Dense autograd: torch's fused Adam, and the decoder kept on the unit sphere."""

    def __init__(self, sae: SparseAutoencoder, extras: tuple[Any, ...], compiled: bool, half: bool) -> None:
        self.extras, self.half = extras, half
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
        self.loss = torch.compile(dense_loss) if compiled else dense_loss
        self.adam = torch.optim.Adam(self.parameters.values(), lr=1e-4, eps=6.25e-10, fused=True)

    def backward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(self.parameters, x, *self.extras)
        loss.backward()
        return loss.detach()

    def step(self, x: Tensor) -> None:
        self.backward(x)
        decoder = self.parameters["W_dec"]
        with torch.no_grad():
            along = (decoder.grad * decoder).sum(1, keepdim=True)
            decoder.grad.addcmul_(along, decoder, value=-1)
            self.adam.step()
            decoder /= torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
        self.adam.zero_grad(set_to_none=True)


class Ours:
    def __init__(self, sae: SparseAutoencoder, dead: Tensor | None) -> None:
        self.sae, self.dead = sae, dead
        free = [sae.encoder.weight, sae.encoder.bias, sae.b_dec]
        self.adam = SaeAdam([{"params": free}, {"params": [sae.W_dec], "unit_norm": True}], lr=1e-4)

    def backward(self, x: Tensor) -> Tensor:
        loss = losses.total(self.sae(x, self.dead), "fvu", 0.0, ALPHA)
        loss.backward()
        return loss.detach()

    def step(self, x: Tensor) -> None:
        self.backward(x)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def make(
    bench: Bench, d: int, f: int, k: int, full: bool, dtype: torch.dtype
) -> tuple[SparseAutoencoder, Tensor | None]:
    """An autoencoder, and the numbers of the dead latents: 2 of 100 where AuxK is on."""
    sae = SparseAutoencoder(
        d, SaeConfig(num_latents=f, k=k, multi_topk=full), device=bench.device, dtype=dtype
    )
    return sae, torch.arange(0, f, 50, device=bench.device) if full else None


def equal(bench: Bench, full: bool) -> None:
    """Loss and gradients against dense autograd in float64, at a size where that is quick."""
    b, d, f, k = 96, 64, 2000, 8
    x = bench.randn(b, d)
    sae, dead = make(bench, d, f, k, full, torch.float32)
    loss = Ours(sae, dead).backward(x)
    peer = Peer(sae, (k, full, dead, d // 2), compiled=False, half=False)
    peer.parameters = {name: p.detach().double().requires_grad_() for name, p in sae.named_parameters()}
    truth = peer.backward(x.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    for name, parameter in sae.named_parameters():
        distance = (parameter.grad.double() - peer.parameters[name].grad).norm() / peer.parameters[
            name
        ].grad.norm()
        if not distance < 1e-4:
            raise AssertionError(f"gradient of {name} is {float(distance):.1e} off")


def run(bench: Bench) -> None:
    """B=8192 D=4096 F=131072 K=64, without and with MultiTopK and AuxK."""
    b, d, f, k = (64, 48, 1500, 8) if bench.tiny else (8192, 4096, 131_072, 64)
    bench.record["size"] = {"B": b, "D": d, "F": f, "K": k}
    for full in (False, True):
        name = "training step, MultiTopK and AuxK" if full else "training step"
        bench.check(name, lambda full=full: equal(bench, full))
        directions = bench.randn(min(f, 4 * d), d).div_(d**0.5)
        pick = torch.randint(0, len(directions), (b, 24), device=bench.device)
        strength = torch.rand(b, 24, device=bench.device) + 0.2
        x = torch.nn.functional.embedding_bag(pick, directions, per_sample_weights=strength, mode="sum")
        x += 0.05 * bench.randn(b, d)
        del directions, pick, strength
        sae, dead = make(bench, d, f, k, full, torch.float32)
        label = "dense bf16, compiled"
        peer = Peer(sae, (k, full, dead, d // 2), compiled=True, half=True)
        ours = Ours(sae, dead)
        works = {"ours": lambda ours=ours, x=x: ours.step(x), label: lambda peer=peer, x=x: peer.step(x)}
        medians = bench.measure(name, works, limit=10, most=11)
        bench.breakdown(name, works["ours"])
        if label not in medians:  # perhaps for want of memory beside ours
            del ours, sae, works["ours"]
            bench.free()
            medians |= bench.measure(name, works, limit=8, most=11)
        ours = sae = peer = None
        works.clear()
        bench.free()
        torch._dynamo.reset()
        bench.compare(name, medians, "ours", {"dense bf16, compiled": 3.0})
        del x
        bench.free()

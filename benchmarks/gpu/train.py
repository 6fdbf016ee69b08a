"""A training step against dense autograd in bf16, compiled: loss, backward and the optimiser."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.timing import Bench
from benchmarks.training import Ours, Peer, check_gradients, dense_loss
from finescope.config import SaeConfig
from finescope.sae import SparseAutoencoder


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
    ours = Ours(sae, dead)
    loss = ours.backward(x)
    peer = Peer(dense_loss, sae, (k, full, dead, d // 2))
    peer.parameters = {name: p.detach().double().requires_grad_() for name, p in sae.named_parameters()}
    truth = peer.backward(x.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    check_gradients(ours, {name: p.grad for name, p in peer.parameters.items()}, 1e-4)


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
        peer = Peer(torch.compile(dense_loss), sae, (k, full, dead, d // 2), half=True)
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

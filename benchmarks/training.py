"""A training step of an SAE: ours, and as one writes it in torch with dense autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finescope.optim import SaeAdam
from finescope.sae import Autoencoder, SparseAutoencoder, losses
from finescope.sae.objective import Batch

ALPHA = 1 / 32
Parameters = dict[str, Tensor]


def dense_loss(p: Parameters, x: Tensor, k: int, multi: bool, dead: Tensor | None, k_aux: int) -> Tensor:
    """The loss of an SAE with the [B,F] matrix; ``dead`` numbers the dead latents."""

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
    """A peer's step: loss, backward, torch's fused Adam, and the decoder kept on the unit sphere."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        sae: SparseAutoencoder,
        extras: tuple[Any, ...],
        *,
        half: bool = False,
    ) -> None:
        """Copy the parameters; ``loss`` gets them, x and ``extras``, and runs in bfloat16 if ``half``."""
        self.loss, self.extras, self.half = loss, extras, half
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
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
    """Our step on ``sae``."""

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


class Ragged:
    """Our step on an autoencoder whose tokens have any number of latents."""

    def __init__(self, sae: Autoencoder) -> None:
        self.sae = sae
        free = [parameter for name, parameter in sae.named_parameters() if name != "W_dec"]
        self.adam = SaeAdam([{"params": free}, {"params": [sae.W_dec], "unit_norm": True}], lr=1e-4)

    def backward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for terms in self.sae.training_terms(Batch(x), None, None):
            loss = terms.main[0] + terms.sparsity_loss
            loss.backward()
            total += loss.detach()
        return total

    def step(self, x: Tensor) -> None:
        self.backward(x)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.sae.after_step()


def check_gradients(ours: Ours | Ragged, truth: dict[str, Tensor], apart: float) -> None:
    """Hold the gradients of ours against others, each by the norm of the difference.

    Raises:
        AssertionError: one is more than ``apart`` times its norm off.
    """
    for name, parameter in ours.sae.named_parameters():
        distance = (parameter.grad.to(truth[name].dtype) - truth[name]).norm() / truth[name].norm()
        if not distance < apart:
            raise AssertionError(f"gradient of {name} is {float(distance):.1e} off")

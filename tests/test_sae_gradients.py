"""The loss is computed sparsely, from one encoding, with hand-written backwards. A dense float64 autoencoder,
written here from the formulas and differentiated by autograd, must give the same loss and gradients: peers'
AuxK and MultiTopK silently lost theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finescope.config import SaeConfig
from finescope.sae import ForwardOutput, SparseAutoencoder, fused, losses

B, D, F, K = 40, 12, 48, 3
ALPHA, L1 = 0.3, 0.2


def dense_topk(pre: Tensor, k: int) -> Tensor:
    """Keep the k largest of every row of [B,F], as a dense matrix."""
    kept = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, kept.indices, kept.values)


def dense_terms(p: dict[str, Tensor], x: Tensor, dead: Tensor, k_aux: int) -> dict[str, Tensor]:
    """All loss terms with [B,F] matrices."""
    pre = torch.relu((x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"])
    code = dense_topk(pre, K)
    error = x - (code @ p["W_dec"] + p["b_dec"])
    variance = ((x - x.mean(0)) ** 2).sum()
    wide = x - (dense_topk(pre, 4 * K) @ p["W_dec"] + p["b_dec"])
    aux = dense_topk(torch.where(dead, pre, 0.0), k_aux) @ p["W_dec"]
    scale = min(int(dead.sum()) / (D // 2), 1.0)
    return {
        "fvu": (error**2).sum() / variance,
        "reconstruction_loss": ((error**2).sum(1) / (x**2).sum(1)).mean(),
        "l1_loss": (code.sum(1) / x.norm(dim=1)).mean(),
        "multi_topk_fvu": (wide**2).sum() / variance,
        "auxk_loss": scale * ((aux - error.detach()) ** 2).sum() / variance,
    }


def make(dead_count: int) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    torch.manual_seed(3)
    sae = SparseAutoencoder(D, SaeConfig(num_latents=F, k=K), dtype=torch.float64, seed=1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    dead = torch.zeros(F, dtype=torch.bool)
    dead[torch.randperm(F)[:dead_count]] = True
    return sae, torch.randn(B, D, dtype=torch.float64) + 0.5, dead


# 4 dead: all of them take part. 20: the best six, by the dense way. "sparse": the best six, by sparse
# operations.
@pytest.mark.parametrize("case", ["none", "few", "many", "sparse"])
@pytest.mark.parametrize("main", ["fvu", "normalized_mse"])
def test_loss_and_gradients_equal_dense_autograd(
    monkeypatch: pytest.MonkeyPatch, case: str, main: str
) -> None:
    dead_count = {"none": 0, "few": 4, "many": 20, "sparse": 20}[case]
    if case == "sparse":
        monkeypatch.setattr(losses, "_DENSE_AUX_FACTOR", 1)
    sae, x, dead = make(dead_count)
    out = sae(x, dead)
    loss = losses.total(out, main, L1, ALPHA)
    loss.backward()

    reference = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    terms = dense_terms(reference, x, dead, min(dead_count, D // 2))
    for name, value in terms.items():
        torch.testing.assert_close(getattr(out, name), value, rtol=1e-9, atol=1e-12, msg=name)
    first = terms["fvu" if main == "fvu" else "reconstruction_loss"]
    (first + L1 * terms["l1_loss"] + ALPHA * terms["auxk_loss"] + terms["multi_topk_fvu"] / 8).backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("term", ["auxk_loss", "multi_topk_fvu", "l1_loss"])
def test_every_side_term_alone_reaches_the_encoder(term: str) -> None:
    sae, x, dead = make(20)
    getattr(sae(x, dead), term).backward()
    assert sae.encoder.weight.grad is not None
    assert float(sae.encoder.weight.grad.abs().sum()) > 0
    if term == "auxk_loss":  # and only through the dead latents: the residual is a constant there
        assert float(sae.encoder.weight.grad[~dead].abs().sum()) == 0
        assert sae.W_dec.grad is not None
        assert float(sae.W_dec.grad[~dead].abs().sum()) == 0


def outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, way: str, multi_topk: bool, main: str
) -> tuple[list[Tensor], list[Tensor]]:
    sae, x, dead = make(20)
    sae.cfg.multi_topk = multi_topk
    with monkeypatch.context() as patch:
        if way == "composed":
            patch.setattr(fused, "supports", lambda x, parameters: False)
        out = sae(x, dead)
    # A loss of one's own besides the terms: gradients reach reconstruction and code as well.
    own = (out.sae_out**3).mean() + (out.latent_acts * torch.linspace(0, 1, K, dtype=x.dtype)).sum()
    (losses.total(out, main, L1, ALPHA) + 0.01 * own).backward()
    return [tensor.detach() for tensor in out], [p.grad for p in sae.parameters()]


@pytest.mark.parametrize("main", ["fvu", "normalized_mse"])
@pytest.mark.parametrize("multi_topk", [False, True])
def test_the_fused_backward_is_that_of_the_composition(
    monkeypatch: pytest.MonkeyPatch, multi_topk: bool, main: str
) -> None:
    wanted, gradients = outputs_and_gradients(monkeypatch, "composed", multi_topk, main)
    got, ours = outputs_and_gradients(monkeypatch, "fused", multi_topk, main)
    for name, left, right in zip(ForwardOutput._fields, got, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-13, msg=name)
    for left, right in zip(ours, gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_second_derivatives_come_from_the_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for way in (False, True):
        sae, x, dead = make(4)
        if not way:
            monkeypatch.setattr(fused, "supports", lambda x, parameters: False)
        else:
            monkeypatch.undo()
        loss = losses.total(sae(x, dead), "fvu", L1, ALPHA)
        gradients = torch.autograd.grad(loss, list(sae.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        found.append([p.grad for p in sae.parameters()])
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_each_matrix_gets_its_gradient_once() -> None:
    """Three [F,D] partial gradients, added by autograd, would be six more passes over memory."""

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            # Storages, so that no address is used twice; not tensors, which autograd would have to copy.
            self.held: list[torch.UntypedStorage] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            results = out if isinstance(out, tuple) else (out,)
            matrices = [t for t in results if isinstance(t, Tensor) and t.shape == (F, D)]
            self.held += [matrix.untyped_storage() for matrix in matrices]
            return out

    sae, x, dead = make(20)
    loss = losses.total(sae(x, dead), "fvu", L1, ALPHA)
    with Watch() as watch:
        loss.backward()
    assert len({storage.data_ptr() for storage in watch.held}) == 2


def test_dead_latents_may_be_given_by_number() -> None:
    sae, x, dead = make(20)
    by_mask, by_number = sae(x, dead), sae(x, dead.nonzero().squeeze(1))
    assert torch.equal(by_mask.auxk_loss, by_number.auxk_loss)
    assert bool(by_mask.auxk_loss > 0)


def test_k_aux_bounds_the_dead_latents_per_token() -> None:
    sae, x, dead = make(20)
    pre = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias)
    out = sae(x, dead, k_aux=2)
    aux = dense_topk(torch.where(dead, pre, 0.0), 2) @ sae.W_dec
    error = x - out.sae_out
    expected = ((aux - error) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    torch.testing.assert_close(out.auxk_loss, expected)


def test_gradient_reaches_the_activations() -> None:
    sae, x, dead = make(4)
    x.requires_grad_()
    losses.total(sae(x, dead), "fvu", L1, ALPHA).backward()
    twin = x.detach().clone().requires_grad_()
    terms = dense_terms(dict(sae.named_parameters()), twin, dead, 4)
    (
        terms["fvu"] + L1 * terms["l1_loss"] + ALPHA * terms["auxk_loss"] + terms["multi_topk_fvu"] / 8
    ).backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-7, atol=1e-10)


def test_bfloat16_autocast_changes_rounding_only() -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(D, SaeConfig(num_latents=F, k=K))
    x, dead = torch.randn(B, D), torch.arange(F) < 20
    exact = sae(x, dead)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sae(x, dead)
    assert torch.equal(exact.latent_indices, rounded.latent_indices)
    assert torch.equal(exact.latent_acts, rounded.latent_acts)  # the encoder stays exact
    for name in ("fvu", "auxk_loss", "multi_topk_fvu"):
        assert getattr(exact, name) != getattr(rounded, name)
        torch.testing.assert_close(getattr(exact, name), getattr(rounded, name), rtol=0.02, atol=1e-3)
    losses.total(rounded, "fvu", L1, ALPHA).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in sae.parameters())


def test_second_derivatives_of_the_encoder_reach_its_inputs() -> None:
    """The gradient of the weights depends on x − b_dec: a backward that saved a copy would lose that."""
    from finescope.sae.functional import encode_centred

    torch.manual_seed(0)
    x, b_dec, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 5), (5,), (7, 5), (7,))
    )
    inputs = (x, b_dec, weight, bias)
    assert torch.autograd.gradgradcheck(lambda *args: encode_centred(*args, 3)[0], inputs)

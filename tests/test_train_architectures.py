"""Every architecture that is trained: its definition's gradients, the dictionary it must find, thresholds.

Tokens have any number of latents here. The definition is dense, in float64, with autograd; straight-through
gradients are written down beside it by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope.config import SaeConfig, TrainingConfig
from finescope.errors import InputError
from finescope.sae import SparseAutoencoder, entries, load_sae, losses, train_sae
from finescope.sae.architectures import TRAINED, architecture_class, threshold
from finescope.sae.objective import Batch
from finescope.sae.sources import TensorSource
from finescope.sae.train import Trainer
from support.dictionary import F, K, dictionary_data

WIDTH, LATENTS, TOKENS = 7, 40, 30
RAGGED = [name for name in TRAINED if name != "topk"]


class _Jump(torch.autograd.Function):
    """p · [p > t] with the paper's gradient of t."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(p, t)
        ctx.width = width
        return p * (p > t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        p, t = ctx.saved_tensors
        inside = ((p - t).abs() < ctx.width / 2).double()
        return grad * (p > t), (-t / ctx.width * inside * grad).sum(0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, t: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(p, t)
        ctx.width = width
        return (p > t).double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        p, t = ctx.saved_tensors
        inside = ((p - t).abs() < ctx.width / 2).double()
        return None, (-inside / ctx.width * grad).sum(0), None


def definition(sae: Any, x: Tensor, dead: Tensor, weights: TrainingConfig) -> Tensor:
    """The loss of a batch as dense formulas."""
    cfg = sae.cfg
    dots = (x - sae.b_dec) @ sae.encoder.weight.T
    variance = (x - x.mean(0)).square().sum()
    length = x.norm(dim=1)
    sparsity: Any = 0.0
    penalised = None
    if sae.architecture == "gated":
        gates = torch.relu(dots + sae.gate_bias)
        acts = (gates > 0) * torch.relu(dots * sae.r_mag.exp() + sae.mag_bias)
        frozen = gates @ sae.W_dec.detach() + sae.b_dec.detach()
        sparsity = (x - frozen).square().sum() / variance
        penalised, gate = gates, sae.gate_bias
    else:
        p, gate = dots + sae.encoder.bias, sae.encoder.bias
        if sae.architecture == "relu":
            acts = torch.relu(p)
        elif sae.architecture == "jumprelu":
            width = float(sae.bandwidth)
            acts = _Jump.apply(p, sae.threshold, width)
            l0 = _Step.apply(p, sae.threshold, width).sum() / len(x)
            if cfg.sparsity == "tanh":
                sparsity = torch.tanh(cfg.tanh_scale * acts * sae.W_dec.norm(dim=1)).sum() / len(x)
            else:
                sparsity = l0 if cfg.sparsity == "step" else (l0 / cfg.k - 1) ** 2
        else:
            least = torch.relu(p).detach().flatten().sort(descending=True).values[cfg.k * len(x) - 1]
            acts = torch.relu(p) * (p >= least)
    penalised = acts if penalised is None else penalised
    widths = cfg.matryoshka_widths or [sae.num_latents]
    errors = [x - (acts[:, :end] @ sae.W_dec[:end] + sae.b_dec) for end in widths]
    main = sum(error.square().sum() for error in errors) / variance
    if cfg.matryoshka_loss == "mean":
        main = main / len(widths)
    rows = losses.AuxWeights(sae.encoder.weight[dead], gate[dead], sae.W_dec[dead])
    auxk = losses.auxk(x, sae.b_dec, errors[-1], rows, variance, 3)
    l1 = (penalised.abs().sum(1) / length).mean()
    return main + weights.l1_weight * l1 + weights.auxk_alpha * auxk + weights.sparsity_weight * sparsity


def made(architecture: str, **options: Any) -> Any:
    """An autoencoder in float64 with weights off their symmetric start, ready to train."""
    kind = architecture_class(architecture)
    sae = kind(
        WIDTH, SaeConfig(architecture=architecture, num_latents=LATENTS, k=4, **options), dtype=torch.float64
    )
    sae.prepare_training()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if architecture == "jumprelu":
            sae.threshold.abs_().add_(0.2)
            sae.bandwidth.fill_(0.5)
    return sae


CASES = [
    ("relu", {}),
    ("gated", {}),
    ("batchtopk", {}),
    ("matryoshka", {}),
    ("matryoshka", {"matryoshka_loss": "sum", "matryoshka_widths": [3, 17, LATENTS]}),
    ("jumprelu", {}),
    ("jumprelu", {"sparsity": "step"}),
    ("jumprelu", {"sparsity": "tanh"}),
]


@pytest.mark.parametrize(("architecture", "options"), CASES)
@pytest.mark.parametrize("crowded", [True, False])
@pytest.mark.parametrize("pairs", [1 << 22, 60])
def test_the_gradients_are_those_of_the_definition(
    architecture: str, options: dict[str, Any], crowded: bool, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_CROWDED", 0.0 if crowded else 2.0)
    monkeypatch.setattr(threshold, "_PAIRS", pairs)  # one part, or many
    sae = made(architecture, **options)
    sae.expected_l0 = float(LATENTS) if crowded else 1.0
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64) * 2 + 0.5
    dead = torch.tensor([0, 5, 6, 20, 39])
    cfg = TrainingConfig(l1_weight=0.3, auxk_alpha=0.7, sparsity_weight=0.4)
    trainer = Trainer.__new__(Trainer)
    trainer.cfg = cfg
    total = 0.0
    for terms in sae.training_terms(Batch(x), dead, 3):
        loss = trainer._loss(terms)
        loss.backward()
        total += loss.item()
    found = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    wanted = definition(sae, x, dead, cfg)
    wanted.backward()
    assert total == pytest.approx(wanted.item(), rel=1e-10)
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            found[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert bool(found[name].any()), name


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("batchtopk", {}),
        ("matryoshka", {}),
        ("jumprelu", {}),
        ("relu", {"l1_weight": 0.3}),
        ("gated", {"l1_weight": 0.5}),
    ],
)
def test_recovers_a_known_sparse_dictionary(
    architecture: str, options: dict[str, float], tmp_path: Path
) -> None:
    x, directions = dictionary_data(32_768 + 2_048)
    cfg = TrainingConfig(
        batch_tokens=512,
        num_epochs=5,
        learning_rate=1e-2,
        auxk_alpha=1.0,
        auxk_k=K,
        dead_feature_threshold=5_000,
        **{"l1_weight": 0.0, **options},
    )
    shape = SaeConfig(architecture=architecture, num_latents=F, k=K)
    sae = train_sae(x[:32_768], shape, cfg, out_dir=tmp_path, progress=False)
    found = (directions @ sae.W_dec.detach().T).amax(dim=1)
    assert (found > 0.9).double().mean() > 0.9
    unseen = x[32_768:]
    residual = unseen - sae.reconstruct(unseen)
    assert residual.square().sum() / (unseen - unseen.mean(0)).square().sum() < 0.1
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))
    codes = sae.encode_sparse(unseen)
    assert 0.7 * K < codes.nnz / len(codes) < 2 * K
    again = load_sae(tmp_path)
    assert again.architecture == architecture
    assert again.encode_sparse(unseen) == codes


@pytest.mark.parametrize("architecture", RAGGED)
def test_a_run_that_stops_goes_on_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    x, _ = dictionary_data(1_200)
    shape = SaeConfig(architecture=architecture, num_latents=64, k=4)

    def run(folder: Path, epochs: int) -> Any:
        cfg = TrainingConfig(
            batch_tokens=100,
            num_epochs=epochs,
            learning_rate=5e-3,
            lr_warmup_steps=3,
            dead_feature_threshold=300,
        )
        return train_sae(x, shape, cfg, out_dir=folder, progress=False)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", 3)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def batchtopk(**options: Any) -> Any:
    sae = architecture_class("batchtopk")(
        WIDTH, SaeConfig(architecture="batchtopk", num_latents=LATENTS, k=4, **options)
    )
    with torch.no_grad():
        sae.encoder.bias.normal_()
    return sae


@pytest.mark.parametrize("start", [0.0, 1e-6, 0.5, 3.0, 1e6])
def test_batchtopk_keeps_the_strongest_of_the_batch_wherever_its_threshold_stands(start: float) -> None:
    sae = batchtopk()
    x = torch.randn(TOKENS, WIDTH)
    p = torch.relu(x @ sae.encoder.weight.T + sae.encoder.bias)
    wanted = p.detach().flatten().sort(descending=True).values[: 4 * TOKENS]
    sae.threshold.fill_(start)
    with torch.no_grad():
        found, pre = sae._strongest(x, 4 * TOKENS)
    assert len(found) == 4 * TOKENS
    torch.testing.assert_close(pre.sort(descending=True).values, wanted)
    assert float(sae.threshold) == pytest.approx(0.99 * start + 0.01 * float(wanted[-1]))


def test_batchtopk_with_fewer_positive_latents_than_it_may_keep() -> None:
    sae = batchtopk()
    with torch.no_grad():
        sae.encoder.bias.sub_(100)
    terms = list(sae.training_terms(Batch(torch.randn(TOKENS, WIDTH)), None, None))
    assert len(terms[0].fired) == 0
    assert terms[0].fvu.item() >= 1
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e9)
        sae.encoder.bias[3] = 5.0
    (terms_,) = sae.training_terms(Batch(torch.randn(TOKENS, WIDTH) * 0.01), None, None)
    assert terms_.fired.unique().tolist() == [3]


def test_thresholds_stay_where_they_may_be_and_have_a_rate_of_their_own() -> None:
    x, _ = dictionary_data(600)
    cfg = TrainingConfig(batch_tokens=100, num_epochs=2, learning_rate=1e-1, l1_weight=0.0)
    shape = SaeConfig(architecture="jumprelu", num_latents=64, k=8)
    trainer = Trainer(TensorSource(x, cfg), shape, cfg, None)
    trainer.prepare(resume=False)
    start = trainer.sae.threshold.detach().clone()
    assert bool((start == start[0]).all())
    assert float(trainer.sae.bandwidth) == float(start[0])
    assert trainer.sae.encode_sparse(x).nnz / len(x) == pytest.approx(16, rel=0.2)  # twice K
    trainer.run(progress=False)
    assert bool((trainer.sae.threshold >= 0).all())
    rates = {group["name"]: group["lr"] for group in trainer.optimiser.param_groups}
    assert rates["threshold"] == pytest.approx(10 * float(start[0]) * rates["W_dec"])
    fixed = Trainer(
        TensorSource(x, cfg),
        SaeConfig(architecture="jumprelu", num_latents=64, k=4, bandwidth=0.25),
        cfg,
        None,
    )
    fixed.prepare(resume=False)
    assert float(fixed.sae.bandwidth) == 0.25


def test_matryoshka_widths() -> None:
    kind = architecture_class("matryoshka")
    shape = SaeConfig(architecture="matryoshka", num_latents=64, k=4)
    assert kind(8, shape).cfg.matryoshka_widths == [4, 8, 16, 32, 64]
    assert shape.matryoshka_widths == []  # the caller's own stays as it is
    with pytest.raises(
        InputError, match="the last of matryoshka_widths must be the number of latents, 64, got 32"
    ):
        kind(8, SaeConfig(architecture="matryoshka", num_latents=64, matryoshka_widths=[4, 32]))
    with pytest.raises(ValueError, match="matryoshka_widths must be ascending"):
        SaeConfig(matryoshka_widths=[4, 4])


def test_what_is_not_trained_says_so() -> None:
    with pytest.raises(InputError, match=r"lista aren't trained here; topk, batchtopk"):
        train_sae(torch.randn(50, 8), SaeConfig(architecture="lista", num_latents=16, k=2), progress=False)
    with pytest.raises(InputError, match="no architecture 'dense'"):
        train_sae(torch.randn(50, 8), SaeConfig(architecture="dense", num_latents=16, k=2), progress=False)
    with pytest.raises(InputError, match=r"SparseAutoencoder is of architecture topk, but .* relu"):
        SparseAutoencoder(8, SaeConfig(architecture="relu", num_latents=16, k=2))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu"])
def test_dead_latents_are_counted_and_revived(architecture: str) -> None:
    x, _ = dictionary_data(4_096)
    cfg = TrainingConfig(
        batch_tokens=256,
        num_epochs=3,
        learning_rate=1e-2,
        auxk_alpha=1.0,
        l1_weight=0.0,
        dead_feature_threshold=600,
    )
    shape = SaeConfig(architecture=architecture, num_latents=F, k=K)
    trainer = Trainer(TensorSource(x, cfg), shape, cfg, None)
    trainer.prepare(resume=False)
    killed = slice(0, 64)
    with torch.no_grad():
        trainer.sae.encoder.weight[killed] *= 0.02  # too weak to be among the strongest by themselves
    before = trainer.sae.encode_sparse(x).indices.unique()
    assert not bool((before < 64).any())
    trainer.run(progress=False)
    after = trainer.sae.encode_sparse(x).indices.unique()
    assert (after < 64).sum() > 32
    since = trainer.dead.since_fired[:-1]
    assert bool((since >= 0).all())
    assert int(since.max()) <= 3 * 4_096

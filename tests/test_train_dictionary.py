"""The trainer must do its job: find the directions that data was made of, with every term of the loss playing
its part. A trainer whose reconstruction term is inert, or whose dead latents stay dead, fails here."""

from __future__ import annotations

import pytest
import torch

from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import SparseAutoencoder, train_sae
from finescope.sae.sources import TensorSource
from finescope.sae.train import Trainer
from support.dictionary import F, K, dictionary_data


def test_recovers_a_known_sparse_dictionary() -> None:
    x, directions = dictionary_data(32_768 + 2_048)
    sae = train_sae(
        x[:32_768],
        SaeConfig(num_latents=F, k=K),
        TrainingConfig(
            batch_tokens=512,
            num_epochs=5,
            learning_rate=1e-2,
            auxk_alpha=1.0,
            auxk_k=K,
            dead_feature_threshold=5_000,
        ),
        progress=False,
    )
    found = (directions @ sae.W_dec.detach().T).amax(dim=1)
    assert (found > 0.9).double().mean() > 0.9
    assert sae(x[32_768:]).fvu.item() < 0.05  # on data that it hasn't seen
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


@pytest.mark.parametrize("loss", ["fvu", "normalized_mse"])
@pytest.mark.parametrize("multi_topk", [True, False])
def test_each_loss_optimises_the_reconstruction(loss: str, multi_topk: bool) -> None:
    x, _ = dictionary_data(2_048)
    records: list[dict[str, float]] = []
    train_sae(
        x,
        SaeConfig(num_latents=F, k=K, multi_topk=multi_topk),
        TrainingConfig(batch_size=128, num_epochs=3, learning_rate=5e-3, loss=loss, l1_weight=0.0),
        progress=records.append,
    )
    epochs = [record for record in records if record["event"] == "epoch"]
    for term in ("fvu", "reconstruction_loss"):
        assert epochs[-1][term] < 0.8 * epochs[0][term]
    assert (epochs[-1]["multi_topk_fvu"] > 0) == multi_topk


def test_l1_makes_codes_smaller() -> None:
    x, _ = dictionary_data(1_024)

    def size(weight: float) -> float:
        cfg = TrainingConfig(batch_size=128, num_epochs=3, learning_rate=3e-3, l1_weight=weight)
        sae = train_sae(x, SaeConfig(num_latents=F, k=K), cfg, progress=False)
        return sae.encode(x).top_acts.sum().item()

    assert size(1.0) < 0.8 * size(0.0)


@pytest.mark.parametrize("auxk_alpha", [1 / 32, 0.0])
def test_auxk_revives_dead_latents_and_only_auxk_does(auxk_alpha: float) -> None:
    x, _ = dictionary_data(4_096)
    cfg = TrainingConfig(
        batch_size=256, num_epochs=3, learning_rate=1e-2, auxk_alpha=auxk_alpha, dead_feature_threshold=1_000
    )
    trainer = Trainer(TensorSource(x, cfg), SaeConfig(num_latents=F, k=K), cfg, None)
    trainer.prepare(resume=False)
    killed = slice(0, 64)
    with torch.no_grad():  # too weak to be among the K strongest by themselves
        trainer.sae.encoder.weight[killed] *= 0.02
    codes = trainer.sae.encode(x)
    assert not bool((codes.top_indices[codes.top_acts > 0] < 64).any())
    trainer.run(progress=False)
    codes = trainer.sae.encode(x)
    alive = torch.zeros(F, dtype=torch.bool)
    alive[codes.top_indices[codes.top_acts > 0]] = True
    if auxk_alpha:
        assert alive[killed].double().mean() > 0.5
    else:
        assert not bool(alive[killed].any())


def test_dead_latents_are_counted_in_tokens_and_by_firing() -> None:
    x, _ = dictionary_data(300)
    cfg = TrainingConfig(batch_size=100, num_epochs=1, learning_rate=1e-9)
    trainer = Trainer(TensorSource(x, cfg), SaeConfig(num_latents=F, k=K), cfg, None)
    trainer.prepare(resume=False)
    trainer.sae.requires_grad_(True)
    batches = list(trainer.source.batches(0))
    trainer.run(progress=False)
    since = trainer.dead.since_fired[:-1]
    frozen: SparseAutoencoder = trainer.sae
    expected = torch.full((F,), 300)
    for number, rows in enumerate(batches):
        codes = frozen.encode(rows)
        expected[codes.top_indices[codes.top_acts > 0].unique()] = 300 - 100 * (number + 1)
    assert torch.equal(since, expected)
    assert set(since.tolist()) >= {0, 100}


def test_zero_activations_do_not_count_as_firing() -> None:
    # top-k pads rows with too few positive latents: those entries are in the code, but nothing fired.
    x = torch.zeros(64, 4)
    cfg = TrainingConfig(batch_size=16, num_epochs=1, l1_weight=0.0)
    trainer = Trainer(TensorSource(x, cfg), SaeConfig(num_latents=16, k=4), cfg, None)
    trainer.prepare(resume=False)
    records: list[dict[str, float]] = []
    trainer.run(progress=records.append)
    assert trainer.dead.since_fired[:-1].tolist() == [64] * 16
    assert records[-1]["l0"] == 0
    assert records[-1]["dead_fraction"] == 1.0


def test_bfloat16_autocast_trains_as_well_and_keeps_float32_weights() -> None:
    x, _ = dictionary_data(2_048)

    def final(autocast: str) -> tuple[SparseAutoencoder, float]:
        cfg = TrainingConfig(batch_size=128, num_epochs=3, learning_rate=5e-3, autocast=autocast)
        sae = train_sae(x, SaeConfig(num_latents=F, k=K), cfg, progress=False)
        return sae, sae(x).fvu.item()

    exact, exact_fvu = final("none")
    rounded, rounded_fvu = final("bf16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact.W_dec, rounded.W_dec)
    assert rounded_fvu == pytest.approx(exact_fvu, rel=0.05)


def test_the_learning_rate_rule_and_the_warm_up() -> None:
    x, _ = dictionary_data(64)
    rates: list[float] = []
    cfg = TrainingConfig(batch_size=16, num_epochs=2, learning_rate=None, lr_warmup_steps=5, log_every=1)
    train_sae(
        x,
        SaeConfig(num_latents=F, k=K),
        cfg,
        progress=lambda record: rates.append(record["learning_rate"]) if record["event"] == "step" else None,
    )
    peak = 2e-4 / (F / 2**14) ** 0.5
    assert rates == pytest.approx([peak * min(1.0, step / 5) for step in range(1, 9)])

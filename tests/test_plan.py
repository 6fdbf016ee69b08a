"""What a run plans for an autoencoder that only L1 keeps sparse: without it, every latent would fire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finescope.sae import train_sae
from finescope.sae.architectures import TRAINED
from finescope.sae.metrics import training_log
from finescope.workflow.plan import plan_training


def plan(sae: dict[str, Any], training: dict[str, Any] | None = None, tokens: int = 200_000) -> Any:
    return plan_training(tokens, 64, device="cpu", seed=1, sae=sae, training=training or {})


def test_the_weight_of_l1_goes_with_k_and_only_where_it_is_needed() -> None:
    weights = {
        name: plan({"architecture": name, "k": k}).training.l1_weight for name in TRAINED for k in (16,)
    }
    assert weights == {**dict.fromkeys(TRAINED, 0.0), "relu": 5 / 16, "gated": 10 / 16}
    assert plan({"architecture": "relu", "k": 32}).training.l1_weight == 5 / 32
    assert plan({"architecture": "relu"}, {"l1_weight": 0.02}).training.l1_weight == 0.02


def test_a_matryoshka_has_as_many_latents_as_its_last_width() -> None:
    assert plan({"architecture": "matryoshka", "matryoshka_widths": [8, 50]}).sae.num_latents == 50
    wide = plan({"architecture": "matryoshka", "matryoshka_widths": [64, 128], "expansion_factor": 2})
    assert wide.sae.latents(64) == 128


class Tokens:
    """A store of random activations."""

    width = 8

    def __init__(self, tokens: int) -> None:
        self.num_tokens = tokens
        self._rows = torch.randn(tokens, self.width, generator=torch.Generator().manual_seed(1))

    def batches(self, batch_size: int, *, seed: int, epoch: int = 0) -> Iterator[torch.Tensor]:
        yield from self._rows.split(batch_size)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("tokens", [1, 63, 64, 1300, 2519, 4100, 8255])
@pytest.mark.parametrize("batch", [None, 64, 100])
def test_as_many_steps_are_done_as_are_announced(tmp_path: Path, tokens: int, batch: int | None) -> None:
    fields = {"num_epochs": 2, "log_every": 1, **({"batch_tokens": batch} if batch else {})}
    chosen = plan_training(tokens, 8, device="cpu", seed=1, sae={"num_latents": 16, "k": 2}, training=fields)
    train_sae(Tokens(tokens), chosen.sae, chosen.training, out_dir=tmp_path, progress=False)
    assert training_log(tmp_path)[-1]["step"] == chosen.steps


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_so_weighed_a_dictionary_is_sparse(architecture: str) -> None:
    """Activations of eight latents out of 128, at a level above zero, as models have it."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.nn.functional.normalize(torch.randn(128, 64, generator=generator), dim=1)
    active = torch.rand(20_000, 128, generator=generator).topk(8).indices
    strength = 1 + torch.rand(20_000, 8, generator=generator)
    x = (strength[..., None] * rows[active]).sum(1) + 1

    def latents(**training: Any) -> float:
        chosen = plan({"architecture": architecture, "num_latents": 256, "k": 8}, training, len(x))
        sae = train_sae(x, chosen.sae, chosen.training, progress=False)
        return len(sae.encode_sparse(x[:500]).indices) / 500

    fast = {"learning_rate": 3e-3, "batch_tokens": 500}
    planned, without = latents(**fast), latents(**fast, l1_weight=0.0)
    assert 4 < planned < 48
    assert without > 4 * planned

"""What a run plans for an autoencoder that only L1 keeps sparse: without it, every latent would fire."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finescope.sae import train_sae
from finescope.sae.architectures import TRAINED
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

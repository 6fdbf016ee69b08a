"""Sensible sizes for an SAE that is trained on the way, and how long a run will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from finescope.config import SaeConfig, TrainingConfig
from finescope.device import usable_device
from finescope.sae.architectures import architecture_class
from finescope.sae.sources import steps_of_epoch

BATCH_TOKENS = 2048
MIN_STEPS = 400
"""Steps below which the dictionary is still visibly unfinished; small corpora are read several times."""
MAX_EPOCHS = 8
TOKENS_PER_LATENT = 48
"""A latent that sees fewer tokens than this in training is mostly noise."""
CHARACTERS_PER_TOKEN = 4.0
TRAINING_PRODUCTS = 5
"""What a step of training takes, about, in dense products of batch, width and latents."""


@dataclass(frozen=True)
class TrainingPlan:
    """The two configurations of the SAE's training and the number of steps they lead to."""

    sae: SaeConfig
    training: TrainingConfig
    steps: int


def plan_training(
    tokens: int, width: int, *, device: str, seed: int, sae: dict[str, Any], training: dict[str, Any]
) -> TrainingPlan:
    """Choose F, epochs and batch for the tokens there are; what the user set stays as it is.

    K is 32, less for a small dictionary. F is the default expansion of D, less where the corpus is too small
    to teach that many latents; of a Matryoshka with given widths it is the last of these. Epochs are as many
    as it takes to get to 400 steps, and at most 8.

    Of architectures that are sparse by L1 alone its weight is such that about K latents of a token fire: on
    MiniLM's block 4 (25 600 tokens, F = 512, K = 16, 400 steps) 16 with ReLU's 5/K and 14 with Gated's 10/K;
    79 with ReLU, F = 1536 and K = 32, which isn't done in as many steps.

    Args:
        tokens: tokens to train on.
        width: D.
        device: to train on.
        seed: of initialisation and shuffling.
        sae: fields of SaeConfig set by the user.
        training: fields of TrainingConfig set by the user.
    """
    shape = dict(sae)
    if shape.get("matryoshka_widths") and not shape.keys() & {"num_latents", "expansion_factor"}:
        shape["num_latents"] = shape["matryoshka_widths"][-1]
    if "num_latents" not in shape and "expansion_factor" not in shape:
        full = width * SaeConfig().expansion_factor
        fitting = 1 << max(0, (max(1, tokens) // TOKENS_PER_LATENT).bit_length() - 1)
        shape["num_latents"] = max(min(full, fitting), min(full, 2 * width), shape.get("k", 1))
    latents = int(shape.get("num_latents", 0)) or width * int(shape.get("expansion_factor", 1))
    # A small dictionary with many latents per token is not sparse: every latent would fire in every document.
    shape.setdefault("k", min(SaeConfig().k, max(4, latents // 32), latents))
    # MultiTopK asks for 4K latents per token, which without native kernels makes a step four times as long.
    shape.setdefault("multi_topk", False)
    config = SaeConfig(**shape)
    fields: dict[str, Any] = {
        "batch_tokens": min(BATCH_TOKENS, max(64, tokens // 20)),
        "learning_rate": None,
        "l1_weight": architecture_class(config.architecture).l1_times_k / config.k,
        "device": device,
        "seed": seed,
        "save_every": 1,
        "log_every": 20,
        **training,
    }
    batch = int(fields["batch_tokens"] or BATCH_TOKENS)
    per_epoch = max(1, steps_of_epoch(tokens, batch))
    fields.setdefault("num_epochs", max(1, min(MAX_EPOCHS, round(MIN_STEPS / per_epoch))))
    return TrainingPlan(config, TrainingConfig(**fields), per_epoch * int(fields["num_epochs"]))


def matmul_flops(device: str) -> float:
    """Measure, in a blink, how many float32 operations per second a matrix product reaches."""
    import torch

    left, right = (torch.randn(1024, 1024, device=usable_device(device)) for _ in range(2))
    (left @ right)[0, 0].item()
    start = time.perf_counter()
    for _ in range(4):
        product = left @ right
    product[0, 0].item()
    return 4 * 2 * 1024**3 / max(time.perf_counter() - start, 1e-6)


def training_seconds(plan: TrainingPlan, width: int, flops: float) -> float:
    """Estimate the time of training, from ``TRAINING_PRODUCTS`` a step."""
    batch = plan.training.batch_tokens or BATCH_TOKENS
    return TRAINING_PRODUCTS * 2.0 * batch * width * plan.sae.latents(width) * plan.steps / flops

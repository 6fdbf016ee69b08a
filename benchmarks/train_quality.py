"""How well autoencoders reconstruct that we train, and that other libraries' own trainers train.

``python -m benchmarks.train_quality STORE [--latents F] [-k K] [--steps N] [--only NAME]``

STORE is a folder of activations, as ``finescope activations`` or ``finescope demo --text`` leaves one. Every
trainer takes as many optimiser steps, on the same batches, with the settings that its library recommends, cut
to that many steps: BatchTopK and Matryoshka against dictionary_learning, JumpReLU against SAELens (the extra
peers). What is compared is the fraction of variance unexplained of tokens that nobody was trained on,
at equal L0: thresholds are scaled by one factor until K latents of a token fire on average. How many fired
before says whether a trainer got there in so many steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finescope.activations import ActivationStore
from finescope.config import SaeConfig, TrainingConfig
from finescope.sae import train_sae
from finescope.sae.sources import open_source

UNSEEN = 16_384
_ROWS = 2_048


@dataclass
class Task:
    """What all trainers are given."""

    train: Tensor
    unseen: Tensor
    latents: int
    k: int
    steps: int
    batch: int
    seed: int = 0

    @property
    def epochs(self) -> int:
        return -(-self.steps * self.batch // len(self.train))

    @property
    def warmup(self) -> int:
        return max(1, self.steps // 20)

    def training(self, **options: Any) -> TrainingConfig:
        fields = {"batch_tokens": self.batch, "num_epochs": self.epochs, "seed": self.seed}
        fields |= {"learning_rate": None, "l1_weight": 0.0, "lr_warmup_steps": self.warmup}
        return TrainingConfig(**{**fields, **options})

    def batches(self, scale: float) -> Iterator[Tensor]:
        """Yield what ours is trained on, in the same order."""
        source = open_source(self.train, self.training())
        for epoch in range(self.epochs):
            for rows in source.batches(epoch):
                yield rows * scale


@dataclass
class Trained:
    """An autoencoder as dense functions of activations."""

    encode: Callable[[Tensor], Tensor]
    """[b,D] → pre-activations [b,F]"""
    decode: Callable[[Tensor], Tensor]
    """activations [b,F] → [b,D]"""
    threshold: Tensor
    """[F], or [] for all."""
    scale: float = 1.0
    """What activations are multiplied by."""


@torch.no_grad()
def quality(trained: Trained, x: Tensor, k: float) -> tuple[float, float]:
    """Return the FVU of activations [B,D] where K latents fire on average, and the L0 without scaling."""
    parts = [torch.relu(trained.encode(rows * trained.scale)) for rows in x.split(_ROWS)]

    def l0(factor: float) -> float:
        return sum(int((part > trained.threshold * factor).sum()) for part in parts) / len(x)

    low, high = 0.0, 1.0
    while l0(high) > k:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if l0(middle) > k else (low, middle)
    error = 0.0
    for part, rows in zip(parts, x.split(_ROWS), strict=True):
        out = trained.decode(part * (part > trained.threshold * high)) / trained.scale
        error += float((rows - out).double().square().sum())
    return error / float((x - x.mean(0)).double().square().sum()), l0(1.0)


def ours(task: Task, architecture: str, rate: float | None, **options: Any) -> Trained:
    shape = SaeConfig(architecture=architecture, num_latents=task.latents, k=task.k, **options)
    sae = train_sae(task.train, shape, task.training(learning_rate=rate), progress=False)
    weight, bias, decoder = sae.encoder.weight, sae.encoder.bias, sae.W_dec
    return Trained(
        lambda x: (x - sae.b_dec) @ weight.T + bias,
        lambda acts: acts @ decoder + sae.b_dec,
        sae.threshold.detach().float(),
    )


def dictionary_learning(task: Task, architecture: str, rate: float | None) -> Trained:
    """Its trainer, on activations of mean square norm 1, as its ``trainSAE`` makes them."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    scale = float(task.train.square().sum(1).mean().rsqrt())
    given: dict[str, Any] = {
        "steps": task.steps,
        "activation_dim": task.train.shape[1],
        "dict_size": task.latents,
        "k": task.k,
        "layer": 0,
        "lm_name": "",
        "lr": rate,
        "warmup_steps": task.warmup,
        "threshold_start_step": task.steps // 2,
        "seed": task.seed,
        "device": "cpu",
    }
    if architecture == "matryoshka":
        fractions = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]  # the widths that ours has by default
        trainer: Any = MatryoshkaBatchTopKTrainer(**given, group_fractions=fractions)
    else:
        trainer = BatchTopKTrainer(**given)
    for step, rows in enumerate(task.batches(scale)):
        if step == task.steps:
            break
        trainer.update(step, rows)
    sae = trainer.ae
    if architecture == "matryoshka":
        return Trained(
            lambda x: (x - sae.b_dec) @ sae.W_enc + sae.b_enc,
            sae.decode,
            sae.threshold.clamp_min(1e-3),
            scale,
        )
    return Trained(lambda x: sae.encoder(x - sae.b_dec), sae.decode, sae.threshold.clamp_min(1e-3), scale)


def saelens(task: Task, rate: float | None) -> Trained:
    """Its trainer, activations scaled to a mean norm of √D, thresholds by the quadratic loss of L0."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    width = task.train.shape[1]
    scale = width**0.5 / float(task.train.norm(dim=1).mean())
    sae = JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=width,
            d_sae=task.latents,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=float(task.k),
            l0_warm_up_steps=task.warmup,
        )
    )
    rate = rate or SAETrainerConfig.lr
    cfg = SAETrainerConfig(
        total_training_samples=task.steps * task.batch,
        train_batch_size_samples=task.batch,
        lr=rate,
        lr_end=rate / 10,
        lr_warm_up_steps=task.warmup,
    )
    trainer = SAETrainer(cfg, sae, task.batches(scale))
    for step, rows in enumerate(task.batches(scale)):
        if step == task.steps:
            break
        trainer.step(rows)
        trainer.n_training_steps += 1
    return Trained(
        lambda x: sae.process_sae_in(x) @ sae.W_enc + sae.b_enc,
        lambda acts: acts @ sae.W_dec + sae.b_dec,
        sae.threshold.detach(),
        scale,
    )


RUNS: dict[str, Callable[[Task, float | None], Trained]] = {
    "batchtopk ours": lambda task, rate: ours(task, "batchtopk", rate),
    "batchtopk dictionary_learning": lambda task, rate: dictionary_learning(task, "batchtopk", rate),
    "jumprelu ours": lambda task, rate: ours(task, "jumprelu", rate),
    "jumprelu saelens": saelens,
    "matryoshka ours": lambda task, rate: ours(task, "matryoshka", rate),
    "matryoshka dictionary_learning": lambda task, rate: dictionary_learning(task, "matryoshka", rate),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=180_000, help="that are trained on")
    parser.add_argument("--rate", type=float, action="append", help="learning rate in place of the usual one")
    parser.add_argument("--only", action="append", choices=[*RUNS], help="may be repeated")
    given = parser.parse_args()
    x = ActivationStore(given.store).sample(given.tokens + UNSEEN).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    steps = -(-given.tokens // given.batch)  # of an epoch
    steps *= max(1, round(given.steps / steps))
    task = Task(x[UNSEEN:], x[:UNSEEN], given.latents, given.k, steps, given.batch)
    print(f"{len(task.train)} tokens of width {x.shape[1]}, {steps} steps of {given.batch}", flush=True)
    for name in given.only or RUNS:
        for rate in given.rate or [None]:
            torch.manual_seed(task.seed)
            start = time.perf_counter()
            trained = RUNS[name](task, rate)
            seconds = time.perf_counter() - start
            fvu, l0 = quality(trained, task.unseen, task.k)
            record = {"run": name, "rate": rate, "fvu": round(fvu, 4), "l0_before": round(l0, 2)}
            print(json.dumps({**record, "seconds": round(seconds)}), flush=True)


if __name__ == "__main__":
    main()

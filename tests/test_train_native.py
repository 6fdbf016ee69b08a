"""Training with the compiled operations and with the pure-torch ones, in fresh processes: the same losses.

Their encoders agree to the bit, but their sums of losses, gradients and updates are rounded in other orders.
A step that is wrong by more than rounding would part the two runs within a few steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.requires_native

STEPS = 200

SCRIPT = """
import json, torch
from finescope.config import SaeConfig, TrainingConfig
from finescope.ops import native
from finescope.sae.sources import open_source
from finescope.sae.train import Trainer

torch.manual_seed(0)
D, F, B = 24, 192, 128
directions = torch.nn.functional.normalize(torch.randn(60, D))
codes = torch.rand(B * 50, 60) * (torch.rand(B * 50, 60) < 0.05)
x = codes @ directions + 0.02 * torch.randn(B * 50, D)
cfg = TrainingConfig(
    batch_size=B, num_epochs=4, learning_rate=1e-3, auxk_alpha=1 / 32, dead_feature_threshold=2000, seed=1
)
trainer = Trainer(open_source(x, cfg, None), SaeConfig(num_latents=F, k=4, multi_topk=True), cfg, None)
trainer.prepare(False)
losses, step = [], trainer._step
def remember(batch):
    before = trainer.window.state()
    step(batch)
    losses.append([a - b for a, b in zip(trainer.window.state(), before)])
    dead.append(int((trainer.dead.since_fired[:-1] >= 2000).sum()))
dead = []
trainer._step = remember
trainer.run(False)
print(json.dumps({"losses": losses, "dead": max(dead), "native": bool(native.status()["cpu"].get("active"))}))
"""


def run(native: str) -> dict[str, object]:
    environment = {**os.environ, "FINESCOPE_NATIVE": native, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_losses_over_200_steps() -> None:
    compiled, pure = run("1"), run("0")
    assert compiled["native"]
    assert not pure["native"]
    assert compiled["dead"] > 0  # AuxK took part
    losses, others = compiled["losses"], pure["losses"]
    assert len(losses) == len(others) == STEPS
    for step, (mine, theirs) in enumerate(zip(losses, others, strict=True)):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5), step
    assert losses[-1][0] < 0.8 * losses[5][0]  # it learnt something

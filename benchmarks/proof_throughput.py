"""Tokens a second of the ways to train SmolLM2-135M that a proof could use.

``python -m benchmarks.proof_throughput``: per second of processor time, one thread, 8 texts of 64 tokens a
step, median of steps; each way in a process of its own. LoRA needs peft and is left out without it. With
``--threads 2`` two cores are used, and the seconds are those of the clock.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finescope.activations.models import load_causal_model
from finescope.demo.text import find_causal_model
from finescope.proof.upper import UpperBlocks

ROWS, LENGTH, STEPS = 8, 64, 5
RATE = 1e-5


def _ids() -> torch.Tensor:
    return torch.randint(3, 49_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def _whole(dtype: torch.dtype, *, autocast: bool = False, lora: bool = False) -> Callable[[], Any]:
    """Return a step of the whole model; of bfloat16 weights, on float32 ones behind them."""
    model: Any = load_causal_model(str(find_causal_model()), dtype=dtype)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    masters = [weight.detach().float().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=RATE, fused=True)
    ids = _ids()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        for weight, master in zip(weights, masters, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)

    return step


def _upper(blocks: int, *, reading: bool = False) -> Callable[[], Any]:
    """Return a step on stored activations; or the reading of held-out texts."""
    model = UpperBlocks(str(find_causal_model()), blocks)
    rows = list(_ids())
    below = model.below(rows)
    return (lambda: model.loss(rows, below)) if reading else (lambda: model.step(rows, below, RATE))


WAYS: dict[str, Callable[[], Callable[[], Any]]] = {
    "everything, float32": lambda: _whole(torch.float32),
    "everything, bfloat16 by autocast": lambda: _whole(torch.float32, autocast=True),
    "everything, bfloat16 with float32 weights": lambda: _whole(torch.bfloat16),
    "LoRA of rank 16 on all linear layers, bfloat16": lambda: _whole(torch.bfloat16, lora=True),
    "upper 10 of 30 blocks, on stored activations": lambda: _upper(10),
    "upper 6 of 30 blocks, on stored activations": lambda: _upper(6),
    "reading only, upper 6 of 30 blocks": lambda: _upper(6, reading=True),
}


def measure(way: str, threads: int) -> float:
    """Return tokens a second, of processor time where there is one thread."""
    torch.set_num_threads(threads)
    step = WAYS[way]()
    step()
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = []
    for _ in range(STEPS):
        start = clock()
        step()
        seconds.append(clock() - start)
    return ROWS * LENGTH / statistics.median(seconds)


def main() -> None:
    """Measure every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=list(WAYS))
    given = parser.parse_args()
    if given.way:
        print(f"{given.way}: {measure(given.way, given.threads):,.0f} tokens/s", flush=True)
        return
    for way in WAYS:
        if way.startswith("LoRA") and importlib.util.find_spec("peft") is None:
            continue
        command = [sys.executable, "-m", "benchmarks.proof_throughput", "--way", way]
        subprocess.run([*command, "--threads", str(given.threads)], check=True)


if __name__ == "__main__":
    main()

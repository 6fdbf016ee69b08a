"""The tap against the loop that one writes with transformers: every token's output of the last block.

The same sentences and model, loaded before; both give every token's activation but for special tokens. The
loop takes batches of 64 texts sorted by length, padded. ``--rows`` takes another number of sentences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import harness, texts
from finescope.activations import ActivationTap
from finescope.corpus import Row

ROWS = 3000
BATCH = 64


def by_loop(tokenizer: Any, model: Any, rows: list[str]) -> list[Tensor]:
    """[tokens,D] of each text."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with torch.inference_mode():
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            given = tokenizer(
                [rows[i] for i in chosen],
                padding=True,
                truncation=True,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special = given.pop("special_tokens_mask").bool()
            states = model(**given).last_hidden_state
            for place, row in enumerate(chosen):
                found[row] = states[place, ~special[place]]
    return found


def bench_tap(benchmark: Any, rows: int) -> None:
    sentences = texts.some(rows)
    tokenizer, model = texts.plain_model()
    tap = ActivationTap(model, "encoder.layer.5", tokenizer=tokenizer)
    given = [Row(str(number), text) for number, text in enumerate(sentences)]

    def ours() -> list[Tensor]:
        return [document.activations for document in tap.run(given)]

    for left, right in zip(ours(), by_loop(tokenizer, model, sentences), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    harness.compare(benchmark, ours, {"transformers": lambda: by_loop(tokenizer, model, sentences)})

"""Problems that make a screen useless, stretch its bounds, or leave the range of its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support import oracle
from support.rows import KINDS, rows

ENCODED = [*KINDS, "sparse", "zeros"]


def encoding(kind: str, tokens: int, latents: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias of one of ``ENCODED``."""
    base = "gaussian" if kind in ("sparse", "zeros") else kind
    x, weight = rows(base, tokens, width, torch.float32, 1), rows(base, latents, width, torch.float32, 2)
    if kind == "sparse":
        x, weight = (side * (torch.rand(side.shape) < 0.1) for side in (x, weight))
    if kind == "zeros":
        x[::3], weight[::2] = 0, 0
    return x, weight, rows("heavy", 1, latents, torch.float32, 3)[0] * x.abs().amax()


@dataclass(frozen=True)
class Search:
    """A search for 20 neighbours among rows with zeros, NaN and infinities, plain and with every option."""

    queries: Tensor
    corpus: Tensor
    plain: tuple[Tensor, Tensor]
    """The answer without options."""
    options: dict[str, Any]
    restricted: tuple[Tensor, Tensor]
    """The answer with ``options``."""


def search(kind: str, metric: str, queries: int, corpus: int) -> Search:
    """A search of one of ``KINDS``, and its answers."""
    asked, held = rows(kind, queries, 72, torch.float32, 1), rows(kind, corpus, 72, torch.float32, 2)
    held[3], held[10, 5], held[11, 71], asked[2, 1] = 0, float("nan"), float("inf"), float("-inf")
    scores = oracle.dense_scores(asked, held, metric)
    plain = oracle.search(scores, 20, torch.float32)
    options = {
        "exclude": torch.stack([plain[1][:, 0] + 5, plain[1][:, 3] + 5, torch.full((queries,), -1)], dim=1),
        "mask": torch.rand(corpus) < 0.6,
        "id_offset": 5,
    }
    options["min_score"] = oracle.search(scores, 20, torch.float32, **options)[0][0, 9].item()
    return Search(asked, held, plain, options, oracle.search(scores, 20, torch.float32, **options))


def on_the_bound() -> tuple[Tensor, Tensor]:
    """x and weight whose scores at the edge of the 32 best differ by less than any screen can tell apart."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(256, generator=generator)
    weight = torch.randn(3000, 256, generator=generator) * 0.01
    # Twice as many rows as are asked for, all within a few units in the last place of one another.
    crowd = torch.randperm(3000, generator=generator)[:64]
    weight[crowd] = direction * (1 + torch.randint(-3, 4, (64, 1), generator=generator) * 2.0**-23)
    x = torch.stack([direction, direction * 0.37, direction + 0.01 * torch.randn(256, generator=generator)])
    return torch.cat([x, torch.randn(20, 256, generator=generator)]), weight

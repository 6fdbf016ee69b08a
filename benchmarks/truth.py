"""What results are held against before anything is timed: all scores in float64."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


def activations(x: Tensor, weight: Tensor, bias: Tensor, block: int = 8192) -> Tensor:
    """All rectified pre-activations [B,F] in float64."""
    left, parts = x.double(), []
    for first in range(0, len(weight), block):
        rows = slice(first, first + block)
        parts.append(torch.relu(left @ weight[rows].double().T + bias[rows].double()))
    return torch.cat(parts, dim=1)


def cosines(queries: Tensor, corpus: Tensor, block: int = 1 << 16) -> Tensor:
    """All cosines [Q,N] in float64."""
    left = normalize(queries.double())
    return torch.cat([left @ normalize(rows.double()).T for rows in corpus.split(block)], dim=1)


def check_topk(scores: Tensor, ids: Tensor, exact: Tensor) -> None:
    """Hold a result [Q,k] against all scores in float64 [Q,N].

    float64 sums of another order differ in their last places, so neighbours that close may be swapped.

    Raises:
        AssertionError: it isn't one of the k best of each row, in order.
    """
    k = scores.shape[1]
    wanted = torch.topk(exact, k, dim=1).values
    torch.testing.assert_close(scores.double(), wanted, rtol=2.0**-23, atol=1e-30)
    torch.testing.assert_close(exact.gather(1, ids), wanted, rtol=1e-11, atol=1e-13)
    if any(len(set(row)) != k for row in ids.tolist()):
        raise AssertionError("an id twice")


def recall(ids: Any, wanted: Tensor) -> float:
    """The share of the wanted ids [Q,k] that are among those found."""
    found = torch.as_tensor(ids).unsqueeze(2) == wanted.unsqueeze(1)
    return found.any(dim=1).double().mean().item()


def same_results(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> None:
    """Raise unless two results have the same bits."""
    for left, right in zip(got, wanted, strict=True):
        if not torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)):
            raise AssertionError("two runs on the same data differ")

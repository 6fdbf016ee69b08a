"""Training on rows in the order in which a method takes them, with losses on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.proof.upper import UpperBlocks

Rows = list[Tensor]


def filled(rows: Sequence[Tensor], points: Sequence[int]) -> list[Rows]:
    """Cut rows into stretches that end exactly at given numbers of tokens.

    Of the row that crosses a point only the beginning is taken. When the rows run out before the last point
    they are gone through again, but only where ``rows`` is not empty.

    Args:
        rows: int64 [n] each, in the order in which they are taken.
        points: ascending numbers of tokens.

    Returns:
        rows between one point and the next. A beginning of one token, of which nothing can be learned, is
        left out, and the stretch is that much shorter.
    """
    stretches: list[Rows] = []
    place, before = 0, 0
    for point in points:
        left, stretch = point - before, []
        while left > 0 and rows:
            row = rows[place % len(rows)][:left]
            place += 1
            left -= len(row)
            if len(row) > 1:
                stretch.append(row)
        stretches.append(stretch)
        before = point
    return stretches


def batches(rows: Rows, tokens: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Yield the places of rows in batches of about so many tokens, rows of like length together.

    How many batches there are depends on the number of tokens alone, so that methods that like long rows take
    as many steps as those that like short ones.

    Args:
        rows: int64 [n] each.
        tokens: of a batch.
        generator: of the order of the batches.
    """
    lengths = np.array([len(row) for row in rows])
    if not lengths.size:
        return
    order = np.argsort(lengths, kind="stable")
    steps = min(len(rows), max(1, round(int(lengths.sum()) / tokens)))
    middle = np.cumsum(lengths[order]) - lengths[order] / 2
    of = np.minimum((middle / lengths.sum() * steps).astype(np.int64), steps - 1)
    for step in generator.permutation(steps).tolist():
        places = order[of == step].tolist()
        if places:
            yield places


class Reader:
    """What the lower blocks make of rows: computed when a row is first asked for, and kept.

    Each row goes through them by itself: in a batch its last bits would depend on what stands beside it, and
    a proof that was stopped would end with other numbers.
    """

    def __init__(self, model: UpperBlocks):
        """Remember the model; rows come later."""
        self._model = model
        self._below: dict[bytes, Tensor] = {}

    def below(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the activations of rows, [n,D] each."""
        found = []
        for row in rows:
            key = row.numpy().tobytes()
            if key not in self._below:
                (self._below[key],) = self._model.below([row])
            found.append(self._below[key])
        return found


def mean_loss(model: UpperBlocks, reader: Reader, rows: Rows, batch_tokens: int) -> float:
    """Return the mean loss of a token over rows, without the first of each."""
    total, count = 0.0, 0
    for places in batches(rows, batch_tokens, np.random.default_rng(0)):
        batch = [rows[place] for place in places]
        loss, tokens = model.loss(batch, reader.below(batch))
        total, count = total + loss, count + tokens
    return total / count


def train(
    model: UpperBlocks,
    reader: Reader,
    stretches: Sequence[Rows],
    batch_tokens: int,
    rate: Callable[[int], float],
    generator: np.random.Generator,
    measure: Callable[[int], Any],
    seen: Callable[[int], None] = lambda tokens: None,
) -> list[Any]:
    """Train on one stretch of rows after the other, and measure after each.

    Args:
        model: changed in place.
        reader: of the lower blocks.
        stretches: as ``filled`` returns them.
        batch_tokens: tokens of a step, about.
        rate: learning rate by the number of steps taken.
        generator: of the order of batches within a stretch.
        measure: called with the tokens seen at the end of each stretch.
        seen: called with the tokens of every step.

    Returns:
        what ``measure`` returned.
    """
    found, steps, tokens = [], 0, 0
    for stretch in stretches:
        for places in batches(stretch, batch_tokens, generator):
            batch = [stretch[place] for place in places]
            model.step(batch, reader.below(batch), rate(steps))
            steps += 1
            count = sum(len(row) for row in batch)
            tokens += count
            seen(count)
        found.append(measure(tokens))
    return found


def tokenised(tokenizer: Any, texts: Sequence[str], max_length: int) -> Rows:
    """Return the token ids of texts, int64, at most so many; texts of fewer than two tokens are empty."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length, add_special_tokens=False)[
        "input_ids"
    ]
    return [torch.tensor(row if len(row) > 1 else [], dtype=torch.int64) for row in ids]

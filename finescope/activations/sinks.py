"""Attention sinks: tokens of a huge norm, which say nothing about a text, found and left out of training.

A causal model without a start token puts activations of 30 to 1000 times the usual norm on the first token of
whatever it reads, and on a few others. Their variance hides that of all other tokens, and a mean over a short
document is theirs. A token counts as a sink by its norm alone, against a limit that is measured once for a
layer: whether one is left out depends on no other token, batch or document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finescope.activations.batches import ActivationBatch, norms, within
from finescope.progress import counted

if TYPE_CHECKING:
    from finescope.activations.store import ActivationStore
    from finescope.activations.tap import ActivationTap
    from finescope.corpus.row import Row

FACTOR = 10.0
"""Times the median norm above which a token is a sink."""
SAMPLE_TOKENS = 8192
"""Tokens that the limit is measured on where no activations are stored."""


@dataclass(frozen=True)
class Sinks:
    """What was found among some tokens."""

    max_norm: float | None
    """Norm above which a token is a sink; None if it can't be said, for want of tokens that begin no text."""
    median: float
    """Norm of the tokens, those that begin a text left out."""
    tokens: int
    sinks: int
    """How many of the tokens are sinks."""
    beginnings: int
    """How many of the sinks begin a text, or a window of one."""

    @property
    def words(self) -> str:
        """What is to be said of them."""
        share = f"{self.sinks / max(1, self.tokens):.2%} of {self.tokens:,}"
        return (
            f"attention sinks: {counted(self.sinks, 'token')} ({share}; {self.beginnings:,} at the beginning "
            f"of a text) of a norm above {self.max_norm:,g}, {FACTOR:g} times the median"
        )


def find_sinks(batches: Iterable[ActivationBatch]) -> Sinks:
    """Measure the limit and count the sinks.

    The limit is rounded to three digits, so that it doesn't depend on the last bits of the activations. The
    first token of a window has no say in the median: in a corpus of very short texts, sinks would be usual.
    """
    lengths, starts = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.bool)]
    for batch in batches:
        lengths.append(norms(batch.activations).cpu())
        start = torch.zeros(len(lengths[-1]) + 1, dtype=torch.bool)
        start[torch.tensor(batch.offsets)] = True
        starts.append(start[:-1])
    length, begins = torch.cat(lengths), torch.cat(starts)
    usual = length[~begins]
    if not len(usual):
        return Sinks(None, 0.0, len(length), 0, 0)
    median = float(usual.median())
    limit = float(f"{FACTOR * median:.3g}")
    sinks = length > limit
    return Sinks(limit, median, len(length), int(sinks.sum()), int((sinks & begins).sum()))


def sinks_of_store(store: ActivationStore) -> Sinks:
    """Measure the limit on all tokens of a store, in one pass."""
    return find_sinks(store.between(0, int(store.indices[-1]) + 1))


def sinks_of_rows(tap: ActivationTap, rows: Iterable[Row]) -> Sinks:
    """Measure the limit on the beginnings of the first rows, about 8192 tokens.

    Raises:
        InputError: as ``ActivationTap.run``.
    """
    short = tap.truncating()
    chosen: list[Row] = []
    tokens = 0
    for row in rows:
        if tokens >= SAMPLE_TOKENS:
            break
        tokens += short.windower.count([row])[0]
        chosen.append(row)
    return find_sinks(short.batches(chosen))


class WithoutSinks:
    """The tokens of a store up to a norm, as the trainer reads them.

    Attributes:
        width: D.
        num_tokens: tokens that are left.
    """

    def __init__(self, store: ActivationStore, max_norm: float, sinks: int) -> None:
        """Leave out of a store its sinks.

        Args:
            store: activations.
            max_norm: norm above which a token is a sink.
            sinks: how many of its tokens are.
        """
        self._store, self._max_norm = store, max_norm
        self.width, self.num_tokens = store.width, store.num_tokens - sinks

    def batches(self, batch_size: int, *, seed: int, epoch: int = 0) -> Iterator[Tensor]:
        """Yield all tokens but sinks once, in the order of the store's, in batches [b,D]."""
        rest: Tensor | None = None
        for rows in self._store.batches(batch_size, seed=seed, epoch=epoch):
            kept = rows[within(rows, self._max_norm)]
            held = kept if rest is None else torch.cat([rest, kept])
            if len(held) < batch_size:
                rest = held
                continue
            yield held[:batch_size]
            rest = held[batch_size:].clone()  # a view would keep the batch
        if rest is not None and len(rest):
            yield rest

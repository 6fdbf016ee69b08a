"""What the first rows of a corpus tell of all of it, and how fast this machine reads some of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finescope.workflow.head import Head
from finescope.workflow.plan import CHARACTERS_PER_TOKEN, matmul_flops

if TYPE_CHECKING:
    from torch import Tensor

    from finescope.activations import ActivationTap
    from finescope.corpus.row import Row

PROBE_ROWS, PROBE_COPIES = 24, 3
"""Rows that the model is timed on. Copies fill batches about as well as the many rows of a run do."""


@dataclass(frozen=True)
class Sample:
    """Rows from the beginning of a corpus, counted.

    Attributes:
        rows: the rows.
        tokens: of each, special ones left out.
        windows: lengths of the windows that they are read in, special tokens included.
    """

    rows: Sequence[Row]
    tokens: Sequence[int]
    windows: Sequence[int]

    @classmethod
    def of(cls, tap: ActivationTap, rows: Iterable[Row]) -> Sample:
        """Count the tokens of the first rows."""
        head = Head()
        tokens: list[int] = []
        windows: list[int] = []
        for row in rows:
            found = tap.windower.cut([row])
            head.see(row)
            tokens.append(sum(len(window.kept) for window in found))
            windows += [len(window.ids) for window in found]
            if head.full:
                break
        return cls(head.rows, tokens, windows)

    @property
    def per_token(self) -> float:
        """Characters that a token has."""
        characters, tokens = sum(len(row.content) for row in self.rows), sum(self.tokens)
        return max(characters / tokens if tokens else CHARACTERS_PER_TOKEN, 1e-6)

    @property
    def probe(self) -> list[Row]:
        """Some of them that have text, from all over the sample."""
        rows = [row for row in self.rows if not row.empty]
        return rows[:: -(-len(rows) // PROBE_ROWS)] if rows else []


@dataclass(frozen=True)
class Speed:
    """How fast this machine is.

    Attributes:
        seconds_per_token: of the model, up to the layer.
        product_flops: operations a second in a matrix product.
        activations: of the rows that were read for it, [T,D] each.
    """

    seconds_per_token: float
    product_flops: float
    activations: Sequence[Tensor]

    @classmethod
    def of(cls, tap: ActivationTap, rows: Sequence[Row], device: str) -> Speed:
        """Time the model on some rows, and a matrix product."""
        start = time.monotonic()
        found = [document.activations for document in tap.run([*rows] * PROBE_COPIES)]
        tokens = sum(activations.shape[0] for activations in found)
        seconds = (time.monotonic() - start) / max(1, tokens)
        return cls(seconds, matmul_flops(device), found[: len(rows)])

"""The first rows of a corpus, kept when a pass goes through all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finescope.corpus.row import Row

COUNTED_ROWS, COUNTED_CHARACTERS = 2048, 1 << 21
"""Rows that are kept, at most, and characters after which no more are."""


@dataclass
class Head:
    """As many of the first rows as tell how many characters a token has."""

    rows: list[Row] = field(default_factory=list)
    full: bool = False
    _characters: int = 0

    def see(self, row: Row) -> None:
        """Take the next row, unless there are enough."""
        if self.full:
            return
        self.rows.append(row)
        self._characters += len(row.content)
        self.full = len(self.rows) >= COUNTED_ROWS or self._characters >= COUNTED_CHARACTERS

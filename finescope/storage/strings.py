"""Strings of an Arrow column, as a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

_BLOCK = 1 << 16


class Strings(Sequence[str]):
    """Strings that stay in Arrow's memory: as Python objects a million short ones take 60 MB more.

    Attributes:
        column: pyarrow chunked array of strings, none of them null.
    """

    def __init__(self, column: Any):
        """Look at a column."""
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        found = self.column[place]
        return list(found.to_pylist()) if isinstance(place, slice) else str(found.as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self.column.slice(start, _BLOCK).to_pylist()

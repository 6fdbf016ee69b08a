"""Strings of many rows, of which few differ: a number a row, and each string once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from finescope.storage.spill import Spill

BLOCK = 1 << 20
"""Rows looked at together."""


def picked(
    rows: NDArray[np.int64], blocks: Iterable[tuple[int, NDArray[Any]]], dtype: type[np.generic]
) -> NDArray[Any]:
    """Return the numbers of some rows, in the order asked for, out of (first row, numbers) of all blocks."""
    order = np.argsort(rows, kind="stable")
    wanted, found = rows[order], np.empty(len(rows), dtype)
    for first, numbers in blocks:
        low, high = np.searchsorted(wanted, [first, first + len(numbers)])
        found[order[low:high]] = numbers[wanted[low:high] - first]
    return found


class CodedStrings(Sequence[str]):
    """N strings as int32 codes, held in memory where they are few and else in a file: see ``Spill``.

    Attributes:
        names: the strings that occur, in the order in which they first do; a code is a place among them.
    """

    def __init__(self, rows: int, parts: Iterable[tuple[Sequence[str], NDArray[Any]]]):
        """Take N ``rows`` of strings, part by part.

        Args:
            rows: N.
            parts: the strings that a part holds, and for each of its rows a place among them.

        Raises:
            ValueError: they are of more or fewer rows.
        """
        self._codes = Spill(rows, np.int32)
        known: dict[str, int] = {}
        at = 0
        for names, places in parts:
            if at + len(places) > rows:
                raise ValueError(f"more strings than the {rows} announced")
            own = np.array([known.setdefault(name, len(known)) for name in names], np.int32)
            self._codes[at : at + len(places)] = own[places] if len(places) else own[:0]
            at += len(places)
        if at < rows:
            raise ValueError(f"{at} strings instead of the {rows} announced")
        self.names = tuple(known)

    @classmethod
    def of(cls, strings: Iterable[str], rows: int | None = None) -> CodedStrings:
        """Take strings, ``rows`` of them where they have no length."""
        if isinstance(strings, CodedStrings):
            return strings
        count = len(strings) if rows is None else rows  # type: ignore[arg-type]

        def parts() -> Iterator[tuple[Sequence[str], NDArray[Any]]]:
            left = iter(strings)
            while held := list(islice(left, BLOCK)):
                own: dict[str, int] = {}
                places = np.array([own.setdefault(name, len(own)) for name in held], np.int32)
                yield tuple(own), places

        return cls(count, parts())

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self.names[code] for code in self.codes(np.arange(len(self))[place]).tolist()]
        row = range(len(self))[place]
        return self.names[int(self._codes[row : row + 1][0])]

    def __iter__(self) -> Iterator[str]:
        for _, codes in self.blocks():
            yield from map(self.names.__getitem__, codes.tolist())

    def blocks(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield (number of the first row, codes of a block of rows), in order."""
        for low in range(0, len(self), BLOCK):
            yield low, self._codes[low : low + BLOCK]

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the codes of some rows, int64 [R], in the order asked for."""
        return picked(rows, self.blocks(), np.int32)

    def are(self, names: Iterable[str], first: int = 0, count: int | None = None) -> NDArray[np.bool_]:
        """Return for some rows, by default all, whether they are one of the strings, bool [count]."""
        wanted = set(names)
        marked = np.array([name in wanted for name in self.names], np.bool_)
        last = len(self) if count is None else first + count
        found = np.empty(max(0, last - first), np.bool_)
        for low in range(first, last, BLOCK):
            high = min(low + BLOCK, last)
            found[low - first : high - first] = marked[self._codes[low:high]]
        return found

    def counts(self) -> NDArray[np.int64]:
        """Return how often each of ``names`` occurs."""
        found = np.zeros(len(self.names), np.int64)
        for _, codes in self.blocks():
            found += np.bincount(codes, minlength=len(self.names))
        return found

"""Lines of a file by the number of their row: found by counting line ends, without reading what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
_LINE_END, _SPACE = 10, 32


@dataclass(frozen=True)
class Mark:
    """A place in a file of lines that reading can begin at.

    Attributes:
        row: number of the row there, from 0.
        offset: bytes before it.
        line: number of its line, from 1.
    """

    row: int
    offset: int
    line: int


@dataclass(frozen=True)
class Lines:
    """Lines that follow each other. Those that aren't blank are rows.

    Attributes:
        rows: number of the first row, from 0.
        numbers: int64 [n], numbers of the n rows' lines, from 1.
    """

    rows: int
    numbers: NDArray[np.int64]
    _bytes: bytes
    _starts: NDArray[np.int64]
    _ends: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.numbers.size)

    def row(self, number: int) -> tuple[int, bytes]:
        """Return the number of a row's line, and the line with its end."""
        at = number - self.rows
        return int(self.numbers[at]), self._bytes[self._starts[at] : self._ends[at]]


class LineBlocks:
    """A file of lines, block by block."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read from where ``file`` stands: at its first line. A byte-order mark there is passed over."""
        self._file = file
        self._rest = b""
        self._rows = self._lines = 0

    def pass_to(self, mark: Mark) -> None:
        """Go on from a place further on; what lies before it isn't read."""
        if mark.row > self._rows:
            self._file.seek(mark.offset)
            self._rest = b""
            self._rows, self._lines = mark.row, mark.line - 1

    @property
    def line(self) -> int:
        """Number of the line, from 1, that the next block begins with."""
        return self._lines + 1

    def next(self) -> Lines | None:
        """Return the next block; None at the end of the file."""
        whole = b""
        while not whole:
            # A line that is longer than a block is read in steps that double.
            fresh = self._file.read(max(_BLOCK, len(self._rest)))
            read = self._rest + fresh
            if not read:
                return None
            # The last line may have no end.
            cut = read.rfind(b"\n") + 1 if fresh else len(read)
            whole, self._rest = read[:cut], read[cut:]
        if self._lines == 0:
            whole = whole.removeprefix(BOM)
        return self._cut(whole)

    def _cut(self, whole: bytes) -> Lines:
        codes = np.frombuffer(whole, np.uint8)
        ends = np.flatnonzero(codes == _LINE_END) + 1
        if whole and not whole.endswith(b"\n"):
            ends = np.append(ends, len(whole))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: ends.size]
        held = codes[starts] > _SPACE
        for at in np.flatnonzero(~held).tolist():  # few: rows begin with a brace
            held[at] = bool(whole[starts[at] : ends[at]].strip())
        found = Lines(self._rows, self._lines + 1 + np.flatnonzero(held), whole, starts[held], ends[held])
        self._rows += len(found)
        self._lines += ends.size
        return found

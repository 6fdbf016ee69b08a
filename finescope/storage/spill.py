"""Numbers of many rows, written and read a slice at a time: few in memory, many in a file without a name."""

from __future__ import annotations

import tempfile
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finescope.storage.files import writing

HELD_BYTES = 16 << 20
"""Up to this size they are held in memory."""


class Spill:
    """N numbers, at first any ones, one after the other where temporary files are (``TMPDIR``).

    The file has no name and is gone with the object, or with the process.
    """

    def __init__(self, rows: int, dtype: Any):
        """Make room for N ``rows`` of numbers of a dtype."""
        self._rows, self._dtype = rows, np.dtype(dtype)
        self._held: NDArray[Any] | None = None
        if rows * self._dtype.itemsize <= HELD_BYTES:
            self._held = np.empty(rows, dtype)
        else:
            self._file: Any = tempfile.TemporaryFile(prefix="finescope-")  # noqa: SIM115
            weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return the numbers of some rows, one after the other; they aren't to be changed."""
        low, high = self._bounds(rows)
        if self._held is not None:
            return self._held[low:high]
        found = np.empty(high - low, self._dtype)
        self._file.seek(low * self._dtype.itemsize)
        self._file.readinto(found)
        return found

    def __setitem__(self, rows: slice, values: Any) -> None:
        """Keep the numbers of some rows, one after the other.

        Raises:
            StoreError: the disk is full.
        """
        low, high = self._bounds(rows)
        if self._held is not None:
            self._held[low:high] = values
            return
        found = np.ascontiguousarray(np.broadcast_to(values, high - low), self._dtype)
        with writing(tempfile.gettempdir()):
            self._file.seek(low * self._dtype.itemsize)
            self._file.write(found)
            self._file.flush()

    def _bounds(self, rows: slice) -> tuple[int, int]:
        low, high, step = rows.indices(self._rows)
        if step != 1:
            raise ValueError("rows are read and written one after the other")
        return low, max(low, high)

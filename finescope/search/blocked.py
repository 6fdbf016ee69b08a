"""Rows that lie in a file: read in blocks ahead of their use, and given back after it.

A corpus in a file may be larger than memory. What bounds the memory of a search over it is that pages are
released behind the reader: they stay in the system's page cache as long as there is room, but no longer
count as this process's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.ops.schemas import call
from finescope.storage.mapping import MappedFile, ahead

# Rows that are read whole are read this many bytes at a time.
READ_BYTES = 64 << 20
# Rows that have a packed copy are searched this many bytes at a time; of these the packed copy is read, and
# the rows that may be results. Each block costs a merge and, for each query, a few hundred candidates.
PACKED_BYTES = 256 << 20
# A packed copy is kept if it is at most this much of the rows themselves; otherwise these are read instead.
WORTH_KEEPING = 0.75
# Reading a page by itself costs about as much as reading this many rows in sequence.
_SCATTERED_ROWS = 64


@dataclass
class Block:
    """Consecutive rows: the first one's position, the rows, and their packed copy if there is one."""

    first: int
    rows: Tensor
    packed: Tensor | None


class BlockedRows:
    """[N,D] rows that are searched block by block, perhaps with packed copies of the blocks.

    Attributes:
        shape: (N, D).
        dtype: of the rows.
        packed: a packed copy for each ``tall`` rows; empty if there are none.
    """

    def __init__(
        self,
        rows: Tensor | np.ndarray[Any, Any],
        *,
        mapping: MappedFile | None = None,
        packed: Sequence[Tensor] = (),
        tall: int = 0,
    ) -> None:
        self._array = None if isinstance(rows, Tensor) else rows
        self._rows = rows if isinstance(rows, Tensor) else in_place(rows)
        self._mapping = mapping if isinstance(rows, Tensor) else MappedFile.of(rows)
        self.shape = (int(rows.shape[0]), int(rows.shape[1]))
        empty = rows[:0]
        self.dtype = (empty if isinstance(empty, Tensor) else torch.from_numpy(native(empty))).dtype
        self.packed = list(packed)
        self.tall = tall

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def source(self) -> Tensor | np.ndarray[Any, Any]:
        """All rows, where they lie."""
        if self._array is not None:
            return self._array
        if self._rows is None:
            raise RuntimeError("rows that lie nowhere")
        return self._rows

    @property
    def height(self) -> int:
        """How many rows share a packed copy that is made now."""
        return max(64, PACKED_BYTES // max(1, self.shape[1] * self.dtype.itemsize))

    def pack(self, metric: str) -> Iterator[Tensor]:
        """The packed copies for each ``height`` rows; none where they would not spare enough of reading."""
        for block in self.blocks(0, 0, self.height):
            packed: Tensor = call("pack_rows", block.rows.detach(), metric, "auto")
            # The last block may be small, and its copy large beside it.
            much = packed.numel() > WORTH_KEEPING * block.rows.numel() * block.rows.itemsize
            if not packed.numel() or (block.first == 0 and much):
                return
            yield packed

    def keep_packed(self, metric: str) -> None:
        """Hold packed copies in memory, where there is use for them and they aren't held already."""
        if not self.packed and self._rows is not None:
            self.packed, self.tall = list(self.pack(metric)), self.height

    @property
    def nbytes(self) -> int:
        """Of the rows."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def blocks(self, queries: int, k: int, tall: int = 0, *, release: bool = True) -> Iterator[Block]:
        """All rows in order, at least one block; the next one is read while one is used.

        Args:
            queries: Q, how many queries each block will be searched for.
            k: neighbours wanted; both decide how the rows behind packed copies are read.
            tall: take this many rows at a time, without packed copies.
            release: give mapped memory back after use.
        """
        packed = not tall and bool(self.packed)
        if packed:
            tall = self.tall
        elif not tall:
            tall = max(1, READ_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        starts = range(0, max(1, len(self)), tall)
        for number, block in enumerate(self._read(starts, tall, packed)):
            if packed and self._mapping is not None:
                # Thresholds carry over from block to block, so ever fewer rows are looked at.
                looked_at = queries * (2 * k + 64) // (number + 1)
                if looked_at * _SCATTERED_ROWS < len(block.rows):
                    self._mapping.scattered(block.rows)
                else:
                    self._mapping.read_ahead(block.rows)
            try:
                yield block
            finally:
                if self._mapping is not None and release:
                    self._mapping.release(block.rows)
                    if block.packed is not None:
                        self._mapping.release(block.packed)
                del block

    def _read(self, starts: range, tall: int, packed: bool) -> Iterator[Block]:
        read = (self._fetch(first, tall, packed) for first in starts)
        in_memory = self._mapping is None and self._rows is not None
        return read if len(starts) == 1 or in_memory else ahead(read)

    def _fetch(self, first: int, tall: int, packed: bool) -> Block:
        """A block whose bytes have been read; those of rows that have a packed copy have not."""
        if self._rows is None:
            if self._array is None:
                raise RuntimeError("rows that lie nowhere")
            return Block(first, torch.from_numpy(native(self._array[first : first + tall])), None)
        rows = self._rows[first : first + tall]
        copy = self.packed[first // tall] if packed else None
        if self._mapping is not None:
            self._mapping.read(rows if copy is None else copy)
        return Block(first, rows, copy)


def in_place(array: np.ndarray[Any, Any]) -> Tensor | None:
    """The array as a tensor, not to be written to; None for byte orders and strides that torch lacks."""
    if not array.dtype.isnative or (array.size and min(array.strides) <= 0):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it may not be writable
        return torch.from_numpy(array)


def native(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A writable copy in memory, in this machine's byte order."""
    return np.array(rows, dtype=rows.dtype.newbyteorder("="), order="C")

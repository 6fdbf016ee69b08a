"""Rows that lie in a file: read in blocks ahead of their use, and given back after it.

A corpus in a file may be larger than memory. What bounds the memory of a search over it is that pages are
released behind the reader: they stay in the system's page cache as long as there is room, but no longer
count as this process's own.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.ops.schemas import call

# Rows that are read whole are read this many bytes at a time.
READ_BYTES = 64 << 20
# Rows that have a packed copy are searched this many bytes at a time; of these the packed copy is read, and
# the rows that may be results. Each block costs a merge and, for each query, a few hundred candidates.
PACKED_BYTES = 256 << 20
# A packed copy is kept if it is at most this much of the rows themselves; otherwise these are read instead.
WORTH_KEEPING = 0.75
# A mapping of more than this part of the memory pushes its own pages out before they are used again:
# they are then better given back at once, which spares the system looking for what to drop.
_STAYS = 0.75
# What Python's mmap does not name; the same on every Linux. Older systems refuse them, which changes nothing.
_LINUX_ADVICE = {"MADV_PAGEOUT": 21, "MADV_POPULATE_READ": 22}
# Reading a page by itself costs about as much as reading this many rows in sequence.
_SCATTERED_ROWS = 64


class Mapping:
    """The bytes of a mapped file, and what the system is told about their use."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._base = int(np.frombuffer(content, dtype=np.uint8).ctypes.data)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Mapping:
        """Map a file that is not empty, read-only.

        A private writable mapping, which torch and safetensors make, is refused by the system where the file
        is larger than memory.
        """
        with open(path, "rb") as file:
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @classmethod
    def of(cls, array: Any) -> Mapping | None:
        """The mapping behind a NumPy array, unless there is none or it holds changes that are in no file."""
        content = getattr(array, "_mmap", None)
        if not isinstance(content, mmap.mmap) or getattr(array, "mode", None) not in ("r", "r+", "w+"):
            return None
        return cls(content)

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
        """A view of the bytes from ``offset`` on. It must not be written to."""
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it isn't writable
            return torch.frombuffer(self._content, dtype=dtype, count=count, offset=offset).view(*shape)

    def read_ahead(self, rows: Tensor) -> None:
        """Start reading these rows."""
        self._advise(rows, "MADV_NORMAL")
        self._advise(rows, "MADV_WILLNEED")

    def read(self, rows: Tensor) -> None:
        """Read these rows now, so that whoever uses them need not wait for a page."""
        self.read_ahead(rows)
        self._advise(rows, "MADV_POPULATE_READ")

    def scattered(self, rows: Tensor) -> None:
        """Single rows of these will be read: do not read the pages around them as well."""
        self._advise(rows, "MADV_RANDOM")

    def release(self, rows: Tensor) -> None:
        """These rows are not needed for now. Only pages that hold nothing else are given back."""
        if len(self._content) > _STAYS * _memory():
            self._advise(rows, "MADV_PAGEOUT", inward=True)
        self._advise(rows, "MADV_DONTNEED", inward=True)

    def _advise(self, rows: Tensor, name: str, *, inward: bool = False) -> None:
        advice = getattr(mmap, name, _LINUX_ADVICE.get(name) if sys.platform == "linux" else None)
        if advice is None or not rows.numel():
            return
        first = rows.data_ptr() - self._base
        last = first + rows.itemsize
        last += sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True)) * (
            rows.itemsize
        )
        if first < 0 or last > len(self._content):
            return
        page = mmap.PAGESIZE
        first = -(-first // page) * page if inward else first // page * page
        last = last // page * page if inward else min(-(-last // page) * page, len(self._content))
        if last > first:
            # Not mmap.madvise, which would keep other threads waiting. A hint: failures change nothing.
            _madvise()(self._base + first, last - first, advice)


@functools.cache
def _memory() -> float:
    """Bytes of this machine's memory; infinite where the system doesn't say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    function: Any = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function  # type: ignore[no-any-return]


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
        mapping: Mapping | None = None,
        packed: Sequence[Tensor] = (),
        tall: int = 0,
    ) -> None:
        self._array = None if isinstance(rows, Tensor) else rows
        self._rows = rows if isinstance(rows, Tensor) else in_place(rows)
        self._mapping = mapping if isinstance(rows, Tensor) else Mapping.of(rows)
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
        if len(starts) == 1 or (self._mapping is None and self._rows is not None):
            for first in starts:
                yield self._fetch(first, tall, packed)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="finescope-read") as reader:
            coming = reader.submit(self._fetch, 0, tall, packed)
            for first in starts:
                block = coming.result()
                if first + tall < len(self):
                    coming = reader.submit(self._fetch, first + tall, tall, packed)
                yield block
                del block

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

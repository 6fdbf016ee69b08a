"""Files mapped into memory: what the system is told of their pages' use, and reading ahead of it."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_Item = TypeVar("_Item")
# A mapping of more than this part of the memory pushes its own pages out before they are used again:
# they are then better given back at once, which spares the system looking for what to drop.
_STAYS = 0.75
# What Python's mmap does not name; the same on every Linux. Older systems refuse them, which changes nothing.
_LINUX_ADVICE = {"MADV_PAGEOUT": 21, "MADV_POPULATE_READ": 22}


class MappedFile:
    """The bytes of a mapped file, and what the system is told about their use."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._base = int(np.frombuffer(content, dtype=np.uint8).ctypes.data)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MappedFile:
        """Map a file that is not empty, read-only.

        A private writable mapping, which torch and safetensors make, is refused by the system where the file
        is larger than memory.
        """
        with open(path, "rb") as file:
            return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @classmethod
    def of(cls, array: Any) -> MappedFile | None:
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
        first, last = _span(rows)
        if self._base <= first and last <= self._base + len(self._content):
            advise(rows, name, inward=inward)


def advise(tensor: Tensor, name: str, *, inward: bool = False) -> None:
    """Tell the system how a mapped tensor's pages will be used. A hint: where it isn't taken nothing changes.

    Args:
        tensor: mapped from a file, and not written to by anybody.
        name: of the advice, as madvise(2) names it; one that this system lacks is not given.
        inward: only for pages that hold nothing else.
    """
    advice = getattr(mmap, name, _LINUX_ADVICE.get(name) if sys.platform == "linux" else None)
    if advice is None or not tensor.numel():
        return
    first, last = _span(tensor)
    page = mmap.PAGESIZE
    first = -(-first // page) * page if inward else first // page * page
    last = last // page * page if inward else -(-last // page) * page
    if last > first:
        # Not mmap.madvise, which would keep other threads waiting.
        _madvise()(first, last - first, advice)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Address of a tensor's first byte, and that after its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.itemsize


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


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield the items in order; another thread makes the next one while one is used.

    No more than two are held: one here is let go of before the thread is asked for the one after the next.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="finescope-read") as reader:
        coming = reader.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, items, end)
            yield item  # type: ignore[misc]
            del item

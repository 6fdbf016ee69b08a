"""The blocks of a corpus that does not fit on the device, brought there ahead of their use.

A ring of slots, each a buffer on the host and one on the device. A thread fills them in turn: it reads rows,
from memory or from a mapped file, into the host's buffer, which is pinned, and queues the copy to the device
on a stream of its own. The search takes the slots in the same order and gives each back when its work on it
is queued. Events order the two streams; the host waits only for what has not been read yet. So disk, copy and
compute overlap, and what is on the device never exceeds the ring.

On the CPU a slot is one plain buffer: the same ring then reads a file ahead of the search.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.search.blocked import READ_BYTES, BlockedRows
from finescope.search.rows import CodeBlocks, Part

DEFAULT_MEMORY = 1 << 30
# One slot is read, one copied, one searched.
SLOTS = 3
# One thread copies memory at a fraction of what the bus takes, and waits for one page of a file at a time.
_READERS = 4
_LEAST_PIECE = 4 << 20
# Offsets of tensors inside a buffer: whole lines.
_LINE = 128

Rows = Tensor | np.ndarray[Any, Any] | SparseCodes
Block = Tensor | SparseCodes


@dataclass(frozen=True)
class _Run:
    """Rows ``first`` … ``last - 1`` of a part; the first is row ``start`` of the corpus."""

    part: Rows
    first: int
    last: int
    start: int

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        """The memory that makes up these rows, bfloat16 as its bits."""
        if isinstance(self.part, SparseCodes):
            indptr = self.part.indptr[self.first : self.last + 1]
            low, high = int(indptr[0]), int(indptr[-1])
            entries = (self.part.indices[low:high], self.part.values[low:high])
            return [_bits(tensor) for tensor in (indptr - low, *entries)]
        rows = self.part[self.first : self.last]
        return [_bits(rows) if isinstance(rows, Tensor) else rows]

    def layout(self) -> list[tuple[int, torch.dtype, tuple[int, ...]]]:
        """Offset in the buffer, dtype and shape of each array."""
        rows = self.last - self.first
        wanted: list[tuple[torch.dtype, tuple[int, ...]]]
        if isinstance(self.part, SparseCodes):
            entries = int(self.part.indptr[self.last] - self.part.indptr[self.first])
            indices, values = self.part.indices.dtype, self.part.values.dtype
            wanted = [(torch.int64, (rows + 1,)), (indices, (entries,)), (values, (entries,))]
        else:
            wanted = [(_dtype(self.part), (rows, int(self.part.shape[1])))]
        found: list[tuple[int, torch.dtype, tuple[int, ...]]] = []
        offset = 0
        for dtype, shape in wanted:
            found.append((offset, dtype, shape))
            offset += -(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE
        return found

    def size(self) -> int:
        """Bytes of a buffer that holds these rows."""
        offset, dtype, shape = self.layout()[-1]
        return offset + math.prod(shape) * dtype.itemsize

    def block(self, buffer: Tensor) -> Block:
        """These rows as views of a buffer that they were read into."""
        views = [
            buffer[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for offset, dtype, shape in self.layout()
        ]
        if isinstance(self.part, SparseCodes):
            indptr, indices, values = views
            return SparseCodes(indptr, indices, values, self.part.num_latents, check=False)
        return views[0]


def _dtype(rows: Tensor | np.ndarray[Any, Any]) -> torch.dtype:
    if isinstance(rows, Tensor):
        return rows.dtype
    return torch.from_numpy(np.empty(0, rows.dtype.newbyteorder("="))).dtype


def _bits(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def part_device(part: Part) -> torch.device:
    """Where the rows of a part lie; arrays, mapped ones too, on the CPU."""
    if isinstance(part, SparseCodes):
        return part.values.device
    return part.device if isinstance(part, Tensor) else torch.device("cpu")


def _cut(part: Rows, start: int, room: int) -> Iterator[_Run]:
    """Cut a part into runs of whole rows that take at most ``room`` bytes each; an empty part is one run."""
    count, first = len(part), 0
    while first < count or first == 0:
        if isinstance(part, SparseCodes):
            entry = part.indices.itemsize + part.values.itemsize
            indptr = part.indptr
            limit = entry * int(indptr[first]) + 8 * first + room - 8 - 2 * _LINE
            edges = range(first, count + 1)
            last = first + bisect_right(edges, limit, key=lambda n: entry * int(indptr[n]) + 8 * n) - 1
        else:
            last = min(count, first + room // max(1, part.itemsize * part.shape[1]))
        if last <= first < count:
            raise ValueError(
                f"memory must hold {SLOTS} blocks of at least one row, and row {start + first} alone takes "
                f"more than {room} bytes: give more than memory={room * SLOTS}"
            )
        yield _Run(part, first, last, start + first)
        if last >= count:
            return
        first = last


class _Slot:
    """A buffer on the host and, unless they are the same, one on the device."""

    def __init__(self, host: Tensor, device: Tensor) -> None:
        self.host, self.device = host, device
        self.copied: Any = None
        self.free: Any = None


class _Plain:
    """The ring where host and device are one."""

    def slot(self, size: int) -> _Slot:
        buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
        return _Slot(buffer, buffer)

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the thread that reads."""
        return contextlib.nullcontext()

    def refill(self, slot: _Slot) -> None:
        """Wait until the host's buffer may be overwritten."""

    def send(self, slot: _Slot, size: int, pinned: Tensor | None) -> None:
        """Queue the copy of ``size`` bytes to the device, from the slot or from memory that is pinned."""

    def arrive(self, slot: _Slot) -> None:
        """Make what the search queues from now on wait for the copy."""

    def leave(self, slot: _Slot) -> None:
        """Note that all work on the slot is queued."""

    def close(self) -> None:
        """The ring is done with, perhaps before its end."""


class _Cuda(_Plain):
    """The ring of a CUDA device: copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def _event(self, stream: Any) -> Any:
        # Blocking: a thread that waits for it sleeps.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def slot(self, size: int) -> _Slot:
        try:
            host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
            slot = _Slot(host, torch.empty(size, dtype=torch.uint8, device=self.device))
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{self.device} has no room for {SLOTS} blocks of {size} bytes: lower memory ({error})"
            ) from None
        # The memory may be a freed tensor's that work queued before this still uses.
        slot.free = self._event(torch.cuda.current_stream(self.device))
        return slot

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self.copies)  # makes its device the current one, too

    def refill(self, slot: _Slot) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()

    def send(self, slot: _Slot, size: int, pinned: Tensor | None) -> None:
        self.copies.wait_event(slot.free)
        slot.device[:size].copy_(slot.host[:size] if pinned is None else pinned, non_blocking=True)
        slot.copied = self._event(self.copies)

    def arrive(self, slot: _Slot) -> None:
        torch.cuda.current_stream(self.device).wait_event(slot.copied)

    def leave(self, slot: _Slot) -> None:
        slot.free = self._event(torch.cuda.current_stream(self.device))

    def close(self) -> None:
        # The buffers go back to the current stream; copies that nobody waited for may still write to them.
        torch.cuda.current_stream(self.device).wait_stream(self.copies)


def stream(
    parts: Sequence[Part | np.ndarray[Any, Any]],
    starts: Sequence[int],
    device: torch.device,
    memory: int = DEFAULT_MEMORY,
) -> Iterator[tuple[int, Block, bool]]:
    """Yield the rows of a corpus as blocks on a device.

    A block is valid until the next one is asked for; work on it must be queued on the current stream by then.
    Close the iterator if it isn't exhausted: that ends the thread.

    Args:
        parts: rows. Tensors and codes that lie on the device are yielded whole, all else is streamed.
        starts: position of the first row of each part.
        device: where the blocks go; the CPU or a CUDA device.
        memory: bytes of the device, and as many of pinned memory of the host, that the ring may take; torch
            rounds each block of the latter up to a power of two.

    Yields:
        position of the first row, the rows, and whether more blocks follow.

    Raises:
        ValueError: a row does not fit into a third of ``memory``.
        RuntimeError: rows could not be read; they are named.
        torch.OutOfMemoryError: the device has no room for the ring.
    """
    plan: list[_Run | tuple[int, Block | CodeBlocks]] = []
    for start, part in zip(starts, parts, strict=False):
        if isinstance(part, (BlockedRows, np.ndarray)):
            rows = part.source if isinstance(part, BlockedRows) else part
            plan.extend(_cut(rows, start, memory // SLOTS))
        elif isinstance(part, (Tensor, SparseCodes)) and part_device(part) != device:
            plan.extend(_cut(part, start, memory // SLOTS))
        else:
            plan.append((start, part))
    lanes = _Cuda(device) if device.type == "cuda" else _Plain()
    with contextlib.closing(_Ring(lanes, [run for run in plan if isinstance(run, _Run)])) as ring:
        for number, run in enumerate(plan):
            more = number + 1 < len(plan)
            if isinstance(run, _Run):
                slot = ring.take()
                yield run.start, run.block(slot.device), more
                ring.give_back(slot)
                continue
            start, whole = run
            if isinstance(whole, (Tensor, SparseCodes)):
                yield start, whole, more
                continue
            # A store reads ahead by itself.
            for first, codes in whole.stream(min(READ_BYTES // 2, memory // SLOTS)):
                yield start + first, codes.to(device), more or first + len(codes) < len(whole)


class _Ring:
    """Slots that go round between the thread that fills them and the search that empties them."""

    def __init__(self, lanes: _Plain, runs: Sequence[_Run]) -> None:
        self._lanes, self._runs = lanes, runs
        self._ready: SimpleQueue[_Slot | BaseException] = SimpleQueue()
        self._free: SimpleQueue[_Slot | None] = SimpleQueue()
        self._stopped = False
        size = max((run.size() for run in runs), default=0)
        # Tensors made under inference mode could not be written to by the thread.
        with torch.inference_mode(False):
            for _ in range(min(SLOTS, len(runs))):
                self._free.put(lanes.slot(size))
        self._thread = threading.Thread(target=self._work, name="finescope-reader", daemon=True)
        self._thread.start()

    def take(self) -> _Slot:
        """The next filled slot; waits for it."""
        got = self._ready.get()
        if isinstance(got, BaseException):
            raise got
        self._lanes.arrive(got)
        return got

    def give_back(self, slot: _Slot) -> None:
        """Let the slot of :meth:`take` be filled again."""
        self._lanes.leave(slot)
        self._free.put(slot)

    def close(self) -> None:
        """End the thread: at once if it waits, else after the rows that it is reading."""
        self._stopped = True
        self._free.put(None)
        self._thread.join()
        self._lanes.close()

    def _work(self) -> None:
        run = None
        try:
            with self._lanes.reading(), ThreadPoolExecutor(_READERS) as pool:
                for run in self._runs:
                    slot = self._free.get()
                    if slot is None or self._stopped:
                        return
                    self._fill(slot, run, pool)
                    self._ready.put(slot)
        except BaseException as error:  # whatever it is, the search must not wait for ever
            where = f"rows {run.start}..{run.start + run.last - run.first - 1}" if run else "the corpus"
            failure = RuntimeError(f"{where} of the index could not be read: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._ready.put(failure)

    def _fill(self, slot: _Slot, run: _Run, pool: ThreadPoolExecutor) -> None:
        pinned = None
        if slot.device is not slot.host and isinstance(run.part, Tensor) and run.part.is_pinned():
            rows = run.part.detach()[run.first : run.last]
            pinned = rows.view(-1).view(torch.uint8) if rows.is_contiguous() else None
        if pinned is None:
            self._lanes.refill(slot)
            buffer = slot.host.numpy()
            copies = []
            for (offset, _, _), array in zip(run.layout(), run.arrays(), strict=True):
                plain = array.dtype.newbyteorder("=")
                place = buffer[offset : offset + array.nbytes].view(plain).reshape(array.shape)
                pieces = max(1, min(_READERS, array.nbytes // _LEAST_PIECE))
                edges = [len(array) * piece // pieces for piece in range(pieces + 1)]
                copies += [
                    pool.submit(np.copyto, place[low:high], array[low:high])
                    for low, high in itertools.pairwise(edges)
                ]
            for copy in copies:
                copy.result()
        self._lanes.send(slot, run.size(), pinned)

"""A corpus that goes through a ring of buffers: the bytes of a plain search, and a ring that always ends.

The CUDA side of the ring is played by ``LazyDevice``: what a real device may do late (copies, the search's
work), it does as late as the events allow, so that a wait that is missing shows as wrong rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finescope import Index, SparseCodes, ops
from finescope.search import index as search
from finescope.search import streaming
from support.equivalence import assert_same_bytes
from support.rows import rows

CUDA = torch.device("cuda", 0)


@dataclass(eq=False)
class Copy:
    """A copy to the device, and the work that it must wait for."""

    do: Callable[[], object]
    before: list[Callable[[], None]]


class LazyDevice(streaming._Plain):
    """Host and device apart, every copy and every piece of work put off until somebody waits for it."""

    def __init__(self, device: torch.device = CUDA) -> None:
        self.lock = threading.RLock()
        self.slots: list[streaming._Slot] = []
        self.queue: list[Copy] = []
        self.work: dict[int, list[Callable[[], None]]] = {}
        self.most_unsent = self.sent = self.taken = 0

    def slot(self, size: int) -> streaming._Slot:
        made = streaming._Slot(*(torch.full((size,), 0xA5, dtype=torch.uint8) for _ in range(2)))
        made.free = []
        self.slots.append(made)
        return made

    def send(self, slot: streaming._Slot, size: int, pinned: Tensor | None) -> None:
        with self.lock:
            slot.copied = Copy(lambda: slot.device[:size].copy_(slot.host[:size]), slot.free)
            self.queue.append(slot.copied)
            self.sent += 1
            self.most_unsent = max(self.most_unsent, self.sent - self.taken)

    def _run_to(self, copy: Copy | None) -> None:
        """Do the queued copies up to this one, each after the work that it waits for."""
        while copy in self.queue:
            first = self.queue.pop(0)
            for before in first.before:
                before()
            first.do()

    def refill(self, slot: streaming._Slot) -> None:
        with self.lock:
            self._run_to(slot.copied)

    def arrive(self, slot: streaming._Slot) -> None:
        with self.lock:
            self.taken += 1
            self.work[id(slot.device)] = [partial(self._run_to, slot.copied)]

    def leave(self, slot: streaming._Slot) -> None:
        with self.lock:
            slot.free = self.work.pop(id(slot.device), [])

    def later(self, block: Tensor | SparseCodes, do: Callable[[], None]) -> None:
        """Queue the search's work on a block."""
        with self.lock:
            storage = (block.values if isinstance(block, SparseCodes) else block).untyped_storage().data_ptr()
            owner = next(s for s in self.slots if s.device.untyped_storage().data_ptr() == storage)
            self.work.setdefault(id(owner.device), []).append(do)

    def finish(self) -> None:
        for slot in self.slots:
            for do in slot.free:
                do()


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> LazyDevice:
    device = LazyDevice()
    monkeypatch.setattr(streaming, "_Cuda", lambda _: device)
    return device


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert "finescope-reader" not in [thread.name for thread in threading.enumerate()]


def mapped(path: Path, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def codes(n: int, f: int = 50) -> SparseCodes:
    return SparseCodes.from_dense(torch.rand(n, f) * (torch.rand(n, f) < 0.3))


def parts(tmp_path: Path) -> list[Any]:
    dense = torch.randn(300, 24)
    return [
        dense,
        dense.bfloat16(),
        dense.double()[::2],
        torch.randn(24, 70).T,
        dense.clone().requires_grad_(),
        mapped(tmp_path / "a.npy", dense.numpy().astype(">f4")),
        mapped(tmp_path / "b.npy", dense.half().numpy()),
        torch.empty(0, 24),
    ]


def test_blocks_are_the_rows(tmp_path: Path, lazy: LazyDevice) -> None:
    """Of every kind of part, in order, within the budget, although copies and work come late."""
    held = parts(tmp_path)
    starts = [0, *np.cumsum([len(part) for part in held]).tolist()]
    seen: list[tuple[int, Tensor]] = []
    flags: list[bool] = []
    memory = 3 * 64 * 24 * 4
    for start, block, more in streaming.stream(held, starts, CUDA, memory):
        assert isinstance(block, Tensor)
        flags.append(more)
        lazy.later(block, lambda start=start, block=block: seen.append((start, block.clone())))
    lazy.finish()
    assert sum(slot.device.numel() for slot in lazy.slots) <= memory
    assert len(seen) > 3 * len(held)
    assert flags == [True] * (len(seen) - 1) + [False]
    seen.sort(key=lambda entry: entry[0])
    for number, part in enumerate(held):
        low, high = starts[number], starts[number + 1]
        got = [block for start, block in seen if low <= start < high and len(block)]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("=")))
        assert torch.equal(torch.cat(got) if got else part, part), number


@pytest.mark.parametrize("latents", [50, 70_000])
def test_blocks_of_sparse_codes(lazy: LazyDevice, latents: int) -> None:
    held = [codes(400), codes(37), codes(0)]
    held = [SparseCodes(part.indptr, part.indices, part.values.half(), latents) for part in held]
    if latents > 1 << 16:
        held = [SparseCodes(p.indptr, p.indices.to(torch.int32), p.values, latents) for p in held]
    seen: dict[int, SparseCodes] = {}

    def keep(start: int, block: SparseCodes) -> None:
        seen[start] = SparseCodes(block.indptr.clone(), block.indices.clone(), block.values.clone(), latents)

    for start, block, _ in streaming.stream(held, [0, 400, 437], CUDA, 6000):
        assert isinstance(block, SparseCodes)
        lazy.later(block, lambda start=start, block=block: keep(start, block))
    lazy.finish()
    assert len(seen) > 5
    assert sum(slot.device.numel() for slot in lazy.slots) <= 6000
    assert SparseCodes.cat([seen[start] for start in sorted(seen)]) == SparseCodes.cat(held)


def test_reading_runs_ahead_but_not_further_than_the_ring(lazy: LazyDevice) -> None:
    held = torch.randn(100, 4)
    blocks = streaming.stream([held], [0], CUDA, 3 * 10 * 16)
    next(blocks)
    for _ in range(500):
        if lazy.sent == 3:
            break
        threading.Event().wait(0.01)
    assert lazy.sent == 3  # the one that is held, and two ahead
    assert len(list(blocks)) == 9
    assert lazy.most_unsent <= streaming.SLOTS


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", ["gaussian", "near", "equal"])
def test_searching_through_the_ring_gives_the_same_bytes(tmp_path: Path, kind: str, metric: str) -> None:
    queries, corpus = rows(kind, 6, 24, torch.float32, 1), rows(kind, 500, 24, torch.float32, 2)
    options: dict[str, Any] = {"mask": torch.rand(500) < 0.8, "exclude": torch.randint(-1, 500, (6, 9))}
    wanted = ops.cosine_topk(queries, corpus, 30, metric=metric, **options)
    half = mapped(tmp_path / "half.npy", corpus[:250].numpy())
    for memory in (3 * 96, 3 * 96 * 70, 1 << 20):
        index = Index(half, metric=metric, device="cpu", memory=memory)
        index.add(mapped(tmp_path / f"{memory}.npy", corpus[250:400].numpy()))
        index.add(corpus[400:])
        assert_same_bytes(index.search(queries, 30, **options), wanted, f"{memory}")
        arrays = {name: value.numpy() for name, value in options.items()}
        assert_same_bytes(index.search(queries.numpy(), 30, **arrays), wanted)


def test_ids_and_inference_mode(tmp_path: Path) -> None:
    queries, corpus = torch.randn(5, 8), torch.randn(90, 8)
    names = torch.randperm(1000)[:90]
    index = Index(
        mapped(tmp_path / "rows.npy", corpus.numpy()), ids=names.numpy(), device="cpu", memory=3 * 32 * 11
    )
    wanted = Index(corpus, ids=names).search(queries, 7, exclude=names[:3].expand(5, 3), min_score=0.1)
    with torch.inference_mode():
        got = index.search(queries, 7, exclude=names[:3].expand(5, 3), min_score=0.1)
    assert_same_bytes(tuple(tensor.clone() for tensor in got), wanted)


def test_a_row_that_no_block_holds(tmp_path: Path) -> None:
    index = Index(mapped(tmp_path / "rows.npy", np.zeros((9, 100), np.float32)), device="cpu", memory=999)
    with pytest.raises(ValueError, match="row 0 alone takes more than 333 bytes: give more than memory=999"):
        index.search(torch.zeros(1, 100), 1)


def test_a_sparse_row_that_no_block_holds(lazy: LazyDevice) -> None:
    held = SparseCodes.cat([codes(9), SparseCodes.from_dense(torch.ones(1, 50)), codes(9)])
    with pytest.raises(ValueError, match="row 19 alone takes"):
        list(streaming.stream([held], [10], CUDA, 3 * 450))


def test_rows_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's error reaches the caller with the rows named, and the next search works."""
    corpus = torch.randn(90, 8)
    index = Index(mapped(tmp_path / "rows.npy", corpus.numpy()), device="cpu", memory=3 * 32 * 10)
    original = streaming._Run.arrays

    def broken(run: streaming._Run) -> list[Any]:
        if run.first == 40:
            raise OSError(5, "Input/output error")
        return original(run)

    with monkeypatch.context() as patched:
        patched.setattr(streaming._Run, "arrays", broken)
        with pytest.raises(RuntimeError, match=r"rows 40\.\.49 .*OSError: .*Input/output error") as caught:
            index.search(corpus[:2], 3)
        assert isinstance(caught.value.__cause__, OSError)
    assert index.search(corpus[:2], 1)[1].tolist() == [[0], [1]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_search_that_stops_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    corpus = torch.randn(90, 8)
    index = Index(mapped(tmp_path / "rows.npy", corpus.numpy()), device="cpu", memory=3 * 32 * 10)
    original, calls = search.cosine_topk, []

    def stop(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise error("stopped")
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(search, "cosine_topk", stop)
        with pytest.raises(error):
            index.search(corpus[:2], 3)
    assert "finescope-reader" not in [thread.name for thread in threading.enumerate()]
    assert index.search(corpus[:2], 1)[1].tolist() == [[0], [1]]


def test_an_iterator_that_is_dropped(lazy: LazyDevice) -> None:
    blocks = streaming.stream([torch.randn(100, 4)], [0], CUDA, 3 * 16)
    next(blocks)
    blocks.close()
    assert "finescope-reader" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "meta"}, "device 'meta' can't be used"),
        ({"device": "the card"}, "device 'the card' can't be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' can't be used"),
        ({"device": "cpu", "memory": 0}, "memory must be a positive number of bytes, got 0"),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Index(torch.zeros(3, 2), **options)


def test_tensors_that_lie_on_the_device_are_not_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = torch.randn(50, 4)
    (block,) = (block for _, block, _ in streaming.stream([corpus], [0], torch.device("cpu"), 1))
    assert block is corpus

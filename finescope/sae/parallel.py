"""The processes that train one autoencoder together: what they tell each other.

Each has the same weights and its share of every batch. Sums over all of them are what one process would have
summed over the whole batch, so every process takes the same optimiser step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from finescope.device import launched_processes
from finescope.errors import FineScopeError, InputError


class Ranks:
    """This process's place among those that train together; by itself where there are no others.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads states, writes files and reports."""
        return self.rank == 0

    def add_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over all processes."""
        self._reduce(tensors, dist.ReduceOp.SUM)

    def least_(self, tensor: Tensor) -> None:
        """Replace every element by the smallest that a process has."""
        self._reduce([tensor], dist.ReduceOp.MIN)

    def _reduce(self, tensors: Iterable[Tensor], how: Any) -> None:
        if not self.alone:
            with self._together():
                for work in [dist.all_reduce(tensor, how, async_op=True) for tensor in tensors]:
                    cast(Any, work).wait()

    def total(self, number: int, device: torch.device) -> int:
        """Return the sum of a number over all processes."""
        if self.alone:
            return number
        sums = torch.tensor([number], device=device)
        self.add_([sums])
        return int(sums)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which have one shape, in order."""
        if self.alone:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._together():
            dist.all_gather(found, tensor.contiguous())
        return found

    def gather_lists(self, values: Tensor) -> list[Tensor]:
        """Return the values [n] of all processes, each with an n of its own, in order."""
        if self.alone:
            return [values]
        lengths = torch.cat(self.gather(torch.tensor([len(values)], device=values.device))).tolist()
        padded = values.new_zeros(max(lengths))
        padded[: len(values)] = values
        return [found[:length] for found, length in zip(self.gather(padded), lengths, strict=True)]

    def take_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by that of the first process."""
        if not self.alone:
            with self._together():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def take(self, value: Any) -> Any:
        """Return the plain value that the first process has."""
        if self.alone:
            return value
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def meet(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            with self._together():
                dist.barrier()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch raises where a connection ends
            raise FineScopeError(
                f"process {self.rank} of {self.size} stops, because another ended or can't be reached; the"
                f" message of the one that failed says why ({str(error).splitlines()[0]})"
            ) from error


ALONE = Ranks()


@contextmanager
def launched(device: str) -> Iterator[tuple[Ranks, str]]:
    """Join the processes that ``torchrun`` started; alone, where it didn't.

    Args:
        device: of the training: ``cpu``; ``cuda`` or ``auto`` give each process of a machine its own GPU.

    Yields:
        the processes, and the device of this one.

    Raises:
        InputError: there are fewer GPUs than processes, or one GPU was named for all.
    """
    size = launched_processes()
    if size == 1:
        yield ALONE, device
        return
    kind, local = torch.device("cpu" if device == "auto" else device), int(os.environ.get("LOCAL_RANK", "0"))
    if kind.type == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if kind.index is not None:
            raise InputError(
                f"{size} processes can't all train on {device}; say cuda, and each takes a GPU of its own"
            )
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no GPU of its own, there are"
                f" {torch.cuda.device_count()}; start torchrun with --nproc-per-node of as many at most"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    elif device == "auto":
        device = "cpu"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    ranks = Ranks(dist.get_rank(), size)
    try:
        yield ranks, device
        ranks.meet()  # nobody closes a connection from which another still reads
    except Exception:
        if device == "cpu":  # gloo's threads would outlive the interpreter; NCCL would wait for who is gone
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()

"""Several processes of this machine, each with a model and a share of the threads of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from finescope.corpus.plan import Shard
from finescope.workflow.engines.crew import Answer, Failed, Gone, Ready, Task, answer, at_work, here, opened
from finescope.workflow.engines.engine import Result, Work

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
_LOOK = 1.0
"""Seconds between two looks whether the process that gives the work is still there."""


@dataclass(frozen=True)
class Processes:
    """Shards go to whichever of several processes is free.

    Attributes:
        workers: how many processes.
        device: where the job runs; with several GPUs and none named, the processes take turns at them.
        say: told of processes that are lost and of shards that are tried again.
    """

    workers: int
    device: str = "auto"
    say: Callable[[str], None] = print

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """See ``Engine``."""
        if not shards:
            return iter(())
        crew = _Processes(work, self.workers, self.device)
        return at_work(crew, work, shards, self.workers, self.say)


@dataclass(eq=False)
class _Process:
    process: subprocess.Popen[bytes]
    line: Connection
    device: str | None


class _Processes:
    """The crew: each worker is a Python of its own, joined by a pipe."""

    def __init__(self, work: Any, size: int, device: str) -> None:
        import torch

        self._work = work
        self._threads = str(max(1, torch.get_num_threads() // size))
        self._devices: list[str] = []
        if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
            seen = os.environ.get("CUDA_VISIBLE_DEVICES")
            self._devices = seen.split(",") if seen else list(map(str, range(torch.cuda.device_count())))
        self._all: list[_Process] = []

    def start(self) -> _Process:
        ours, there = Pipe()
        environment = {**os.environ, **dict.fromkeys(_THREADS, self._threads)}
        device = self._device()
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        # A program of its own and no fork of this one, whose threads and CUDA a child couldn't use; and not
        # multiprocessing's, which runs the main script again.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(there.fileno()), str(os.getpid())],
            env=environment,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        there.close()
        worker = _Process(process, ours, device)
        self._all.append(worker)
        self._send(worker, (list(sys.path), int(self._threads)))
        self._send(worker, self._work)
        return worker

    def _device(self) -> str | None:
        """Return the GPU with the fewest processes, so that who replaces one has what that one had."""
        taken = [worker.device for worker in self._all]
        return min(self._devices, key=taken.count, default=None)

    def give(self, worker: _Process, task: Task) -> None:
        self._send(worker, task)

    def _send(self, worker: _Process, words: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is gone, as its line will say
            worker.line.send(words)

    def answers(self, workers: Sequence[_Process]) -> list[tuple[_Process, Answer]]:
        by_line = {worker.line: worker for worker in workers}
        found: list[tuple[_Process, Answer]] = []
        for line in wait(list(by_line)):
            worker = by_line[line]  # type: ignore[index]
            try:
                found.append((worker, worker.line.recv()))
            except (EOFError, ConnectionResetError):
                worker.line.close()
                self._all.remove(worker)
                found.append((worker, Gone(_how(worker.process.wait()))))
        return found

    def end(self, worker: _Process) -> None:
        self._all.remove(worker)
        worker.process.kill()
        worker.line.close()
        worker.process.wait()

    def dismiss(self) -> None:
        for worker in self._all:
            worker.process.kill()
        for worker in self._all:
            worker.line.close()
            worker.process.wait()
        self._all = []


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    """Be a worker: load, then work on shards until there are no more, or nobody gives them any more."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gives the work
    line, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        sys.path[:], threads = line.recv()
        import torch

        torch.set_num_threads(threads)
        do = opened(line.recv())
        line.send(do if isinstance(do, Failed) else Ready(here()))
        while not isinstance(do, Failed):
            line.send(answer(do, line.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _leave_with(parent: int) -> None:
    """End this process when the one that gives the work has ended, be it killed: another may begin anew."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


if __name__ == "__main__":
    main()

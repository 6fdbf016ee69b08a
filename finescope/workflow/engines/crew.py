"""Workers elsewhere, and the loop that keeps them at work: what engines with several processes share.

A worker is started, says when it is ready, gets one shard at a time and answers each. One that is gone is
replaced, and its shard given to another; one that ends several is done carefully, where the work knows how.
"""

from __future__ import annotations

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from finescope.corpus.plan import Shard
from finescope.embeddings.alone import REMEDY
from finescope.errors import FineScopeError
from finescope.workflow.engines.engine import Result

TRIES = 3
"""How often a shard may end the worker that is at it before it is done carefully, or not at all."""

MOST = 64
"""How many workers a shard may end that is done carefully."""

Worker = TypeVar("Worker")


@dataclass(frozen=True)
class Task:
    """A shard to be done.

    Attributes:
        shard: the shard.
        ended: how many workers it has ended.
        how: how the last of them did.
        carefully: how many of them have ended while they did it carefully; None: it isn't done so.
    """

    shard: Shard
    ended: int = 0
    how: str = ""
    carefully: int | None = None

    def after(self, how: str, careful: bool) -> Task:
        """Return the task after it has ended another worker."""
        ended = self.ended + 1
        return Task(self.shard, ended, how, ended - TRIES if careful and ended >= TRIES else None)


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what it needs."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A worker has finished its shard."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """Loading, or a shard, has raised an error."""

    error: BaseException
    trace: str


@dataclass(frozen=True)
class Gone:
    """A worker has ended, with its process or its machine; ``how`` is said of it."""

    how: str


Answer = Ready | Done[Any] | Failed | Gone


class Crew(Protocol[Worker]):
    """Starts and ends workers, and carries words to and fro."""

    def start(self) -> Worker:
        """Start a worker, which will answer ``Ready``."""

    def give(self, worker: Worker, task: Task) -> None:
        """Have a worker that waits work on a shard; that it is gone, its answer tells."""

    def answers(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer]]:
        """Wait until some of the workers have answered, or are gone."""

    def dismiss(self) -> None:
        """End all workers at once."""


def at_work(crew: Crew[Worker], work: Any, shards: Sequence[Shard], size: int) -> Iterator[Any]:
    """Yield the results of shards as workers finish them.

    Args:
        crew: of the workers.
        work: what they do.
        shards: each is given to one worker at a time.
        size: workers, at most.

    Raises:
        FineScopeError: workers end while they load, or a shard has ended several.
        Whatever the work raises.
    """
    waiting = deque(Task(shard) for shard in shards)
    careful = getattr(work, "careful", False)
    at: dict[Worker, Task | None] = {}
    idle: list[Worker] = []
    left, lost = len(shards), 0
    try:
        for _ in range(min(size, left)):
            at[crew.start()] = None
        while left:
            for worker, answer in crew.answers([*at, *idle]):
                task = at.pop(worker, None)
                if isinstance(answer, Failed):
                    raise answer.error from RuntimeError(answer.trace)
                if isinstance(answer, Gone):
                    if worker in idle:
                        idle.remove(worker)
                    elif task is None:
                        lost += 1
                        if lost >= TRIES:
                            raise FineScopeError(_lost(f"{lost} workers ended while they loaded", answer.how))
                    else:
                        task = task.after(answer.how, careful)
                        if task.ended >= (MOST if careful else TRIES):
                            ended = f"ended {task.ended} workers"
                            rows = f"rows {task.shard.first} to {task.shard.end - 1} {ended}"
                            raise FineScopeError(_lost(rows, answer.how))
                        waiting.appendleft(task)
                    if len(at) + len(idle) < min(size, left):
                        at[crew.start()] = None
                    continue
                if isinstance(answer, Done):
                    left -= 1
                    yield answer.result
                idle.append(worker)
            while idle and waiting:
                worker, task = idle.pop(), waiting.popleft()
                at[worker] = task
                crew.give(worker, task)
    finally:
        crew.dismiss()


def _lost(what: str, how: str) -> str:
    return f"{what}, one after the other; the last {how}. {REMEDY}"


def opened(work: Any) -> Callable[[Shard], Any] | Failed:
    """Open work, in the worker."""
    try:
        return work.open()  # type: ignore[no-any-return]
    except BaseException as error:
        return failure(error)


def answer(do: Any, task: Task) -> Answer:
    """Do work on a shard, in the worker."""
    try:
        if task.carefully is None:
            return Done(do(task.shard))
        return Done(do.carefully(task.shard, task.carefully, task.how))
    except BaseException as error:
        return failure(error)


def failure(error: BaseException) -> Failed:
    """Return an error as it can be sent: one that can't be pickled only with its words."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = FineScopeError(f"{type(error).__name__}: {error}")
    return Failed(error, trace)

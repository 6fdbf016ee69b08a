"""Workers elsewhere, and the loop that keeps them at work: what engines with several processes share.

A worker is started, says when it is ready, gets one shard at a time and answers each. One that is gone is
replaced, and its shard given to another.
"""

from __future__ import annotations

import pickle
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from finescope.corpus.plan import Shard
from finescope.errors import FineScopeError
from finescope.workflow.engines.engine import Result

TRIES = 3
"""How often a shard may end the worker that is at it before it isn't given to another."""

Worker = TypeVar("Worker")


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

    def give(self, worker: Worker, shard: Shard) -> None:
        """Have a worker that waits work on a shard; that it is gone, its answer tells."""

    def answers(self, workers: Sequence[Worker]) -> list[tuple[Worker, Answer]]:
        """Wait until some of the workers have answered, or are gone."""

    def dismiss(self) -> None:
        """End all workers at once."""


def at_work(crew: Crew[Worker], shards: Sequence[Shard], size: int) -> Iterator[Any]:
    """Yield the results of shards as workers finish them.

    Args:
        crew: of the workers.
        shards: each is given to one worker at a time.
        size: workers, at most.

    Raises:
        FineScopeError: workers end while they load, or a shard has ended several.
        Whatever the work raises.
    """
    waiting, tried = deque(shards), Counter[int]()
    at: dict[Worker, Shard | None] = {}
    idle: list[Worker] = []
    left, lost = len(shards), 0
    try:
        for _ in range(min(size, left)):
            at[crew.start()] = None
        while left:
            for worker, answer in crew.answers([*at, *idle]):
                shard = at.pop(worker, None)
                if isinstance(answer, Failed):
                    raise answer.error from RuntimeError(answer.trace)
                if isinstance(answer, Gone):
                    if worker in idle:
                        idle.remove(worker)
                    elif shard is None:
                        lost += 1
                        if lost >= TRIES:
                            raise FineScopeError(_lost(f"{lost} workers ended while they loaded", answer.how))
                    else:
                        tried[shard.number] += 1
                        if tried[shard.number] >= TRIES:
                            rows = f"rows {shard.first} to {shard.end - 1} ended {TRIES} workers"
                            raise FineScopeError(_lost(rows, answer.how))
                        waiting.appendleft(shard)
                    if len(at) + len(idle) < min(size, left):
                        at[crew.start()] = None
                    continue
                if isinstance(answer, Done):
                    left -= 1
                    yield answer.result
                idle.append(worker)
            while idle and waiting:
                worker, shard = idle.pop(), waiting.popleft()
                at[worker] = shard
                crew.give(worker, shard)
    finally:
        crew.dismiss()


def _lost(what: str, how: str) -> str:
    return (
        f"{what}, one after the other; the last {how}. Short of memory, systems kill what takes most: use "
        "fewer --workers or a smaller --batch-tokens, and run again; finished shards are kept"
    )


def opened(work: Any) -> Callable[[Shard], Any] | Failed:
    """Open work, in the worker."""
    try:
        return work.open()  # type: ignore[no-any-return]
    except BaseException as error:
        return failure(error)


def answer(do: Callable[[Shard], Any], shard: Shard) -> Answer:
    """Do work on a shard, in the worker."""
    try:
        return Done(do(shard))
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

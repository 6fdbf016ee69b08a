"""Workers elsewhere, and the loop that keeps them at work: what engines with several processes share.

A worker is started, says when it is ready, gets one shard at a time and answers each. One that is gone is
replaced, and its shard given to another; one that ends several is done carefully, where the work knows how. A
shard whose files couldn't be read just now is tried again; any other error ends the run.
"""

from __future__ import annotations

import os
import pickle
import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from finescope.corpus.plan import Shard
from finescope.embeddings.alone import REMEDY
from finescope.errors import FineScopeError, ReadError
from finescope.workflow.engines.engine import Result

TRIES = 3
"""How often a shard may end the worker that is at it before it is done carefully, or not at all.

And how often one is tried that can't be read.
"""

MOST = 64
"""How many workers a shard may end that is done carefully."""

PAUSE = 5.0
"""Seconds before a shard that couldn't be read is tried again, and twice as many before the next time."""

PASSING = (OSError, ReadError)
"""Errors of a kind that may be gone the next time."""

Worker = TypeVar("Worker")


@dataclass(frozen=True)
class Task:
    """A shard to be done.

    Attributes:
        shard: the shard.
        ended: how many workers it has ended.
        how: how the last of them did.
        carefully: how many of them have ended while they did it carefully; None: it isn't done so.
        failed: how often it couldn't be read.
        pause: seconds to wait before it is begun.
    """

    shard: Shard
    ended: int = 0
    how: str = ""
    carefully: int | None = None
    failed: int = 0
    pause: float = 0.0

    def __str__(self) -> str:
        return f"shard {self.shard.number}, rows {self.shard.first} to {self.shard.end - 1}"

    def after(self, how: str, careful: bool) -> Task:
        """Return the task after it has ended another worker."""
        ended = self.ended + 1
        carefully = ended - TRIES if careful and ended >= TRIES else None
        return replace(self, ended=ended, how=how, carefully=carefully)

    def again(self) -> Task:
        """Return the task after it couldn't be read."""
        return replace(self, failed=self.failed + 1, pause=PAUSE * 2**self.failed)


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what it needs; ``where`` is its machine and process."""

    where: str = ""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A worker has finished its shard."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """Loading, or a shard, has raised an error; ``passing``: of a kind that may be gone the next time."""

    error: BaseException
    trace: str
    passing: bool = False


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

    def end(self, worker: Worker) -> None:
        """End a worker that is of no use."""

    def dismiss(self) -> None:
        """End all workers at once."""


def at_work(
    crew: Crew[Worker],
    work: Any,
    shards: Sequence[Shard],
    size: int,
    say: Callable[[str], None] = print,
) -> Iterator[Any]:
    """Yield the results of shards as workers finish them.

    Args:
        crew: of the workers.
        work: what they do.
        shards: each is given to one worker at a time.
        size: workers, at most.
        say: told of workers that are lost and of shards that are tried again.

    Raises:
        FineScopeError: workers end while they load, or a shard has ended several.
        Whatever the work raises; what may be gone the next time, after ``TRIES`` times.
    """
    losses = _Losses(getattr(work, "careful", False), say)
    waiting = deque(Task(shard) for shard in shards)
    at: dict[Worker, Task | None] = {}
    idle: list[Worker] = []
    names: dict[Worker, str] = {}
    left = len(shards)
    try:
        for _ in range(min(size, left)):
            at[crew.start()] = None
        while left:
            for worker, answer in crew.answers([*at, *idle]):
                task, where = at.pop(worker, None), names.get(worker, "a worker")
                if isinstance(answer, Ready):
                    names[worker] = answer.where or where
                    losses.loading = 0
                    idle.append(worker)
                elif isinstance(answer, Done):
                    left -= 1
                    losses.loading = 0
                    yield answer.result
                    idle.append(worker)
                elif isinstance(answer, Failed) and task is not None:
                    waiting.append(losses.unread(task, answer, where))
                    idle.insert(0, worker)  # so that another takes it, if there is one
                elif isinstance(answer, Failed):
                    losses.not_loaded(answer)
                    crew.end(worker)
                elif worker in idle:
                    idle.remove(worker)
                elif task is not None:
                    waiting.appendleft(losses.ended(task, answer, where))
                else:
                    losses.not_loaded(answer)
                if len(at) + len(idle) < min(size, left):
                    at[crew.start()] = None
            while idle and waiting:
                worker, task = idle.pop(), waiting.popleft()
                at[worker] = task
                crew.give(worker, task)
    finally:
        crew.dismiss()


@dataclass
class _Losses:
    """What is lost on the way, and what is said of it.

    Attributes:
        careful: whether the work can be done carefully.
        say: told of it.
        loading: workers that were lost while they loaded, since one was ready or finished a shard.
    """

    careful: bool
    say: Callable[[str], None]
    loading: int = field(default=0)

    def not_loaded(self, answer: Failed | Gone) -> None:
        """Count a worker that was lost while it loaded."""
        if isinstance(answer, Failed) and not answer.passing:
            raise _raised(answer)
        self.loading += 1
        if self.loading >= TRIES:
            if isinstance(answer, Failed):
                raise _raised(answer)
            raise FineScopeError(_lost(f"{self.loading} workers ended while they loaded", answer.how))
        how = _words(answer.error) if isinstance(answer, Failed) else answer.how
        self.say(f"a worker was lost while it loaded ({how}); another is started")

    def unread(self, task: Task, answer: Failed, where: str) -> Task:
        """Return a task that failed as it is to be tried again."""
        again = task.again()
        if not answer.passing or again.failed >= TRIES:
            self.say(f"{task}: failed on {where}")
            raise _raised(answer)
        self.say(
            f"{task}: {_words(answer.error)}, on {where}; it is tried again in {again.pause:g} s "
            f"({again.failed + 1} of {TRIES})"
        )
        return again

    def ended(self, task: Task, answer: Gone, where: str) -> Task:
        """Return a task that ended its worker as it is given to another."""
        task = task.after(answer.how, self.careful)
        if task.ended >= (MOST if self.careful else TRIES):
            rows = f"rows {task.shard.first} to {task.shard.end - 1}"
            raise FineScopeError(_lost(f"{rows} ended {task.ended} workers", answer.how))
        self.say(f"{task}: {where} {answer.how}; another worker takes it")
        return task


def _raised(answer: Failed) -> BaseException:
    if answer.trace:  # of another process
        answer.error.__cause__ = RuntimeError(answer.trace)
    return answer.error


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, FineScopeError) else f"{type(error).__name__}: {error}"


def _lost(what: str, how: str) -> str:
    return f"{what}, one after the other; the last {how}. {REMEDY}"


def patient(do: Callable[[Shard], Result], say: Callable[[str], None]) -> Callable[[Shard], Result]:
    """Return what does as ``do``, in this process, and tries again what may be gone the next time."""
    losses = _Losses(False, say)

    def done(shard: Shard) -> Result:
        task = Task(shard)
        while True:
            time.sleep(task.pause)
            try:
                return do(shard)
            except PASSING as error:
                task = losses.unread(task, Failed(error, "", True), here())

    return done


def here() -> str:
    """Return this machine and process, as they are called in what is said."""
    return f"{platform.node()}:{os.getpid()}"


def opened(work: Any) -> Callable[[Shard], Any] | Failed:
    """Open work, in the worker."""
    try:
        return work.open()  # type: ignore[no-any-return]
    except BaseException as error:
        return failure(error)


def answer(do: Any, task: Task) -> Answer:
    """Do work on a shard, in the worker."""
    try:
        time.sleep(task.pause)
        if task.carefully is None:
            return Done(do(task.shard))
        return Done(do.carefully(task.shard, task.carefully, task.how))
    except BaseException as error:
        return failure(error)


def failure(error: BaseException) -> Failed:
    """Return an error as it can be sent: one that can't be pickled only with its words."""
    trace, passing = "".join(traceback.format_exception(error)), isinstance(error, PASSING)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = FineScopeError(f"{type(error).__name__}: {error}")
    return Failed(error, trace, passing)

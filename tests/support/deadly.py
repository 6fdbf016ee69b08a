"""Embedding that ends who does it at rows with certain words, and workers in this process that it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finescope.activations import ActivationTap
from finescope.corpus import Row
from finescope.corpus.plan import Shard
from finescope.embeddings.embedder import Embedder
from finescope.workflow.engines import crew
from finescope.workflow.stages.embed import EmbedWork

DEADLY = "poison"
MOODY = "moody"
"""Ends who is at it with others, and nobody who is at it alone."""


def deadly(embedder: Embedder, die: Callable[[], None]) -> Embedder:
    """Have an embedder die at such rows."""
    tap: ActivationTap = embedder._tap
    real = tap.batches

    def batches(rows: Sequence[Row], **settings: Any) -> Iterator[Any]:
        words = " ".join(str(row.content) for row in rows)
        if DEADLY in words or (MOODY in words and len(rows) > 1):
            die()
        return real(rows, **settings)

    tap.batches = batches  # type: ignore[method-assign]
    return embedder


class DeadlyWork(EmbedWork):
    """The work of a run, with such accidents in the process that opens it."""

    def load(self) -> Embedder:
        return deadly(super().load(), lambda: os.kill(os.getpid(), signal.SIGKILL))


class Dead(BaseException):
    """What ends a worker of ``Mortals``."""


@dataclass(eq=False)
class _Mortal:
    do: Any
    answer: crew.Answer


class Mortals:
    """An engine and its crew: workers of this process, one after the other, that end at such rows.

    Attributes:
        started: how many there were.
    """

    def __init__(self) -> None:
        self.started = 0

    def over(self, work: EmbedWork, shards: Sequence[Shard]) -> Iterator[Any]:
        work.here = None
        self._work = work
        return crew.at_work(self, work, shards, 1)

    def start(self) -> _Mortal:
        self.started += 1
        pulse = self._work.open()
        deadly(pulse._embedder, self._die)
        return _Mortal(pulse, crew.Ready())

    def _die(self) -> None:
        raise Dead

    def give(self, worker: _Mortal, task: crew.Task) -> None:
        try:
            if task.carefully is None:
                worker.answer = crew.Done(worker.do(task.shard))
            else:
                worker.answer = crew.Done(worker.do.carefully(task.shard, task.carefully, task.how))
        except Dead:
            worker.answer = crew.Gone("was killed by signal 9")
        except Exception as error:
            worker.answer = crew.Failed(error, "")

    def answers(self, workers: Sequence[_Mortal]) -> list[tuple[_Mortal, crew.Answer]]:
        return [(worker, worker.answer) for worker in workers]

    def dismiss(self) -> None:
        pass

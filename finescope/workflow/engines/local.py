"""The engine that needs nothing: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finescope.corpus.plan import Shard
from finescope.workflow.engines.crew import patient
from finescope.workflow.engines.engine import Result, Work


@dataclass(frozen=True)
class Local:
    """Each shard is finished before the next one is begun: in this process, on the cores that torch uses.

    Attributes:
        say: told of shards that are tried again.
    """

    say: Callable[[str], None] = print

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """See ``Engine``."""
        return map(patient(work.open(), self.say), shards)

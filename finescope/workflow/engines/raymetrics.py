"""What Ray's dashboard, and Prometheus by way of it, see of the shards at work.

Nodes show it where Ray's own metrics are (``pip install 'ray[default]'``); where they aren't, nobody asks.
Ray puts ``ray_`` before the names, and says beside each value which job and worker it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finescope.corpus.plan import Shard
from finescope.workflow.engines.crew import Answer, Done

STATES = ("waiting", "running", "done")


class Metrics:
    """Counts shards by state, failures, and rows and tokens of finished shards, for Ray."""

    def __init__(self, shards: Sequence[Shard], tokens: Callable[[Any], int]) -> None:
        """Begin with all shards waiting; ``tokens`` tells those of a shard's result."""
        from ray.util.metrics import Counter, Gauge

        self._left, self._tokens = len(shards), tokens
        self._running = self._done = 0
        self._shards = Gauge("finescope_shards", "Shards of this run, by state.", ("state",))
        self._failures = Counter("finescope_shard_failures", "Shards that failed, or lost their worker.")
        self._rows = Counter("finescope_rows", "Rows of finished shards.")
        self._read = Counter("finescope_tokens", "Tokens of finished shards.")
        self._say()

    def begun(self) -> None:
        """Count a shard that a worker is at."""
        self._left, self._running = self._left - 1, self._running + 1
        self._say()

    def answered(self, shard: Shard, answer: Answer) -> None:
        """Count what has become of a shard that a worker was at."""
        self._running -= 1
        if isinstance(answer, Done):
            self._done += 1
            self._count(self._rows, shard.rows)
            self._count(self._read, self._tokens(answer.result))
        else:
            self._left += 1
            self._failures.inc()
        self._say()

    def over(self) -> None:
        """Say that nobody works any more."""
        self._left, self._running = self._left + self._running, 0
        self._say()

    def _count(self, counter: Any, number: int) -> None:
        if number:  # Ray refuses to count nothing
            counter.inc(number)

    def _say(self) -> None:
        for state, number in zip(STATES, (self._left, self._running, self._done), strict=True):
            self._shards.set(number, {"state": state})

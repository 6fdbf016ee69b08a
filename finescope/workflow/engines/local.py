"""The interface of all engines, and the one that needs nothing: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from finescope.corpus.plan import Shard

_Result = TypeVar("_Result")


class Engine(Protocol):
    """Has work done on planned shards, which depend on nothing but their own rows."""

    def over(self, work: Callable[[Shard], _Result], shards: Iterable[Shard]) -> Iterator[_Result]:
        """Yield what ``work`` returns for each of the shards, in their order.

        Nothing is done that isn't asked for: whoever stops iterating stops the work.
        """


@dataclass(frozen=True)
class Local:
    """Each shard is finished before the next one is begun: in this process, on the cores that torch uses."""

    def over(self, work: Callable[[Shard], _Result], shards: Iterable[Shard]) -> Iterator[_Result]:
        """See ``Engine``."""
        return map(work, shards)

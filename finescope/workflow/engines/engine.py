"""The contract of a shard: what an engine is given, and what it may do with it.

Work on one shard depends on nothing but the shard's rows; it ends with one atomic write of its own, after
which the shard counts; and done twice, or in two places at once, it leaves the same bytes. So an engine may
work on shards in any order, in any process that sees the run's folder, and again wherever one was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from finescope.corpus.plan import Shard

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Work(Protocol[Result_co]):
    """Work on planned shards. It can be pickled, and is opened once in each process that does some.

    Where it has an attribute ``careful`` that is true, what it opens has a method ``carefully(shard, ended,
    how)`` for a shard that ends the processes which are at it. Where it has a function ``tokens``,
    that tells the tokens of a result.
    """

    def open(self) -> Callable[[Shard], Result_co]:
        """Load what is needed, and return what works on one shard after the other."""


class Engine(Protocol):
    """Has work done on planned shards."""

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """Yield what the work returns for each of the shards, in any order, as it is done.

        Whoever stops iterating stops the work: no further shard is begun.

        Raises:
            What the work raises for a shard; shards that were done by then stay done.
        """

"""The engine of ``finescope merge``: it does nothing itself, and says what others have left undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finescope.corpus.plan import Shard
from finescope.errors import InputError
from finescope.progress import counted
from finescope.workflow.engines.engine import Result, Work

_SHOWN = 8


class Merged:
    """All shards have been worked on already."""

    def over(self, work: Work[Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """See ``Engine``.

        Raises:
            InputError: shards are left; names them.
        """
        if shards:
            numbers = ", ".join(str(shard.number) for shard in shards[:_SHOWN])
            more = f" and {len(shards) - _SHOWN:,} more" if len(shards) > _SHOWN else ""
            raise InputError(
                f"not done yet: {counted(len(shards), 'shard')}, by number {numbers}{more}; start the "
                "tasks again that run `finescope curate --shard`: finished shards aren't done a second time"
            )
        return iter(())

"""A row that ends whoever reads it, found by reading rows one at a time, each noted before it is begun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from finescope.errors import FineScopeError, StoreError
from finescope.storage.files import read_json, write_json

TIMES = 2
"""How often a row must end a worker that reads it by itself before it is set aside."""
REMEDY = (
    "Short of memory, systems kill what takes most: use fewer --workers or a smaller --batch-tokens, and run "
    "again; finished shards are kept"
)
_ELSEWHERE = 3
"""How many workers may end elsewhere than at such a row: then it isn't a row that ends them."""


class Alone:
    """The rows of a shard that has ended workers, one at a time. What is known is kept beside the shard.

    Attributes:
        aside: places in the shard of rows that have ended workers by themselves, ``TIMES`` times.
    """

    def __init__(self, path: Path, identity: str, ended: int, how: str) -> None:
        """Read what the worker before has noted.

        Args:
            path: of the note.
            identity: what tells this work from other work.
            ended: how many workers have ended while they read this shard row by row; 0: a note is of an
                earlier run.
            how: how the last one ended.

        Raises:
            FineScopeError: workers end, but not at any one row.
        """
        self._path, self._identity, self._ended = path, identity, ended
        self.aside: list[int] = []
        self._died: list[int] = []  # places where a worker has ended
        self._elsewhere, noted = 0, 0
        place: int | None = None
        times = 0
        with contextlib.suppress(StoreError, KeyError, TypeError):
            held = read_json(path)
            if held["identity"] == identity and held["ended"] < ended:
                self.aside, self._died, self._elsewhere = held["aside"], held["died"], held["elsewhere"]
                place, times, noted = held["place"], held["times"], held["ended"] + 1
        if noted and place is None:
            self._elsewhere += 1
        elif place is not None and times >= TIMES:
            self.aside.append(place)
            place = None
        elif place is not None:
            self._died.append(place)
        self._elsewhere += ended - noted  # those that have ended before they could note anything
        self._suspect: int | None = place
        if self._elsewhere >= _ELSEWHERE:
            raise FineScopeError(
                f"workers end at this shard, but at no one row of it; the last {how}. {REMEDY}"
            )
        self.passed()

    def of(self, places: Sequence[int], rows: int) -> Iterator[int]:
        """Yield places one after the other, each once those before are done.

        Before the row that a worker has ended at comes another: whoever ends there as well ends anywhere. It
        may be none of ``places``, and is read in vain then.

        Args:
            places: what there is to do.
            rows: of the shard.
        """
        suspect, other = self._suspect, None
        if suspect is not None and suspect in places:
            other = next((place for place in (*places, *range(rows)) if self._harmless(place)), None)
            if other is not None:
                self._elsewhere += 1  # unless this worker comes to the suspect, and ends there
                self._note(other, 1)
                yield other
                self._elsewhere -= 1
                self._note(suspect, TIMES)
            yield suspect  # with nothing noted where there is no other to tell by
        if suspect is not None:
            self._elsewhere += 1  # the worker before has, as this row does no harm
        for place in places:
            if place not in (suspect, other):
                self._note(place, 1)
                yield place
        self.passed()

    def passed(self) -> None:
        """Say that the row has done no harm: what comes next isn't its doing."""
        self._note(None, 0)

    def _harmless(self, place: int) -> bool:
        return place not in self._died and place not in self.aside and place != self._suspect

    def _note(self, place: int | None, times: int) -> None:
        known = {"aside": self.aside, "died": self._died, "elsewhere": self._elsewhere}
        at = {"place": place, "times": times}
        write_json(self._path, {"identity": self._identity, "ended": self._ended, **known, **at})

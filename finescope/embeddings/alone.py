"""A row that ends whoever reads it, found by reading rows one at a time, each noted before it is begun."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from finescope.errors import FineScopeError, StoreError
from finescope.storage.files import read_json, write_json

TIMES = 2
"""How often a row must end a worker that is at it alone before it is set aside."""
REMEDY = (
    "Short of memory, systems kill what takes most: use fewer --workers or a smaller --batch-tokens, and run "
    "again; finished shards are kept"
)
_OTHERS = 3
"""How many workers may end elsewhere each time: then it isn't a row that ends them."""


class Alone:
    """The rows of a shard that has ended workers, one at a time. What is known is kept beside the shard.

    Attributes:
        aside: places in the shard of rows that have ended workers, alone, ``TIMES`` times.
    """

    def __init__(self, path: Path, identity: str, how: str, *, first: bool) -> None:
        """Read what the worker before has noted.

        Args:
            path: of the note.
            identity: what tells this work from other work.
            how: how that worker ended.
            first: none has read row by row yet, and a note is of an earlier run.

        Raises:
            FineScopeError: workers end, but not at any one row.
        """
        self._path, self._identity, self._how = path, identity, how
        self.aside: list[int] = []
        self._others = 0
        place: int | None = None
        times = 0
        with contextlib.suppress(StoreError, KeyError):
            held = read_json(path)
            if not first and held["identity"] == identity:
                self.aside, self._others = held["aside"], held["others"]
                place, times = held["place"], held["times"]
        if place is None and not first:
            self._others += 1
        elif place is not None and times >= TIMES:
            self.aside.append(place)
            place = None
        self._suspect: int | None = place
        self._check()
        self._note(None, 0)

    def of(self, places: Sequence[int]) -> Iterator[int]:
        """Yield places in the shard, one after the other.

        The row that a worker has ended at comes second: whoever ends at the first as well ends anywhere.

        Raises:
            FineScopeError: workers end, but not at any one row.
        """
        suspect = self._suspect
        others = [place for place in places if place != suspect]
        if suspect is not None:
            self._others += 1  # unless this worker comes to the suspect, and ends there
        for place in others[:1]:
            self._note(place, 1)
            yield place
        if suspect is not None and suspect in places:
            self._others -= 1
            self._note(suspect, TIMES)
            yield suspect
            self._others += 1
        self._check()
        for place in others[1:]:
            self._note(place, 1)
            yield place

    def _check(self) -> None:
        if self._others >= _OTHERS:
            raise FineScopeError(
                f"workers end at this shard, but at no one row of it; the last {self._how}. {REMEDY}"
            )

    def _note(self, place: int | None, times: int) -> None:
        known = {"aside": self.aside, "others": self._others, "place": place, "times": times}
        write_json(self._path, {"identity": self._identity, **known})

"""How rows are cut into shards that can be worked on one by one, and how finished ones are known again."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finescope.corpus.row import Row
from finescope.corpus.source import Start
from finescope.errors import InputError, StoreError
from finescope.storage.manifest import ShardEntry

if TYPE_CHECKING:
    from finescope.corpus.reader import Corpus

SHARD_ROWS = 4096
"""Rows of a shard."""
SHARD_CHARACTERS = 1 << 25
"""Characters at which a shard is closed though more rows would fit, so that its token ids fit in memory."""


class RowHash:
    """A hash of ids and texts of rows, in order; known after each row."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Take the next row."""
        self._hash.update(f"{row.id}\0{row.content}\0".encode("utf-8", "surrogatepass"))

    @property
    def value(self) -> str:
        """Hexadecimal hash of the rows so far."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Shard:
    """Rows that stand one after the other and are worked on together.

    Attributes:
        first: number of the first row.
        rows: how many there are.
        digest: ``RowHash`` of them.
        number: of the shard, from 0.
        characters: of their texts.
        start: where the first row stands; None where nobody has looked.
    """

    first: int
    rows: int
    digest: str
    number: int = 0
    characters: int = 0
    start: Start | None = None

    @property
    def end(self) -> int:
        """Number of the row after the last."""
        return self.first + self.rows


class Planner:
    """Cuts rows into shards as they come by. Where is decided by the rows alone, from each shard's first on.

    Attributes:
        shards: the shards that are closed.
    """

    def __init__(self, limit: int = SHARD_ROWS, characters: int = SHARD_CHARACTERS) -> None:
        """Plan shards of at most ``limit`` rows, and of about so many characters.

        Raises:
            ValueError: a limit below 1.
        """
        if limit < 1:
            raise ValueError(f"a shard holds at least 1 row, not {limit}")
        self.shards: list[Shard] = []
        self._limit, self._most = limit, characters
        self._number = 0
        self._open(0)

    def _open(self, first: int) -> None:
        self._first, self._rows, self._characters, self._hash = first, 0, 0, RowHash()

    def add(self, row: Row) -> bool:
        """Take the next row; return whether a shard ends with it."""
        self._rows += 1
        self._characters += len(row.content)
        self._hash.add(row)
        if self._rows < self._limit and self._characters < self._most:
            return False
        self.close()
        return True

    def close(self) -> None:
        """End the shard that is open, if it holds a row."""
        if self._rows:
            done = Shard(self._first, self._rows, self._hash.value, self._number, self._characters)
            self.shards.append(done)
            self._number += 1
            self._open(done.end)


def plan(corpus: Corpus, limit: int = SHARD_ROWS) -> list[Shard]:
    """Read a corpus once and return the shards that its rows are cut into."""
    planner = Planner(limit)
    for row in corpus.rows(records=False):
        planner.add(row)
    planner.close()
    return located(corpus, planner.shards)


def located(corpus: Corpus, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards of a corpus with their starts, which the pass that planned them has found."""
    starts = corpus.starts([shard.first for shard in shards])
    return [replace(shard, start=start) for shard, start in zip(shards, starts, strict=True)]


def cut(
    rows: Iterable[Row], limit: int = SHARD_ROWS, characters: int = SHARD_CHARACTERS
) -> Iterator[tuple[Shard, list[Row]]]:
    """Yield rows shard by shard."""
    planner = Planner(limit, characters)
    held: list[Row] = []
    for row in rows:
        held.append(row)
        if planner.add(row):
            yield planner.shards.pop(), held
            held = []
    planner.close()
    if held:
        yield planner.shards.pop(), held


class ShardReader:
    """Reads the rows of planned shards, in any order. Asked for in theirs, they take one pass."""

    def __init__(self, open_rows: Callable[[Start], Iterator[Row]]) -> None:
        """Read from what ``open_rows`` returns: an iterator over all rows from one on."""
        self._open = open_rows
        self._rows: Iterator[Row] = iter(())
        self._position: int | None = None

    def read(self, shard: Shard) -> list[Row]:
        """Return the rows of a shard.

        Raises:
            InputError: they are other rows than those that were planned.
        """
        position, self._position = self._position, None  # an iterator that has raised yields nothing more
        if position != shard.first:
            if shard.start is None:
                raise ValueError("a shard without a start can't be read: see located")
            self._rows = self._open(shard.start)
        found = list(itertools.islice(self._rows, shard.rows))
        self._position = shard.end
        digest = RowHash()
        for row in found:
            digest.add(row)
        if digest.value != shard.digest:
            where = f" (from {found[0].place} on)" if found and found[0].place else ""
            raise InputError(
                f"rows {shard.first} to {shard.end - 1}{where} have changed since they were "
                "first read; leave the corpus alone while it is worked on, and run again"
            )
        return found


def missing(shards: Sequence[Shard], finished: Mapping[int, ShardEntry]) -> list[Shard]:
    """Return the planned shards that aren't finished.

    Args:
        shards: the plan.
        finished: by number, what was noted about the finished shards: "digest" too.

    Raises:
        StoreError: the finished shards are of other rows.
    """
    for shard in shards:
        if shard.number in finished:
            _check(shard, finished[shard.number])
    if finished.keys() - {shard.number for shard in shards}:
        raise _changed(f"all after the first {sum(shard.rows for shard in shards)}")
    return [shard for shard in shards if shard.number not in finished]


def _check(shard: Shard, known: ShardEntry) -> None:
    if (known.rows, known.notes["digest"]) != (shard.rows, shard.digest):
        raise _changed(f"rows {shard.first} to {shard.end - 1}")


def unfinished(
    rows: Iterable[Row], finished: Sequence[ShardEntry], limit: int = SHARD_ROWS
) -> Iterator[tuple[Shard, list[Row]]]:
    """Yield the shards of rows that can't be planned beforehand: those after finished ones.

    Raises:
        StoreError: the finished shards are of other rows.
    """
    finished = list(finished)  # what is made of the shards yielded may be noted in the list that was given
    seen: list[Shard] = []
    for shard, held in cut(rows, limit):
        if len(seen) >= len(finished):
            yield shard, held
            continue
        seen.append(shard)
        _check(shard, finished[len(seen) - 1])
    if len(seen) < len(finished):
        raise _changed(f"all after the first {sum(shard.rows for shard in seen)}")


def _changed(which: str) -> StoreError:
    return StoreError(
        f"the rows aren't those that the finished shards were made from: {which} have changed. "
        "Choose another folder, or overwrite this one"
    )

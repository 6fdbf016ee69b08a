"""What a corpus is made of: sources of rows, and how their rows are handed over."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finescope.corpus.files import File
from finescope.corpus.jsontext import with_members
from finescope.corpus.lines import Mark
from finescope.errors import InputError
from finescope.storage.identity import sha256_json

Record = dict[str, Any]
BLOCK_ROWS = 1024
Visit = Callable[[Any], None]
"""Sees every block of rows as it is read: a pyarrow table, or a list of records."""


@dataclass(frozen=True)
class Look:
    """Sees single rows, as ``Source.records`` has them, before they are handed over in another form.

    Attributes:
        columns: that it must see, dotted where a part is enough; None for all.
        see: takes (row number, place, record).
    """

    columns: Sequence[str] | None
    see: Callable[[int, str, Record], None]


@dataclass(frozen=True)
class Start:
    """Where in a corpus a row stands.

    Attributes:
        source: position of the source.
        row: number of the row in it.
        mark: the last place before the row that reading can begin at, where the source knows one.
    """

    source: int
    row: int
    mark: Mark | None = None


class Source(Protocol):
    """Rows of one file or dataset, in order, re-iterable."""

    name: str
    """For messages."""
    stem: str
    """Prefix of generated ids."""
    suffix: str
    """Ending of an output file in the same format."""
    constants: Record
    """Columns that every row has because of the folders that the file lies in."""
    full_rows: bool
    """Whether every row has every column, so that nulls stand for what isn't there."""
    files: Sequence[File]
    """What is read; none of a source that is no file."""

    def schema(self) -> Any:
        """Return the pyarrow schema, or None where rows say themselves what they hold."""

    def count(self) -> int | None:
        """Return the number of rows if it is known without reading."""

    def length(self) -> int:
        """Return the number of rows, reading the source for it if need be."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these contents from others."""

    def records(
        self, columns: Sequence[str] | None, also: Sequence[str] = (), visit: Visit | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        """Yield (row number from 0, place, record).

        Args:
            columns: columns that records must have, dotted where a part is enough; None for all.
            also: columns that ``visit`` needs beside them.
            visit: sees the rows in blocks.
        """

    def records_from(
        self, number: int, columns: Sequence[str] | None, mark: Mark | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        """Yield what ``records`` yields from a row on; none before it is parsed.

        Args:
            number: of the row.
            columns: as for ``records``.
            mark: where to begin, of ``mark(number)``; without it all before the row is passed over.
        """

    def mark(self, number: int) -> Mark | None:
        """Return the last place known, from a pass over the rows, before a row; None if that is no help."""

    def picked(
        self, numbers: Sequence[int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, str, Record]]:
        """Yield what ``records`` yields of some rows, given in ascending order.

        Raises:
            InputError: there are fewer rows.
        """

    def lines(self, numbers: Sequence[int], look: Look | None = None) -> Iterator[tuple[int, str]]:
        """Yield (row number, the row as JSON on one line) for some rows, given in ascending order."""

    def tables(
        self, numbers: Sequence[int], schema: Any, look: Look | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        """Yield (row numbers, their rows as a pyarrow table of ``schema``) for some rows, in ascending
        order."""


def by_source(sources: Sequence[Source], rows: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (position, first row, numbers within it) of the sources that have some of the rows, in order.

    Args:
        sources: what all rows are read from.
        rows: numbers among all rows, in any order.

    Raises:
        InputError: there are fewer rows.
    """
    wanted = sorted(rows)
    start = at = 0
    for position, source in enumerate(sources):
        if at == len(wanted):
            return
        if position == len(sources) - 1 and source.count() is None:  # it will notice by itself
            yield position, start, [row - start for row in wanted[at:]]
            return
        end = start + source.length()
        stop = bisect.bisect_left(wanted, end, at)
        if stop > at:
            yield position, start, [row - start for row in wanted[at:stop]]
        start, at = end, stop
    if at < len(wanted):
        raise too_few(wanted[at], start)


def too_few(row: int, rows: int, name: str = "") -> InputError:
    """Return an error that says that a row isn't there, of so many rows in the corpus or in a file of it."""
    return InputError(
        f"{name and name + ': '}row {row} was chosen, but there are only {rows}; the corpus has changed "
        "since it was scored"
    )


def records_as_table(records: Sequence[Record], schema: Any, name: str) -> Any:
    """Return plain records as a pyarrow table.

    Raises:
        InputError: a value that its column can't hold.
    """
    import pyarrow as pa

    try:
        table = pa.Table.from_pylist(list(records), schema=schema)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise InputError(
            f"{name}: rows can't be written as Parquet ({error}); columns with mixed types need .jsonl"
        ) from error
    for column in table.column_names:
        refuse_changed([record.get(column) for record in records], table.column(column), column, name)
    return table


def refuse_changed(values: Sequence[Any], column: Any, name: str, file: str) -> None:
    """Refuse a column of Arrow in which ``true`` became a number, as it does silently among floats.

    Raises:
        InputError: naming column and file.
    """
    from pyarrow import types

    kind = column.type
    if not (types.is_floating(kind) or types.is_nested(kind)):
        return
    for value, made in zip(values, column.to_pylist(), strict=True):
        if not _truth_kept(value, made):
            raise InputError(
                f"{file}: column {name!r} can't be written as Parquet: it holds true or false among numbers; "
                "columns with mixed types need .jsonl (--format jsonl)"
            )


def _truth_kept(value: Any, made: Any) -> bool:
    if isinstance(value, dict) and isinstance(made, dict):
        return all(_truth_kept(item, made.get(key)) for key, item in value.items())
    if isinstance(value, list) and isinstance(made, list):
        return all(map(_truth_kept, value, made))
    return isinstance(value, bool) == isinstance(made, bool)


def record_as_line(record: Record) -> str:
    """Return a record as JSON on one line.

    Raises:
        InputError: a value without a JSON form; names the column.
    """
    try:
        return json.dumps(record, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        bad = next((name for name, value in record.items() if not _dumps(value)), "?")
        raise InputError(
            f"column {bad!r} can't be written as JSON ({error}); write .parquet instead"
        ) from error


def _dumps(value: Any) -> bool:
    try:
        json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    if type(value).__name__ == "Decimal":
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


class MemorySource:
    """Records that are already there."""

    full_rows = False
    files: Sequence[File] = ()

    def __init__(self, records: Sequence[Record], name: str = "rows") -> None:
        self.constants: Record = {}
        self._records = records
        self.name = self.stem = name
        self.suffix = ".jsonl"

    def schema(self) -> None:
        return None

    def count(self) -> int:
        return len(self._records)

    def length(self) -> int:
        return len(self._records)

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self._records), "sha256": sha256_json(list(self._records))}

    def records(
        self, columns: Sequence[str] | None, also: Sequence[str] = (), visit: Visit | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        for number, record in enumerate(self._records):
            if visit is not None and number % BLOCK_ROWS == 0:
                visit(self._records[number : number + BLOCK_ROWS])
            yield number, f"{self.name}:{number}", record

    def records_from(
        self, number: int, columns: Sequence[str] | None, mark: Mark | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        return self.picked(range(number, len(self._records)), columns)

    def mark(self, number: int) -> None:
        return None

    def picked(
        self, numbers: Sequence[int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, str, Record]]:
        return ((number, f"{self.name}:{number}", self._records[number]) for number in numbers)

    def lines(self, numbers: Sequence[int], look: Look | None = None) -> Iterator[tuple[int, str]]:
        for row in self.picked(numbers, None):
            if look is not None:
                look.see(*row)
            yield row[0], record_as_line(row[2])

    def tables(
        self, numbers: Sequence[int], schema: Any, look: Look | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[start : start + BLOCK_ROWS]
            rows = list(self.picked(block, None))
            if look is not None:
                for row in rows:
                    look.see(*row)
            yield block, records_as_table([record for _, _, record in rows], schema, self.name)


def with_constants(text: str, record: Record, constants: Record) -> str:
    """Return a record's text with the columns that its folders give it, where it lacks them."""
    missing = {name: value for name, value in constants.items() if name not in record}
    return with_members(text, missing) if missing else text

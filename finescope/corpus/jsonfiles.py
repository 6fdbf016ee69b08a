"""JSON files: one object a line, an array of objects, or one object after the other; plain or packed.

A pass parses all rows, one after the other, and leaves marks in a file of lines. Single rows of one are found
by counting line ends from the last mark before them, and no other is parsed.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from finescope.corpus.files import File
from finescope.corpus.jsontext import TOO_DEEP, TOO_LONG, BrokenJsonError, Objects, on_one_line
from finescope.corpus.lines import BOM, LineBlocks, Lines, Mark
from finescope.corpus.packing import PACKED, opened, unpacking
from finescope.corpus.source import (
    BLOCK_ROWS,
    Look,
    Record,
    Visit,
    records_as_table,
    too_few,
    with_constants,
)
from finescope.errors import InputError

_LINES = (".jsonl", ".ndjson", ".json")
JSON_ENDINGS = tuple(ending + packed for ending in _LINES for packed in ("", *PACKED))
_HEAD = 1 << 16


class JsonSource:
    """Rows of a JSON file. Blank lines are skipped; a byte-order mark is dropped."""

    full_rows = False

    def __init__(self, file: File) -> None:
        self._file = file
        self.files: Sequence[File] = (file,)
        self.constants = file.constants
        self._count: int | None = None
        self.name = file.label
        ending = next(ending for ending in reversed(JSON_ENDINGS) if file.name.lower().endswith(ending))
        self.stem = file.name[: -len(ending)]
        self._packed = PurePath(ending).suffix
        self._may_hold_values = ending.startswith(".json") and not ending.startswith(".jsonl")
        self.suffix = ".jsonl" + (self._packed if self._packed in (".gz", ".zst") else "")

    def schema(self) -> None:
        return None

    def count(self) -> int | None:
        return self._count

    def fingerprint(self) -> dict[str, Any]:
        return self._file.fingerprint()

    def records(
        self, columns: Sequence[str] | None, also: Sequence[str] = (), visit: Visit | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        block: list[Record] = []
        number = -1
        for number, (place, text, parsed) in enumerate(self._texts()):
            record = parsed if parsed is not None else parse_line(text, place)
            if self.constants:
                record = {**self.constants, **record}
            if visit is not None:
                block.append(record)
                if len(block) == BLOCK_ROWS:
                    visit(block)
                    block = []
            yield number, place, record
        if visit is not None and block:
            visit(block)
        self._count = number + 1

    def records_from(
        self, number: int, columns: Sequence[str] | None, mark: Mark | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        with contextlib.closing(opened(self._file, self._packed, hashed=False)) as file:
            found: Iterator[tuple[str, str, Record | None]]
            if mark is None and self._holds_values(self._head(file)):
                found = itertools.islice(self._values(file), number, None)
            else:
                found = self._texts_of_lines(file, mark if file.seekable() else None, number)
            for at, (place, text, parsed) in enumerate(found, start=number):
                record = parsed if parsed is not None else parse_line(text, place)
                yield at, place, {**self.constants, **record}

    def mark(self, number: int) -> Mark | None:
        marks = self._file.marks
        return marks[min(number // BLOCK_ROWS, len(marks) - 1)] if marks else None

    def lines(self, numbers: Sequence[int], look: Look | None = None) -> Iterator[tuple[int, str]]:
        for number, place, text, parsed in self._some(numbers):
            record = parsed if parsed is not None else parse_line(text, place)
            if look is not None:
                look.see(number, place, {**self.constants, **record})
            yield number, with_constants(on_one_line(text), record, self.constants)

    def tables(
        self, numbers: Sequence[int], schema: Any, look: Look | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        block: list[tuple[int, Record]] = []
        for number, place, record in self.picked(numbers, None):
            if look is not None:
                look.see(number, place, record)
            block.append((number, record))
            if len(block) == BLOCK_ROWS or number == numbers[-1]:
                yield (
                    [number for number, _ in block],
                    records_as_table([record for _, record in block], schema, self.name),
                )
                block = []

    def picked(
        self, numbers: Sequence[int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, str, Record]]:
        for number, place, text, parsed in self._some(numbers):
            record = parsed if parsed is not None else parse_line(text, place)
            yield number, place, {**self.constants, **record}

    def length(self) -> int:
        if self._count is None:
            with contextlib.closing(opened(self._file, self._packed, hashed=False)) as file:
                if self._holds_values(self._head(file)):
                    self._count = sum(1 for _ in self._values(file))
                else:
                    self._count = sum(map(len, self._blocks(file)))
        return self._count

    def _some(self, numbers: Sequence[int]) -> Iterator[tuple[int, str, str, Record | None]]:
        with contextlib.closing(opened(self._file, self._packed, hashed=False)) as file:
            if self._holds_values(self._head(file)):
                yield from self._some_values(file, numbers)
                return
            at = rows = 0
            blocks, seekable = LineBlocks(file), file.seekable()
            while at < len(numbers):
                mark = self.mark(numbers[at]) if seekable else None
                if mark is not None:
                    blocks.pass_to(mark)
                block = self._next(blocks)
                if block is None:
                    raise too_few(numbers[at], rows, self.name)
                rows = block.rows + len(block)
                end = bisect.bisect_left(numbers, rows, at)
                for number in numbers[at:end]:
                    line_number, line = block.row(number)
                    place = f"{self.name}:{line_number}"
                    yield number, place, _decoded(line, place), None
                at = end

    def _some_values(
        self, file: io.BufferedReader, numbers: Sequence[int]
    ) -> Iterator[tuple[int, str, str, Record | None]]:
        rows = enumerate(self._values(file))
        read = 0
        for wanted in numbers:
            for number, (place, text, parsed) in rows:
                read = number + 1
                if number == wanted:
                    yield number, place, text, parsed
                    break
            else:
                raise too_few(wanted, read, self.name)

    def _blocks(self, file: io.BufferedReader) -> Iterator[Lines]:
        blocks = LineBlocks(file)
        while (block := self._next(blocks)) is not None:
            yield block

    def _next(self, blocks: LineBlocks) -> Lines | None:
        with self._unpacking(blocks.line):
            return blocks.next()

    def _texts(self) -> Iterator[tuple[str, str, Record | None]]:
        """Yield (place, the row's JSON, the row where it had to be parsed to be found)."""
        with contextlib.closing(opened(self._file, self._packed)) as file:
            if self._holds_values(self._head(file)):
                yield from self._values(file)
                return
            yield from self._texts_of_lines(file)

    def _texts_of_lines(
        self, file: io.BufferedReader, mark: Mark | None = None, first: int = 0
    ) -> Iterator[tuple[str, str, None]]:
        """Yield (place, text, None) of the rows from the ``first`` on, reading from a mark on."""
        mark = mark or Mark(0, 0, 1)
        row, offset, line_number = mark.row, mark.offset, mark.line
        if offset:
            file.seek(offset)
        while line := self._line(file, line_number):
            start, offset = offset, offset + len(line)
            if line_number == 1:
                line = line.removeprefix(BOM)
            if line.strip():
                if row == len(self._file.marks) * BLOCK_ROWS and self._packed not in PACKED:
                    self._file.marks.append(Mark(row, start, line_number))
                if row >= first:
                    place = f"{self.name}:{line_number}"
                    yield place, _decoded(line, place), None
                row += 1
            line_number += 1

    def _holds_values(self, head: bytes) -> bool:
        """Whether rows are found by their braces and not by the ends of lines."""
        return head[:1] == b"[" or (self._may_hold_values and _goes_on(head))

    def _line(self, file: io.BufferedReader, number: int) -> bytes:
        with self._unpacking(number):
            return file.readline()

    def _head(self, file: io.BufferedReader) -> bytes:
        """Return the beginning without byte-order mark and white space, leaving it to be read."""
        with self._unpacking(1):
            return file.peek(_HEAD)[:_HEAD].removeprefix(BOM).lstrip()

    def _values(self, file: io.BufferedReader) -> Iterator[tuple[str, str, Record | None]]:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        objects = Objects(text)
        rows = iter(objects)
        line = 0
        while True:
            try:
                with self._unpacking(line + 1):
                    found = next(rows, None)
            except BrokenJsonError as error:
                raise InputError(
                    f"{self.name}:{error.line}: broken JSON, {error.what}: {_shown(error.shown)}; "
                    "the file must hold objects, in an array or one a line"
                ) from error
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.name}: not UTF-8 (byte {error.object[error.start]:#04x}); convert the file"
                ) from error
            if found is None:
                return
            line, value_text, value = found
            yield f"{self.name}:{line}", value_text, value

    def _unpacking(self, line: int) -> contextlib.AbstractContextManager[None]:
        return unpacking(f"{self.name}:{line}", self._packed)


def parse_line(text: str, place: str) -> Record:
    """Return the object that a line holds.

    Raises:
        InputError: broken JSON, or something else than an object.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: broken JSON, {_what(error)}: {_shown(text)}; correct or remove the line"
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{place}: holds a JSON {type(record).__name__}; "
            'every line must be one object such as {"text": "…"}'
        )
    return record


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8").rstrip()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 (byte {error.start + 1} of the line); convert the file"
        ) from error


def _what(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return TOO_DEEP if isinstance(error, RecursionError) else TOO_LONG


def _shown(text: str) -> str:
    text = text.strip()
    return f"{text[:60]}{'…' if len(text) > 60 else ''}"


def _goes_on(head: bytes) -> bool:
    """Return whether a file's first line is the beginning of an object that ends in a later one."""
    first, end, _ = head.partition(b"\n")
    if not (end and first.startswith(b"{")):
        return False
    text = first.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    return False

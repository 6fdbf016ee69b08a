"""CSV and TSV files: a header, and cells that stay the text they are."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import PurePath
from typing import Any

from finescope.corpus.dotted import holders
from finescope.corpus.files import File
from finescope.corpus.lines import BOM, Mark
from finescope.corpus.packing import PACKED, opened, unpacking
from finescope.corpus.source import BLOCK_ROWS, Record
from finescope.corpus.tables import TableSource
from finescope.errors import InputError

CSV_ENDINGS = tuple(ending + packed for ending in (".csv", ".tsv") for packed in ("", *PACKED))
_DELIMITERS = ",;\t"
_QUOTED = re.compile(r'"[^"]*"')
_NAMED = re.compile(rb"sep=([,;\t|])")
"""A line before the header, by which Excel knows the delimiter."""
_HEAD = 1 << 16
_LONGEST = 2**31 - 1
"""Characters of a cell; the csv module's own limit is 131 072."""


class CsvSource(TableSource):
    """Rows of a CSV file. A number stays the text that it was: ``007`` is no 7, and no cell is null.

    Cells may be quoted as RFC 4180 has it, and hold line ends. Commas, semicolons or tabs part them: those of
    which the header has most outside of quotes, or the one that a line ``sep=;`` before the header names.
    """

    suffix = ".jsonl"

    def __init__(self, file: File) -> None:
        self._file = file
        self.files: Sequence[File] = (file,)
        self.constants = file.constants
        self.name = file.label
        ending = next(ending for ending in reversed(CSV_ENDINGS) if file.name.lower().endswith(ending))
        self.stem = file.name[: -len(ending)]
        self._packing = PurePath(ending).suffix
        self._tabs = ending.startswith(".tsv")
        self._count: int | None = None

    def schema(self) -> Any:
        import pyarrow as pa

        with contextlib.closing(self._rows()) as rows:
            header = next(rows, [])
        return self._with_constants(pa.schema([(name, pa.string()) for name in header]))

    def count(self) -> int | None:
        return self._count

    def fingerprint(self) -> dict[str, Any]:
        return self._file.fingerprint()

    def blocks(self, columns: Sequence[str] | None) -> Iterator[Any]:
        rows = self._rows()
        header = next(rows, [])
        asked = header if columns is None else holders(columns)
        kept = [at for at, name in enumerate(header) if name in asked]
        block: list[list[str]] = []
        count = 0
        for row in rows:
            block.append(row)
            count += 1
            if len(block) == BLOCK_ROWS:
                yield _table(header, block, kept)
                block = []
        if block:
            yield _table(header, block, kept)
        self._count = count

    def records_from(
        self, number: int, columns: Sequence[str] | None, mark: Mark | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        return itertools.islice(self.records(columns), number, None)  # a line end may stand in a cell

    def _rows(self) -> Generator[list[str], None, None]:
        """Yield the header, then rows as long as it."""
        csv.field_size_limit(_LONGEST)
        with contextlib.closing(opened(self._file, self._packing)) as raw:
            with self._reading(1):
                first = raw.peek(_HEAD).removeprefix(BOM).lstrip(b"\r\n")
                first = re.split(rb"[\r\n]", first, maxsplit=1)[0]
            named = _NAMED.fullmatch(first)
            unquoted = _QUOTED.sub("", first.decode("utf-8", "replace"))
            delimiter = "\t" if self._tabs else max(_DELIMITERS, key=unquoted.count)
            if named is not None:
                delimiter = named[1].decode()
            lines = csv.reader(
                io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True
            )
            header: list[str] = []
            while True:
                with self._reading(lines.line_num + 1):
                    row = next(lines, None)
                if row is None:
                    return
                if not row or (named is not None and lines.line_num == 1):
                    continue
                if not header:
                    header = row
                    if "" in header:
                        raise InputError(f"{self.name}:1: a column has no name; name all in the first line")
                if len(row) != len(header):
                    raise InputError(
                        f"{self.name}:{lines.line_num}: {len(row)} cells in a row, but the header has "
                        f"{len(header)}; correct the row, or quote cells that hold {delimiter!r}"
                    )
                yield row

    @contextlib.contextmanager
    def _reading(self, line: int) -> Iterator[None]:
        place = f"{self.name}:{line}"
        with unpacking(place, self._packing):
            try:
                yield
            except UnicodeDecodeError as error:
                raise InputError(f"{self.name} is not UTF-8 ({error.reason}); convert the file") from error
            except csv.Error as error:
                raise InputError(f"{place}: broken CSV, {error}; correct the row") from error


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> Any:
    import pyarrow as pa

    columns = [pa.array([row[at] for row in rows], pa.string()) for at in kept]
    if not columns:  # the number of rows counts all the same
        return pa.table({"": pa.nulls(len(rows))}).select([])
    return pa.Table.from_arrays(columns, [header[at] for at in kept])

"""Tables of rows: Parquet files, Arrow files (also those of saved Hugging Face datasets), and datasets by
name."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from finescope import hub
from finescope.corpus.arrowtypes import decoded, names_null
from finescope.corpus.dotted import holders, leaves
from finescope.corpus.files import File
from finescope.corpus.int96 import unit_for
from finescope.corpus.jsonvalues import json_values, table_records
from finescope.corpus.lines import Mark
from finescope.corpus.recast import recast
from finescope.corpus.source import BLOCK_ROWS, Look, Record, Visit, record_as_line, too_few
from finescope.errors import InputError


class TableSource:
    """Rows that lie in Arrow's columns. A subclass says how blocks of them are read."""

    full_rows = True
    suffix = ".parquet"
    name: str
    stem: str
    constants: Record
    files: Sequence[File] = ()

    def schema(self) -> Any:
        """Return the pyarrow schema, with the columns that folders give."""
        raise NotImplementedError

    def count(self) -> int | None:
        """Return the number of rows; None if all of them would have to be read."""
        raise NotImplementedError

    def length(self) -> int:
        count = self.count()
        return sum(block.num_rows for block in self.blocks(())) if count is None else count

    def fingerprint(self) -> dict[str, Any]:
        raise NotImplementedError

    def blocks(self, columns: Sequence[str] | None) -> Iterator[Any]:
        """Yield all rows in order as pyarrow tables of any size; ``columns`` may be dotted, None means
        all."""
        raise NotImplementedError

    def some(
        self, numbers: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        """Yield (row numbers, their rows) for rows in ascending order; ``columns`` as for ``blocks``."""
        return _picked(self.blocks(columns), numbers, 0, self.name)

    def records(
        self, columns: Sequence[str] | None, also: Sequence[str] = (), visit: Visit | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        wanted = None if columns is None else list(dict.fromkeys([*columns, *also]))
        number = 0
        for block in self.blocks(wanted):
            for start in range(0, block.num_rows, BLOCK_ROWS):
                part = block.slice(start, BLOCK_ROWS)
                if visit is not None:
                    visit(part)
                if also:
                    part = _selected(part, columns)
                yield from self._numbered(part, range(number, number + part.num_rows))
                number += part.num_rows

    def records_from(
        self, number: int, columns: Sequence[str] | None, mark: Mark | None = None
    ) -> Iterator[tuple[int, str, Record]]:
        return self.picked(range(number, self.length()), columns)

    def mark(self, number: int) -> None:
        return None  # rows are found by the sizes of their groups

    def picked(
        self, numbers: Sequence[int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, str, Record]]:
        for found, table in self.some(numbers, columns):
            yield from self._numbered(table, found)

    def _numbered(self, part: Any, numbers: Sequence[int]) -> Iterator[tuple[int, str, Record]]:
        for number, record in zip(numbers, self._records(part, numbers), strict=True):
            yield number, f"{self.name}:row {number}", record

    def _records(self, part: Any, numbers: Sequence[int]) -> Iterator[Record]:
        values = [self._values(name, part.column(name), numbers) for name in part.column_names]
        for row in zip(*values, strict=True) if values else itertools.repeat((), part.num_rows):
            yield {**self.constants, **dict(zip(part.column_names, row, strict=True))}

    def _values(self, name: str, column: Any, numbers: Sequence[int]) -> list[Any]:
        import pyarrow as pa

        try:
            return list(column.to_pylist())
        except UnicodeDecodeError as error:
            broken = next(offset for offset, value in enumerate(column) if _not_utf8(value))
            raise InputError(
                f"{self.name}:row {numbers[broken]}: column {name!r} holds text that isn't UTF-8 "
                f"({error.reason}); write the file again with valid text"
            ) from error
        except (ValueError, OverflowError, pa.ArrowException):
            return json_values(column)  # dates and times that Python has no objects for

    def lines(self, numbers: Sequence[int], look: Look | None = None) -> Iterator[tuple[int, str]]:
        for found, table in self._seen(numbers, look):
            yield from zip(found, map(record_as_line, table_records(self._whole(table))), strict=True)

    def tables(
        self, numbers: Sequence[int], schema: Any, look: Look | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        for found, table in self._seen(numbers, look):
            yield found, fitted(self._whole(table), schema, f"{self.name}:row {found[0]}")

    def _seen(self, numbers: Sequence[int], look: Look | None) -> Iterator[tuple[Sequence[int], Any]]:
        for found, table in self.some(numbers):
            if look is not None:
                for row in self._numbered(_selected(table, look.columns), found):
                    look.see(*row)
            yield found, table

    def _whole(self, table: Any) -> Any:
        import pyarrow as pa

        for name, value in self.constants.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * table.num_rows, _type_of(value)))
        return table

    def _with_constants(self, schema: Any) -> Any:
        import pyarrow as pa

        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.name}: two columns are called {twice!r}; rename one and write it again")
        for name, value in self.constants.items():
            if name not in schema.names:
                schema = schema.append(pa.field(name, _type_of(value)))
        return schema


def _type_of(constant: str | int | None) -> Any:
    """Return the Arrow type of a value that folders give, which goes together with that of the others."""
    import pyarrow as pa

    return pa.null() if constant is None else pa.int64() if isinstance(constant, int) else pa.string()


def _picked(
    blocks: Iterator[Any], numbers: Sequence[int], start: int, name: str
) -> Iterator[tuple[Sequence[int], Any]]:
    """Yield (row numbers, their rows) out of tables that follow each other from row ``start`` on."""
    at = 0
    for block in blocks:
        end = bisect.bisect_left(numbers, start + block.num_rows, at)
        if end > at:
            yield numbers[at:end], taken(block, [number - start for number in numbers[at:end]])
        start, at = start + block.num_rows, end
        if at == len(numbers):
            return
    if at < len(numbers):
        raise too_few(numbers[at], start, name)


def _selected(table: Any, columns: Sequence[str] | None) -> Any:
    """Return a table without the columns that aren't asked for; see ``Source.records``."""
    if columns is None:
        return table
    asked = holders(columns)
    return table.select([name for name in table.column_names if name in asked])


def _not_utf8(scalar: Any) -> bool:
    try:
        scalar.as_py()
    except UnicodeDecodeError:
        return True
    except (ValueError, OverflowError):
        return False
    return False


def taken(table: Any, numbers: Sequence[int]) -> Any:
    """Return some rows of a table, copied, so that the others' memory is free."""
    import pyarrow as pa

    try:
        return table.take(pa.array(numbers, pa.int64()))
    except pa.ArrowNotImplementedError:  # views and run-end encoding have no kernel for it
        return pa.concat_tables([table.slice(number, 1) for number in numbers]).combine_chunks()


def fitted(table: Any, schema: Any, place: str) -> Any:
    """Return a table with the columns and types of a schema; null where it lacks a column.

    Raises:
        InputError: a value that doesn't fit; names the column.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        try:
            if any(map(names_null, column.chunks)):
                column = column.cast(decoded(column.type))
            columns.append(column if column.type == field.type else recast(column, field.type))
        except (pa.ArrowException, ValueError) as error:
            raise InputError(
                f"{place}: column {field.name!r} can't be brought from {column.type} to {field.type}, as "
                f"other files have it ({error}); convert the file, or write .jsonl (--format jsonl)"
            ) from error
    return pa.table(columns, schema=schema)


class ParquetSource(TableSource):
    """A Parquet file, read row group by row group."""

    def __init__(self, file: File) -> None:
        self._file, self.files = file, (file,)
        self.constants = file.constants
        self.name = file.label
        self.stem = file.name[: -len(".parquet")]

    @cached_property
    def _unit(self) -> str | None:
        return unit_for(self._opened, self.name)

    def _open(self) -> Any:
        return self._opened(self._unit)

    def _opened(self, unit: str | None) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._file.path
        try:
            with self._file.reading():
                return pq.ParquetFile(path, filesystem=self._file.system, coerce_int96_timestamp_unit=unit)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is no Parquet file, or is truncated: {error}") from error

    def count(self) -> int:
        with self._open() as file:
            return int(file.metadata.num_rows)

    def schema(self) -> Any:
        with self._open() as file:
            return self._with_constants(file.schema_arrow)

    def fingerprint(self) -> dict[str, Any]:
        return self._file.fingerprint()

    def blocks(self, columns: Sequence[str] | None) -> Iterator[Any]:
        with self._open() as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                yield from self._group(file, group, columns, first)
                first += file.metadata.row_group(group).num_rows

    def some(
        self, numbers: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        with self._open() as file:
            first = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                low, high = (bisect.bisect_left(numbers, end) for end in (first, first + rows))
                if high > low:
                    blocks = self._group(file, group, columns, first)
                    yield from _picked(blocks, numbers[low:high], first, self.name)
                first += rows

    def _group(self, file: Any, group: int, columns: Sequence[str] | None, first: int) -> Iterator[Any]:
        """Yield a row group in tables; ``first`` is the number of its first row.

        Each for itself: pyarrow has no batches across row groups of dictionaries inside structs and lists.
        """
        import pyarrow as pa

        wanted = None if columns is None else leaves(file.schema_arrow, columns)
        batches = file.iter_batches(batch_size=BLOCK_ROWS, row_groups=[group], columns=wanted)
        while True:
            try:
                with self._file.reading():
                    batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{self.name}:row {first}: can't be read ({error}); the file is corrupt"
                ) from error
            if batch is None:
                return
            yield pa.Table.from_batches([batch])
            first += batch.num_rows


class ArrowSource(TableSource):
    """Arrow files, in the stream or the file format, one after the other: a saved dataset has several."""

    def __init__(self, files: Sequence[File], name: str | None = None) -> None:
        self._files = self.files = list(files)
        self.constants = files[0].constants
        self.name = files[0].label if name is None else name
        self.stem = os.path.splitext(files[0].name)[0] if name is None else name

    def _open(self, file: File) -> Any:
        import pyarrow as pa

        source = pa.memory_map(file.path) if file.system is None else file.open()
        try:
            return pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_file(source)

    def _batches(self, file: File) -> Iterator[Any]:
        import pyarrow as pa

        try:
            with file.reading():
                reader = self._open(file)
                if hasattr(reader, "num_record_batches"):
                    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
                else:
                    yield from reader
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file.path} is no Arrow file, or is truncated: {error}") from error

    def schema(self) -> Any:
        import pyarrow as pa

        try:
            return self._with_constants(self._open(self._files[0]).schema)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._files[0].path} is no Arrow file, or is truncated: {error}") from error

    def count(self) -> int:
        return sum(batch.num_rows for file in self._files for batch in self._batches(file))

    def fingerprint(self) -> dict[str, Any]:
        if len(self._files) == 1:
            return {**self._files[0].fingerprint(), "name": self.stem}
        return {"name": self.stem, "files": [file.fingerprint() for file in self._files]}

    def blocks(self, columns: Sequence[str] | None) -> Iterator[Any]:
        import pyarrow as pa

        for file in self._files:
            for batch in self._batches(file):
                yield _selected(pa.Table.from_batches([batch]), columns)


@contextlib.contextmanager
def _cache_only(config: Any) -> Iterator[None]:
    """Have datasets look into its cache at once, instead of retrying; others in this process ask the hub."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


class DatasetSource(TableSource):
    """A Hugging Face dataset by name, from the hub or its local cache."""

    def __init__(self, name: str, *, split: str | None) -> None:
        parts = name.split(":")
        if len(parts) > 3 or not parts[0]:
            raise InputError(f"hf:{name}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
        self.constants = {}
        self._config = parts[1] if len(parts) == 3 else None
        self._split = parts[-1] if len(parts) > 1 else split
        self._path = parts[0]
        self.name = f"hf:{name}"
        self.stem = os.path.basename(os.path.normpath(parts[0]))
        self._loaded: Any = None

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load().with_format("arrow")
        return self._loaded

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"{self.name} is a Hugging Face dataset, which needs a package that isn't installed: "
                "pip install 'finescope[datasets]'"
            ) from error
        try:
            with _cache_only(datasets.config) if not hub.reachable() else contextlib.nullcontext():
                found = datasets.load_dataset(self._path, self._config, split=self._split)
        except Exception as error:  # every loader raises its own kinds
            where = "" if hub.reachable() else " (the hub can't be reached; only its cache was searched)"
            raise InputError(f"{self.name} can't be loaded{where}: {error}") from error
        if isinstance(found, dict):
            if len(found) > 1:
                raise InputError(f"{self.name} has several splits; name one of {', '.join(found)}")
            found = next(iter(found.values()))
        return found

    def schema(self) -> Any:
        return self._dataset().features.arrow_schema

    def count(self) -> int:
        return len(self._dataset())

    def fingerprint(self) -> dict[str, Any]:
        dataset = self._dataset()
        return {
            "name": self.stem,
            "rows": len(dataset),
            "fingerprint": dataset._fingerprint,
            "split": self._split,
        }

    def blocks(self, columns: Sequence[str] | None) -> Iterator[Any]:
        dataset = self._with(columns)
        for start in range(0, len(dataset), BLOCK_ROWS):
            yield dataset[start : start + BLOCK_ROWS]

    def some(
        self, numbers: Sequence[int], columns: Sequence[str] | None = None
    ) -> Iterator[tuple[Sequence[int], Any]]:
        dataset = self._with(columns)
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[start : start + BLOCK_ROWS]
            yield block, dataset[list(block)]

    def _with(self, columns: Sequence[str] | None) -> Any:
        dataset = self._dataset()
        if columns is None:
            return dataset
        asked = holders(columns)
        return dataset.select_columns([name for name in dataset.column_names if name in asked])

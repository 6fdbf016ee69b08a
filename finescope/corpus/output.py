"""Selected rows on their way out: as Arrow rows into Parquet, as their own text into JSON lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from finescope.corpus.arrowtypes import always_fits, promoted, storable, unified, without_json_form, zones
from finescope.corpus.jsontext import with_members
from finescope.corpus.metadata import for_output, note_of_datasets
from finescope.corpus.source import (
    BLOCK_ROWS,
    Look,
    Record,
    Source,
    Visit,
    by_source,
    records_as_table,
    refuse_changed,
)
from finescope.corpus.tables import fitted, taken
from finescope.errors import InputError

FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
"""What selected rows can be written as."""
OUTPUTS = tuple(f".{name}" for name in FORMATS)
"""Endings of their files."""


Check = Callable[[int, int], Look]
"""Returns what looks at the rows of a source, to tell whether they are those that were chosen.

Takes its position and the number of its first row among all.
"""
Tables = tuple[list[Any], dict[int, tuple[int, int]]]
"""Rows as pyarrow tables, and by a row's number its table and its place there."""


class Output:
    """How the rows of some sources are written in one format.

    Attributes:
        schema: for Parquet, the pyarrow schema of all sources together; None for JSON lines, and until
            ``settle`` where a source is JSON.
    """

    def __init__(self, sources: Sequence[Source], suffix: str) -> None:
        """Look at all schemas.

        Raises:
            InputError: an unknown ending, columns that don't go together, or a type that the format can't
                hold.
        """
        if suffix not in OUTPUTS:
            raise InputError(f"rows can't be written as {suffix!r}; choose one of {', '.join(OUTPUTS)}")
        self._sources = sources
        self._schemas = [source.schema() for source in sources]
        self.tabular = suffix == ".parquet"
        self.schema: Any = None
        self._guesses: dict[int, _Guess] = {}
        if suffix.endswith(".zst"):
            import_zstandard()
        if not self.tabular:
            self._refuse_bytes()
        elif all(schema is not None for schema in self._schemas):
            self.schema = storable(self._unified(self._schemas))
        else:
            self._guesses = {
                at: _Guess(sources[at].name) for at, schema in enumerate(self._schemas) if schema is None
            }

    def _unified(self, schemas: Sequence[Any]) -> Any:
        different: dict[Any, str] = {}
        for source, schema in zip(self._sources, schemas, strict=True):
            if schema is not None:
                different.setdefault((schema, note_of_datasets(schema)), source.name)
        return unified([(name, schema) for (schema, _), name in different.items()])

    @property
    def moved(self) -> dict[str, list[str]]:
        """The columns whose times are in several zones, with those: they are written in UTC."""
        if self.schema is None:
            return {}
        found: dict[str, set[str]] = {field.name: set() for field in self.schema}
        for schema in self._schemas:
            for field in schema if schema is not None else ():
                found[field.name] |= zones(field.type)
        return {
            field.name: sorted(found[field.name])
            for field in self.schema
            if len(found[field.name]) > 1 and found[field.name] != zones(field.type)
        }

    def _refuse_bytes(self) -> None:
        for source, schema in zip(self._sources, self._schemas, strict=True):
            for field in schema if schema is not None else ():
                part = without_json_form(field.type)
                if part is not None:
                    raise InputError(
                        f"{source.name}: column {field.name!r} holds {part}, for which JSON has no form; "
                        "write Parquet (--format parquet)"
                    )

    # ------------------------------------------------------------------ the first pass

    def trial(self, position: int) -> tuple[list[str], Visit] | None:
        """Return what of a source is tried while it is read: more columns, and what looks at its blocks."""
        if position in self._guesses:
            guess = self._guesses[position] = _Guess(self._sources[position].name)
            return [], guess.see
        schema, name = self._schemas[position], self._sources[position].name
        if schema is None:
            return None
        if not self.tabular:
            return list(schema.names), partial(_valid_text, name)
        if self.schema is None:
            return None  # tried in ``settle``, when the schema is known
        doubtful = [
            field.name for field in schema if not always_fits(field.type, self.schema.field(field.name).type)
        ]
        if not doubtful:
            return None
        return doubtful, partial(_try_fit, name, doubtful, self.schema)

    def settle(self) -> None:
        """Decide the schema where rows themselves had to say it, and try every value that may not fit.

        Raises:
            InputError: columns whose types don't go together, or a value that doesn't fit; names them.
        """
        if not self.tabular or self.schema is not None:
            return
        for at, guess in self._guesses.items():
            if guess.schema is None:
                for _ in self._sources[at].records(None, (), guess.see):
                    pass
        schemas = [schema or self._guesses[at].schema for at, schema in enumerate(self._schemas)]
        found = storable(self._unified(schemas))
        self.schema = found
        for at, source in enumerate(self._sources):
            if at in self._guesses and all(
                always_fits(kind, found.field(name).type) for name, kind in self._guesses[at].kinds
            ):
                continue
            trial = self.trial(at) if at not in self._guesses else ([], _Fits(source.name, found).see)
            if trial is not None:
                for _ in source.records(None if at in self._guesses else trial[0], (), trial[1]):
                    pass

    # ------------------------------------------------------------------ the rows

    def read_tables(self, rows: Sequence[int], check: Check | None = None) -> Tables:
        """Read rows as pyarrow tables.

        Args:
            rows: row numbers, each once.
            check: looks at every row.
        """
        self.settle()
        parts: list[Any] = []
        where: dict[int, tuple[int, int]] = {}
        for position, start, numbers in by_source(self._sources, rows):
            look = None if check is None else check(position, start)
            for found, table in self._sources[position].tables(numbers, self.schema, look):
                where.update((start + number, (len(parts), at)) for at, number in enumerate(found))
                parts.append(table)
        return parts, where

    def table_blocks(self, held: Tables, rows: Sequence[int], extra: Any) -> Iterator[Any]:
        """Yield pyarrow tables of rows, in the order given, with more columns appended.

        Args:
            held: what ``read_tables`` returned of these rows, or of more.
            rows: R row numbers.
            extra: pyarrow table of R rows, or None; its columns take the place of those of the same names.
        """
        import pyarrow as pa

        parts, where = held
        schema = self.output_schema(extra)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            base = pa.concat_tables(_gathered(parts, [where[row] for row in block]))
            columns = dict(zip(base.column_names, base.columns, strict=True))
            if extra is not None:
                more = extra.slice(start, BLOCK_ROWS)
                columns.update(zip(more.column_names, more.columns, strict=True))
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    def read_lines(self, rows: Sequence[int], check: Check | None = None) -> dict[int, str]:
        """Read rows as JSON on one line each, by number; see ``read_tables``."""
        texts: dict[int, str] = {}
        for position, start, numbers in by_source(self._sources, rows):
            look = None if check is None else check(position, start)
            for number, text in self._sources[position].lines(numbers, look):
                texts[start + number] = text
        return texts

    def lines(self, held: Mapping[int, str], rows: Sequence[int], extra: Any) -> Iterator[str]:
        """Yield rows as JSON, in the order given, with more members appended; see ``table_blocks``."""
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            more = [None] * len(block) if extra is None else extra.slice(start, BLOCK_ROWS).to_pylist()
            for row, members in zip(block, more, strict=True):
                yield held[row] if members is None else with_members(held[row], members)

    def output_schema(self, extra: Any) -> Any:
        """Return the schema of the tables that ``table_blocks`` yields."""
        import pyarrow as pa

        self.settle()
        return for_output(self.schema, pa.schema([]) if extra is None else extra.schema)


def import_zstandard() -> Any:
    """Return the package that zstd needs.

    Raises:
        InputError: it isn't installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            "writing .zst needs a package that isn't installed: pip install zstandard"
        ) from error
    return zstandard


def _gathered(parts: Sequence[Any], places: Sequence[tuple[int, int]]) -> list[Any]:
    """Return rows at (part, row) as tables, in that order: runs of one part are taken at once."""
    found = []
    for part, run in itertools.groupby(places, key=lambda place: place[0]):
        found.append(taken(parts[part], [row for _, row in run]))
    return found


def _valid_text(name: str, table: Any) -> None:
    import pyarrow as pa

    for column in table.column_names:
        try:
            table.column(column).validate(full=True)
        except pa.ArrowInvalid as error:
            raise InputError(f"{name}: column {column!r} can't be written as JSON ({error})") from error


def _try_fit(name: str, columns: Sequence[str], schema: Any, table: Any) -> None:
    import pyarrow as pa

    fitted(table.select(columns), pa.schema([schema.field(column) for column in columns]), name)


class _Guess:
    """The Arrow types of JSON rows, gathered block by block."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._types: dict[str, Any] = {}
        self._seen: dict[str, list[Any]] = {}

    @property
    def schema(self) -> Any:
        """The schema so far; None before the first row."""
        import pyarrow as pa

        return pa.schema(list(self._types.items())) if self._types else None

    @property
    def kinds(self) -> list[tuple[str, Any]]:
        """All (column, type) that blocks had."""
        return [(name, kind) for name, kinds in self._seen.items() for kind in kinds]

    def see(self, records: Sequence[Record]) -> None:
        """Take note of a block of rows."""
        import pyarrow as pa

        for name in dict.fromkeys(name for record in records for name in record):
            try:
                values = [record.get(name) for record in records]
                column = pa.array(values)
                kind = column.type
            except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
                raise InputError(
                    f"{self._name}: column {name!r} can't be written as Parquet ({error}); columns with "
                    "mixed types need .jsonl (--format jsonl)"
                ) from error
            refuse_changed(values, column, name, self._name)
            known = self._types.get(name, kind)
            together = promoted(known, kind)
            if together is None:
                raise InputError(
                    f"{self._name}: column {name!r} can't be written as Parquet: it holds {known} and "
                    f"{kind}; columns with mixed types need .jsonl (--format jsonl)"
                )
            self._types[name] = together
            kinds = self._seen.setdefault(name, [])
            if kind not in kinds:
                kinds.append(kind)


class _Fits:
    """Tries JSON rows against the schema that all files have together."""

    def __init__(self, name: str, schema: Any) -> None:
        self._name, self._schema = name, schema

    def see(self, records: Sequence[Record]) -> None:
        """Try a block of rows.

        Raises:
            InputError: a value that doesn't fit.
        """
        records_as_table(records, self._schema, self._name)

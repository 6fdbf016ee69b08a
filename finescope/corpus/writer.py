"""Writing rows, atomically: records of one's own, or rows of a corpus as they came."""

from __future__ import annotations

import contextlib
import gzip
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from finescope.corpus.jsonfiles import JSON_ENDINGS
from finescope.corpus.known import KnownRows
from finescope.corpus.output import OUTPUTS, Output, import_zstandard
from finescope.corpus.reader import Corpus
from finescope.corpus.source import record_as_line, records_as_table
from finescope.errors import InputError
from finescope.storage.files import PathLike, atomic_path

_GROUP_ROWS = 10_000
_TOGETHER = 1 << 17
"""Rows of several files that are read in one pass, and held, unless one file has more."""


def copy_rows(
    path: PathLike,
    corpus: Corpus,
    rows: Sequence[int],
    *,
    columns: Mapping[str, Any] | None = None,
    known: KnownRows | None = None,
) -> int:
    """Write some rows of a corpus to one file, as they came, in the order given; return how many.

    Into Parquet they are copied as Arrow rows, in the types that the files have together; into JSON lines as
    the text that they had there, byte for byte. Only these rows are held in memory.

    Args:
        path: a path or an ``fsspec`` URL; its ending says the format: .jsonl, .ndjson or .json (one object a
            line; also .gz or .zst) or .parquet.
        corpus: where the rows are.
        rows: R row numbers, from 0.
        columns: more columns, R values each (lists or pyarrow arrays); they take the place of columns of the
            same names.
        known: what all rows of the corpus must be.

    Raises:
        InputError: an unknown ending, or rows that the format can't hold.
        StoreError: a row isn't the ``known`` one, or the disk is full; ``path`` keeps what it held before.
    """
    copy_each({path: (rows, columns)}, corpus, known=known)
    return len(rows)


def copy_each(
    files: Mapping[PathLike, tuple[Sequence[int], Mapping[str, Any] | None]],
    corpus: Corpus,
    *,
    known: KnownRows | None = None,
) -> None:
    """Write some rows of a corpus to each of several files of one format, as ``copy_rows``, in few passes.

    Args:
        files: by path, the rows and more columns.
        corpus: where the rows are.
        known: what all rows of the corpus must be.

    Raises:
        InputError, StoreError: as ``copy_rows``.
    """
    import pyarrow as pa

    check = None if known is None else corpus.looking(known.refuse_changed)
    output = corpus.output(output_suffix(next(iter(files))))
    groups: list[set[int]] = []
    group_of = {}
    for path, (rows, _) in files.items():
        if not groups or len(groups[-1]) + len(rows) > _TOGETHER:
            groups.append(set())
        groups[-1].update(map(int, rows))
        group_of[path] = len(groups) - 1
    read: Any = output.read_tables if output.tabular else output.read_lines
    at, held = -1, None
    for path, (rows, columns) in files.items():
        if group_of[path] != at:
            held, at = None, group_of[path]
            held = read(sorted(groups[at]), check)
        extra = pa.table(dict(columns)) if columns else None
        if extra is not None and extra.num_rows != len(rows):
            raise ValueError(f"{len(rows)} rows, but columns of {extra.num_rows} values")
        with atomic_path(path) as temporary:
            _write_copy(temporary, Path(path).name, output, held, [int(row) for row in rows], extra)


def _write_copy(path: Path, name: str, output: Output, held: Any, rows: Sequence[int], extra: Any) -> None:
    if output.tabular:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(path, output.output_schema(extra)) as writer:
            for table in output.table_blocks(held, rows, extra):
                writer.write_table(table)
        return
    with packed(path, name) as file:
        for line in output.lines(held, rows, extra):
            file.write(line.encode("utf-8", "surrogatepass") + b"\n")


def output_suffix(path: PathLike) -> str:
    """Return the ending, one of ``OUTPUTS``, of the format that a file name asks for.

    Raises:
        InputError: an unknown ending.
    """
    lower = Path(path).name.lower()
    if lower.endswith(".parquet"):
        return ".parquet"
    packing = Path(lower).suffix
    if not lower.endswith(JSON_ENDINGS) or packing in (".bz2", ".xz"):
        raise InputError(
            f"{path}: can't write this format; end the name in .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    return f".jsonl{packing}" if f".jsonl{packing}" in OUTPUTS else ".jsonl"


def write_rows(path: PathLike, rows: Iterable[Mapping[str, Any]], schema_like: Corpus | None = None) -> int:
    """Write records to one file whose ending says the format; return how many.

    Args:
        path: a path or an ``fsspec`` URL that ends in .jsonl, .ndjson or .json (one object a line; also .gz
            or .zst) or in .parquet.
        rows: records; columns beyond those of ``schema_like`` are appended, with types taken from the first
            10 000 rows.
        schema_like: the corpus the rows came from: its Parquet column types are kept.

    Raises:
        InputError: an unknown ending, or a value that the format can't hold.
        StoreError: the disk is full. ``path`` then keeps what it held before.
    """
    name = Path(path).name
    records = (dict(row) for row in rows)
    if output_suffix(path) == ".parquet":
        return _write_parquet(path, records, schema_like.arrow_schema() if schema_like else None)
    count = 0
    with atomic_path(path) as temporary, packed(temporary, name) as file:
        for record in records:
            file.write(record_as_line(record).encode("utf-8", "surrogatepass") + b"\n")
            count += 1
    return count


@contextlib.contextmanager
def packed(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file for writing bytes, packed as the ending of ``name`` says."""
    if name.lower().endswith(".zst"):
        with import_zstandard().open(path, "wb") as stream:
            yield stream
        return
    with open(path, "wb") as file:
        if not name.lower().endswith(".gz"):
            yield file
            return
        # No name and no time in the header: the same rows give the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
            yield stream  # type: ignore[misc]


def _write_parquet(path: PathLike, records: Iterator[dict[str, Any]], schema: Any) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    group = list(itertools.islice(records, _GROUP_ROWS))
    with atomic_path(path) as temporary:
        try:
            schema = _schema(group, schema)
            with pq.ParquetWriter(temporary, schema) as writer:
                while group:
                    _check_columns(group, schema.names, count)
                    writer.write_table(records_as_table(group, schema, Path(path).name))
                    count += len(group)
                    group = list(itertools.islice(records, _GROUP_ROWS))
        except pa.ArrowException as error:
            raise InputError(
                f"rows can't be written as Parquet ({error}); columns with mixed types need .jsonl"
            ) from error
    return count


def _schema(group: list[dict[str, Any]], base: Any) -> Any:
    import pyarrow as pa

    schema = base if base is not None else pa.schema([])
    # An insertion-ordered set: columns appear as the rows bring them.
    for name in dict.fromkeys(name for record in group for name in record):
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.array([record.get(name) for record in group]).type))
    return schema


def _check_columns(group: list[dict[str, Any]], names: list[str], start: int) -> None:
    known = set(names)
    for number, record in enumerate(group, start=start):
        extra = record.keys() - known
        if extra:
            raise InputError(
                f"row {number} brings the new column {sorted(extra)[0]!r}, which the first {_GROUP_ROWS} "
                "rows lack; Parquet needs all columns from the start, .jsonl doesn't"
            )

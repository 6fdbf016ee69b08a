"""Writing rows in the format they came in, atomically."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from finescope.corpus.formats import JSONL_ENDINGS, Record
from finescope.corpus.reader import Corpus
from finescope.errors import InputError
from finescope.storage.files import PathLike, atomic_path

_GROUP_ROWS = 10_000


def write_rows(path: PathLike, rows: Iterable[Mapping[str, Any]], schema_like: Corpus | None = None) -> int:
    """Write records to one file whose ending says the format; return how many.

    Args:
        path: ends in .jsonl, .ndjson or .json (one object a line; also .gz or .zst) or in .parquet.
        rows: records; columns beyond those of ``schema_like`` are appended, with types taken from the first
            10 000 rows.
        schema_like: the corpus the rows came from: its Parquet column types are kept.

    Raises:
        InputError: an unknown ending, or a value that the format can't hold.
        StoreError: the disk is full. ``path`` then keeps what it held before.
    """
    path = Path(path)
    records = (dict(row) for row in rows)
    lower = path.name.lower()
    if lower.endswith(".parquet"):
        return _write_parquet(path, records, schema_like.arrow_schema() if schema_like else None)
    if not lower.endswith(JSONL_ENDINGS):
        raise InputError(
            f"{path}: can't write this format; end the name in .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    count = 0
    with atomic_path(path) as temporary, _packed(temporary, lower) as file:
        for line in _as_lines(records):
            file.write(line)
            count += 1
    return count


@contextlib.contextmanager
def _packed(path: Path, ending: str) -> Iterator[IO[bytes]]:
    if ending.endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise InputError(
                "writing .zst needs a package that isn't installed: pip install zstandard"
            ) from error
        with zstandard.open(path, "wb") as stream:
            yield stream
        return
    with open(path, "wb") as file:
        if not ending.endswith(".gz"):
            yield file
            return
        # No name and no time in the header: the same rows give the same bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]


def _write_parquet(path: Path, records: Iterator[dict[str, Any]], schema: Any) -> int:
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
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                    count += len(group)
                    group = list(itertools.islice(records, _GROUP_ROWS))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
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


def _as_lines(records: Iterable[Record]) -> Iterator[bytes]:
    for record in records:
        try:
            yield (
                json.dumps(record, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
                + b"\n"
            )
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

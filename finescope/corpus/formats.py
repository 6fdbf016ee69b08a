"""The formats a corpus is read from: each yields (row number, place, record) and streams."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from finescope import hub
from finescope.errors import InputError
from finescope.storage.identity import sha256_file, sha256_json

_LINES = (".jsonl", ".ndjson", ".json")
JSONL_ENDINGS = tuple(ending + packed for ending in _LINES for packed in ("", ".gz", ".zst"))

_TABLE_ROWS = 1024

Record = dict[str, Any]


class Source(Protocol):
    """Rows of one file or dataset, in order, re-iterable."""

    name: str
    """For messages."""
    stem: str
    """Prefix of generated ids."""
    suffix: str
    """Ending of an output file in the same format."""

    def columns(self) -> list[str] | None:
        """Return the columns if a schema says them, else None (JSONL: the first row says)."""

    def count(self) -> int | None:
        """Return the number of rows if it is known without reading."""

    def schema(self) -> Any:
        """Return the pyarrow schema, or None."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these contents from others."""

    def records(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str, Record]]:
        """Yield (row number from 0, place, record); only ``columns`` where that saves reading."""


class JsonlSource:
    """One JSON object a line, plain, gzip or zstd. Blank lines are skipped; a byte-order mark is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name
        ending = next(ending for ending in reversed(JSONL_ENDINGS) if path.name.lower().endswith(ending))
        self.stem = path.name[: -len(ending)]
        packed = Path(ending).suffix
        self.suffix = ".jsonl" + (packed if packed in (".gz", ".zst") else "")

    def columns(self) -> None:
        return None

    def count(self) -> None:
        return None

    def schema(self) -> None:
        return None

    def fingerprint(self) -> dict[str, Any]:
        return _file_fingerprint(self._path)

    def records(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str, Record]]:
        number = line_number = 0
        with contextlib.closing(self._open()) as file:
            lines = iter(file)
            while True:
                try:
                    line = next(lines, None)
                except (EOFError, OSError, zlib.error) as error:
                    raise InputError(
                        f"{self.name}:{line_number + 1}: can't be unpacked ({error}); "
                        "the file is truncated or corrupt"
                    ) from error
                if line is None:
                    return
                line_number += 1
                if line_number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                place = f"{self.name}:{line_number}"
                yield number, place, _parse_line(line, place)
                number += 1

    def _open(self) -> IO[bytes]:
        lower = self.name.lower()
        if lower.endswith(".gz"):
            return gzip.open(self._path, "rb")  # type: ignore[return-value]
        if lower.endswith(".zst"):
            return _open_zstd(self._path)
        return open(self._path, "rb")


class _ZstdReader(io.RawIOBase):
    """Raw stream over zstd's decompressor that reports its errors, and a missing end, as ``OSError``."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(1 << 20)
            if not block:
                if self._frame is not None:
                    raise OSError("the last zstd frame has no end")
                return 0
            self._ready = self._unpack(block)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _unpack(self, block: bytes) -> bytes:
        parts = []
        while block:  # more than one frame may end inside one block
            self._frame = self._frame or self._new()
            try:
                parts.append(self._frame.decompress(block))
            except self._error as error:
                raise OSError(str(error)) from error
            block = b""
            if self._frame.eof:
                block, self._frame = self._frame.unused_data, None
        return b"".join(parts)


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"{path.name} is zstd-compressed, which needs a package that isn't installed: "
            "pip install zstandard"
        ) from error
    return io.BufferedReader(_ZstdReader(path, zstandard), 1 << 20)


def _parse_line(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 (byte {error.start + 1} of the line); convert the file"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        shown = line.decode("utf-8", "replace").strip()
        what = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else "nested too deep"
        )
        remedy = (
            "the file must hold one JSON object a line"
            if shown[:1] in "[{" and len(shown) < 3
            else "correct it"
        )
        raise InputError(
            f"{place}: broken JSON, {what}: {shown[:60]}{'…' if len(shown) > 60 else ''}; "
            f"{remedy} or remove the line"
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{place}: holds a JSON {type(record).__name__}; "
            'every line must be one object such as {"text": "…"}'
        )
    return record


class ParquetSource:
    """A Parquet file, read row group by row group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name
        self.stem = path.name[: -len(".parquet")]
        self.suffix = ".parquet"

    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self._path} is no Parquet file, or is truncated: {error}") from error

    def columns(self) -> list[str]:
        return list(self.schema().names)

    def count(self) -> int:
        with self._file() as file:
            return int(file.metadata.num_rows)

    def schema(self) -> Any:
        with self._file() as file:
            return file.schema_arrow

    def fingerprint(self) -> dict[str, Any]:
        return _file_fingerprint(self._path)

    def records(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str, Record]]:
        import pyarrow as pa

        number = 0
        with self._file() as file:
            batches = file.iter_batches(batch_size=_TABLE_ROWS, columns=list(columns) if columns else None)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise InputError(
                        f"{self.name}:row {number}: can't be read ({error}); the file is corrupt"
                    ) from error
                if batch is None:
                    return
                for record in batch.to_pylist():
                    yield number, f"{self.name}:row {number}", record
                    number += 1


class MemorySource:
    """Records that are already there."""

    def __init__(self, records: Sequence[Record], name: str = "rows") -> None:
        self._records = records
        self.name = self.stem = name
        self.suffix = ".jsonl"

    def columns(self) -> None:
        return None

    def count(self) -> int:
        return len(self._records)

    def schema(self) -> None:
        return None

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "rows": len(self._records), "sha256": sha256_json(list(self._records))}

    def records(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str, Record]]:
        for number, record in enumerate(self._records):
            yield number, f"{self.name}:{number}", record


class DatasetSource:
    """A Hugging Face dataset: saved by ``save_to_disk``, or by name from the hub or its local cache."""

    def __init__(self, name: str, *, split: str | None, local: bool) -> None:
        parts = [name] if local else name.split(":")
        if len(parts) > 3 or not parts[0]:
            raise InputError(f"hf:{name}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
        self._config = parts[1] if len(parts) == 3 else None
        self._split = parts[-1] if len(parts) > 1 else split
        self._path, self._local = parts[0], local
        self.name = os.path.basename(os.path.normpath(name)) if local else f"hf:{name}"
        self.stem = os.path.basename(os.path.normpath(parts[0]))
        self.suffix = ".parquet"
        self._loaded: Any = None

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
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
            if self._local:
                found = datasets.load_from_disk(self._path)
            else:
                if not hub.reachable():
                    datasets.config.HF_HUB_OFFLINE = True  # the local cache, at once, instead of retries
                found = datasets.load_dataset(self._path, self._config, split=self._split)
        except Exception as error:  # every loader raises its own kinds
            where = (
                ""
                if self._local or hub.reachable()
                else " (the hub can't be reached; only its cache was searched)"
            )
            raise InputError(f"{self.name} can't be loaded{where}: {error}") from error
        if isinstance(found, dict):
            splits = list(found)
            if self._split is None and len(splits) == 1:
                return found[splits[0]]
            if self._split not in splits:
                asked = "has several splits" if self._split is None else f"has no split {self._split!r}"
                raise InputError(f"{self.name} {asked}; name one of {', '.join(splits)}")
            found = found[self._split]
        return found

    def columns(self) -> list[str]:
        return list(self._dataset().column_names)

    def count(self) -> int:
        return len(self._dataset())

    def schema(self) -> Any:
        return self._dataset().features.arrow_schema

    def fingerprint(self) -> dict[str, Any]:
        dataset = self._dataset()
        return {
            "name": self.stem,
            "rows": len(dataset),
            "fingerprint": dataset._fingerprint,
            "split": self._split,
        }

    def records(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str, Record]]:
        dataset = self._dataset()
        if columns is not None:
            dataset = dataset.select_columns(list(columns))
        for number, record in enumerate(dataset):
            yield number, f"{self.name}:row {number}", record


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by ``datasets``' ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _file_fingerprint(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}

"""JSON files: one object a line, an array of objects, or one object after the other; plain or packed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import IO, Any

from finescope.corpus.files import File, HashedReader
from finescope.corpus.jsontext import BrokenJsonError, Objects, on_one_line
from finescope.corpus.source import BLOCK_ROWS, Record, Visit, records_as_table, with_constants
from finescope.errors import InputError

_LINES = (".jsonl", ".ndjson", ".json")
JSON_ENDINGS = tuple(ending + packed for ending in _LINES for packed in ("", ".gz", ".zst", ".bz2", ".xz"))
_HEAD = 1 << 16


class JsonSource:
    """Rows of a JSON file. Blank lines are skipped; a byte-order mark is dropped."""

    full_rows = False

    def __init__(self, file: File) -> None:
        self._file = file
        self.constants = file.constants
        self._count: int | None = None
        self.name = file.label
        ending = next(ending for ending in reversed(JSON_ENDINGS) if file.name.lower().endswith(ending))
        self.stem = file.name[: -len(ending)]
        self._packed = PurePath(ending).suffix
        self._is_packed = ending not in _LINES
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

    def lines(self, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
        for number, place, text, parsed in self._some(numbers):
            record = parsed if parsed is not None else parse_line(text, place)
            yield number, with_constants(on_one_line(text), record, self.constants)

    def tables(self, numbers: Sequence[int], schema: Any) -> Iterator[tuple[Sequence[int], Any]]:
        block: list[tuple[int, Record]] = []
        for number, place, text, parsed in self._some(numbers):
            record = parsed if parsed is not None else parse_line(text, place)
            block.append((number, {**self.constants, **record}))
            if len(block) == BLOCK_ROWS or number == numbers[-1]:
                yield (
                    [number for number, _ in block],
                    records_as_table([record for _, record in block], schema, self.name),
                )
                block = []

    def _some(self, numbers: Sequence[int]) -> Iterator[tuple[int, str, str, Record | None]]:
        wanted = iter(numbers)
        following = next(wanted, None)
        for number, (place, text, parsed) in enumerate(self._texts()):
            if following is None:
                return
            if number == following:
                yield number, place, text, parsed
                following = next(wanted, None)

    def _texts(self) -> Iterator[tuple[str, str, Record | None]]:
        """Yield (place, the row's JSON, the row where it had to be parsed to be found)."""
        with contextlib.closing(self._open()) as file:
            head = self._head(file)
            if head[:1] == b"[" or (self._may_hold_values and _goes_on(head)):
                yield from self._values(file)
                return
            line_number = 0
            while line := self._line(file, line_number + 1):
                line_number += 1
                if line_number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    place = f"{self.name}:{line_number}"
                    yield place, _decoded(line, place), None

    def _line(self, file: io.BufferedReader, number: int) -> bytes:
        with self._unpacking(number):
            return file.readline()

    def _head(self, file: io.BufferedReader) -> bytes:
        """Return the beginning without byte-order mark and white space, leaving it to be read."""
        with self._unpacking(1):
            return file.peek(_HEAD)[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()

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

    @contextlib.contextmanager
    def _unpacking(self, line: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise InputError(
                f"{self.name}:{line}: can't be {'unpacked' if self._is_packed else 'read'} "
                f"({error}); the file is truncated or corrupt"
            ) from error

    def _open(self) -> Any:
        raw = io.BufferedReader(HashedReader(self._file), 1 << 20)
        if self._packed == ".gz":
            return gzip.GzipFile(fileobj=raw, mode="rb")  # it has a buffer of its own
        if self._packed == ".zst":
            return io.BufferedReader(ZstdReader(raw, self.name), 1 << 20)
        if self._packed == ".bz2":
            return io.BufferedReader(bz2.BZ2File(raw), 1 << 20)
        if self._packed == ".xz":
            return io.BufferedReader(lzma.LZMAFile(raw), 1 << 20)
        return raw


def parse_line(text: str, place: str) -> Record:
    """Return the object that a line holds.

    Raises:
        InputError: broken JSON, or something else than an object.
    """
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        what = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else "nested too deep"
        )
        raise InputError(
            f"{place}: broken JSON, {what}: {_shown(text)}; correct or remove the line"
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


class ZstdReader(io.RawIOBase):
    """Raw stream over zstd's decompressor that reports its errors, and a missing end, as ``OSError``."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise InputError(
                f"{name} is zstd-compressed, which needs a package that isn't installed: pip install "
                "zstandard"
            ) from error
        self._error = zstandard.ZstdError
        # Dumps are packed with windows of up to 2 GiB (--long=31), of which what a file needs is allotted.
        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._file = file
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

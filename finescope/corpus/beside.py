"""What lies beside the data of a corpus and is none of it, told by what it says, not by its format."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from finescope.corpus.content import ContentReader
from finescope.corpus.csvfiles import CsvSource
from finescope.corpus.files import File
from finescope.corpus.lines import BOM
from finescope.corpus.source import Source
from finescope.errors import InputError

_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
_POINTER, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
_WORK = (
    ({"stages"}, {"activations", "codes", "config.yaml", "plan.parquet", "sae"}),
    ({"config.yaml", "plan.parquet"}, {"config.yaml"}),
    ({"manifest.json"}, {"shard-00000.safetensors"}),
)
"""Names in a folder, all of the first and one of the second, that say that this package works in it."""
_HEAD = 1 << 20
_LONGEST = 1 << 24
"""Bytes of a description, at most."""
_DEPTH = 2
"""Objects within objects that are searched for a list of rows."""


@dataclass
class Found:
    """Sources in their order, what was seen and left out, and what is to be said of both."""

    sources: list[Source] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Append what was found in another place."""
        self.sources += other.sources
        self.left_out += other.left_out
        self.remarks += other.remarks


def is_cache(name: str) -> bool:
    """Return whether a file is called as those in which ``datasets`` keeps what ``map`` and ``filter`` gave.

    They lie beside the rows that they were made of.
    """
    return _CACHE.fullmatch(name) is not None


def is_work(names: Collection[str]) -> bool:
    """Return whether a folder with these names in it is that of a run, or a store, of this package.

    Output folders are often put beside the data. What lies in them was made of the rows.
    """
    return any(all_of <= set(names) and not one_of.isdisjoint(names) for all_of, one_of in _WORK)


def refuse_pointer(file: File) -> None:
    """Refuse a file that stands for one that Git LFS hasn't fetched.

    Raises:
        InputError: naming it and the remedy.
    """
    if file.system is not None or os.path.getsize(file.path) > _POINTER_BYTES:
        return
    with file.open() as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"{file.path} is a pointer of Git LFS, not the data; fetch it: "
                f"git lfs pull --include={file.name}"
            )


def without_tables_beside(found: Found, content: ContentReader) -> Found:
    """Return what was found without the CSV files that say nothing, if files of other formats are there.

    One that has a column of text is data as they are. Where all files are CSV, one without it is refused when
    it is read: its column may go by another name.
    """
    if all(isinstance(source, CsvSource) for source in found.sources):
        return found
    kept = Found(left_out=list(found.left_out))
    for source in found.sources:
        if _says_nothing(source, content):
            kept.left_out.append(f"{source.name} (a table without text)")
        else:
            kept.sources.append(source)
    return kept


def _says_nothing(source: Source, content: ContentReader) -> bool:
    if not isinstance(source, CsvSource):
        return False
    try:
        names = source.schema().names
    except InputError:
        return False  # broken: said when it is read
    return bool(names) and not content.can_say(names)


def describes(file: File, content: ContentReader) -> bool:
    """Return whether a .json file is one object without text: a description of the data beside it.

    Raises:
        InputError: that object holds a list of rows.
    """
    value = _lone_object(file)
    if value is None or content.can_say(value):
        return False
    within = next(_rows_within(value, content, ""), None)
    if within is not None:
        raise InputError(
            f"{file.label} is one object that holds rows in {within!r}; write that list alone into the file, "
            "or its rows one a line"
        )
    return True


def _lone_object(file: File) -> dict[str, Any] | None:
    with file.open() as opened:
        head = opened.read(_HEAD).removeprefix(BOM).strip()
        if not head.startswith(b"{"):
            return None
        try:
            value, end = _decoded(head)
        except ValueError:
            # A larger object, or rows the first of which is broken: the latter is said when they are read.
            rest = opened.read(_LONGEST)
            if not rest or len(rest) == _LONGEST:
                return None
            head += rest
            try:
                value, end = _decoded(head)
            except ValueError:
                return None
    return None if head.decode("utf-8", "replace")[end:].strip() else value


def _decoded(data: bytes) -> tuple[Any, int]:
    return json.JSONDecoder().raw_decode(data.decode("utf-8", "replace"))


def _rows_within(value: dict[str, Any], content: ContentReader, above: str) -> Iterator[str]:
    """Yield the dotted names of members that are lists of rows."""
    for name, member in value.items():
        if isinstance(member, list) and member and isinstance(member[0], dict):
            if content.can_say(member[0]):
                yield above + name
        elif isinstance(member, dict) and above.count(".") < _DEPTH:
            yield from _rows_within(member, content, f"{above}{name}.")

"""Where the files of a corpus lie: folders of folders, patterns, saved datasets, here or behind URLs."""

from __future__ import annotations

import glob
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from finescope.corpus.content import ContentReader
from finescope.corpus.csvfiles import CSV_ENDINGS, CsvSource
from finescope.corpus.files import File
from finescope.corpus.jsonfiles import JSON_ENDINGS, JsonSource
from finescope.corpus.source import Source
from finescope.corpus.tables import ArrowSource, DatasetSource, ParquetSource
from finescope.errors import InputError, StoreError, nearest_names
from finescope.storage.files import PathLike, read_json
from finescope.storage.remote import file_system, is_url, protocols

FORMATS = (
    ".jsonl, .json, .csv or .tsv (also .gz, .zst, .bz2, .xz), .parquet, .arrow, .feather, a folder of those, "
    "a saved Hugging Face dataset, or hf:NAME"
)
_ARROW = (".arrow", ".feather")
_ENDINGS = (*JSON_ENDINGS, *CSV_ENDINGS, ".parquet", *_ARROW)
_HIDDEN = (".", "_")
"""Beginnings of names that writers give to what is no data: ``_SUCCESS``, ``.cache``."""
_NULL = "__HIVE_DEFAULT_PARTITION__"
_HEAD = 1 << 20


@dataclass
class Found:
    """Sources in their order, and what was seen and left out."""

    sources: list[Source] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Append what was found in another place."""
        self.sources += other.sources
        self.left_out += other.left_out


def find(source: PathLike, split: str | None, content: ContentReader) -> Found:
    """Return the sources at a path, pattern, URL or dataset name.

    Args:
        source: see ``open_corpus``.
        split: split of a Hugging Face dataset.
        content: tells a row from a description of rows.

    Raises:
        InputError: nothing there, or a format that isn't read.
    """
    text = os.fspath(source)
    if text.startswith("hf:") and not text.startswith("hf://"):
        return Found([DatasetSource(text[3:], split=split)])
    place = _Place.at(text)
    if place.over_http and not glob.has_magic(place.path):  # asking whether it is a folder would download it
        return Found([_source(place.file(place.path, {}))])
    if place.is_folder(place.path):
        return _in_folder(place, place.path, split, content)
    if place.exists(place.path):
        return Found([_source(place.file(place.path, {}))])
    if glob.has_magic(place.path):
        found = _in_pattern(place, split, content)
        if found.sources:
            return found
    raise InputError(place.absence())


@dataclass
class _Place:
    """A path on the local disk or in an ``fsspec`` file system."""

    path: str
    system: Any = None

    @classmethod
    def at(cls, text: str) -> _Place:
        if not is_url(text):
            return cls(os.path.expanduser(text))
        system, path = file_system(text)
        return cls(path, system)

    @property
    def over_http(self) -> bool:
        return self.system is not None and "http" in protocols(self.system)

    def file(self, path: str, constants: dict[str, Any], root: str | None = None) -> File:
        label = path[len(root) :].lstrip("/") if root is not None else ""
        return File(path, self.system, dict(constants), label)

    def is_folder(self, path: str) -> bool:
        if self.system is None:
            return os.path.isdir(path)
        with self.file(path, {}).reading():
            return bool(self.system.isdir(path))

    def exists(self, path: str) -> bool:
        if self.system is None:
            return os.path.exists(path)
        with self.file(path, {}).reading():
            return bool(self.system.exists(path))

    def matches(self) -> list[str]:
        if self.system is None:
            return sorted(glob.glob(self.path, recursive=True))
        with self.file(self.path, {}).reading():
            return sorted(self.system.glob(self.path))

    def children(self, folder: str) -> list[str]:
        """Return the paths in a folder, in order of name."""
        if self.system is None:
            return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        with self.file(folder, {}).reading():
            return sorted(name.rstrip("/") for name in self.system.ls(folder, detail=False))

    def absence(self) -> str:
        message = f"{self.path} does not exist"
        parent, name = os.path.split(self.path)
        if self.system is not None:
            return message
        if os.path.isdir(parent or "."):
            near = nearest_names(name, os.listdir(parent or "."))
            return f"{message}; did you mean {os.path.join(parent, near[0])}?" if near else message
        return f"{message}, nor does its folder"


def _in_folder(place: _Place, folder: str, split: str | None, content: ContentReader) -> Found:
    saved = _saved_dataset(place, folder, split)
    if saved is not None:
        return Found([saved])
    found = Found()
    lone: list[File] = []
    files = list(_walk(place, folder, {}, set()))
    for path, constants in files:
        if constants is None:
            found.sources.append(_saved_dataset(place, path, split))  # type: ignore[arg-type]
        elif _known(path):
            file = place.file(path, constants, folder)
            if path.lower().endswith(".json") and len(files) > 1 and _describes(file, content):
                lone.append(file)
            else:
                found.sources.append(_source(file))
        else:
            found.left_out.append(posixpath.basename(path))
    others = [source for source in found.sources if not isinstance(source, CsvSource)]
    if others:  # tables that describe the data lie beside it
        found.left_out += [source.name for source in found.sources if isinstance(source, CsvSource)]
        found.sources = others
    found.left_out += [f"{file.label} (one object without text)" for file in lone]
    if not found.sources:
        held = f"; it holds {', '.join(found.left_out[:5])}" if found.left_out else ""
        raise InputError(f"{folder} is a folder without corpus files{held}; wanted: {FORMATS}")
    return found


def _walk(
    place: _Place, folder: str, constants: dict[str, Any], above: set[str]
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield (file, what its folders say of its rows), depth first; saved datasets come as (folder, None)."""
    real = os.path.realpath(folder) if place.system is None else folder
    if real in above:
        return  # a link that leads back
    for path in place.children(folder):
        name = posixpath.basename(path)
        if name.startswith(_HIDDEN) or path == folder:
            continue
        if not place.is_folder(path):
            yield path, constants
        elif _is_saved_dataset(place, path):
            yield path, None
        else:
            yield from _walk(place, path, {**constants, **_partition(name)}, above | {real})


def _partition(name: str) -> dict[str, Any]:
    """Return the column and value of a folder called ``key=value``, as Hive has it."""
    key, equals, value = name.partition("=")
    if not (equals and key):
        return {}
    return {unquote(key): None if value == _NULL else unquote(value)}


def settle_partitions(sources: list[Source]) -> None:
    """Make a partition's values whole numbers where those of all files are."""
    every = [source.constants for source in sources]
    for key in dict.fromkeys(key for constants in every for key in constants):
        values = [constants[key] for constants in every if constants.get(key) is not None]
        if values and all(value == str(_whole(value)) for value in values):
            for constants in every:
                if constants.get(key) is not None:
                    constants[key] = int(constants[key])


def _whole(value: str) -> int | None:
    return int(value) if value.removeprefix("-").isascii() and value.removeprefix("-").isdigit() else None


def _in_pattern(place: _Place, split: str | None, content: ContentReader) -> Found:
    found = Found()
    seen: set[str] = set()
    base = _without_magic(place.path)
    for path in place.matches():
        if any(path.startswith(f"{folder}/") for folder in seen):
            continue  # in a folder that matched itself
        if place.is_folder(path):
            if "**" in place.path:
                continue
            seen.add(path)
            inside = _in_folder(place, path, split, content)
            constants = _constants(path, base)
            for source in inside.sources:
                source.constants.update({**constants, **source.constants})
            found.add(inside)
        elif _known(path):
            found.sources.append(_source(place.file(path, _constants(posixpath.dirname(path), base), base)))
        else:
            found.left_out.append(posixpath.basename(path))
    return found


def _without_magic(pattern: str) -> str:
    """Return the part of a pattern before its first component with wildcards."""
    parts = pattern.split("/")
    first = next(position for position, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])


def _constants(folder: str, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in folder[len(base) :].strip("/").split("/"):
        found |= _partition(name)
    return found


def _known(path: str) -> bool:
    return path.lower().endswith(_ENDINGS)


def _source(file: File) -> Source:
    lower = file.name.lower()
    if lower.endswith(".parquet"):
        return ParquetSource(file)
    if lower.endswith(_ARROW):
        return ArrowSource([file])
    if lower.endswith(JSON_ENDINGS):
        return JsonSource(file)
    if lower.endswith(CSV_ENDINGS):
        return CsvSource(file)
    ending = posixpath.splitext(file.name)[1]
    raise InputError(f"{file.path}: the format {ending or 'without an ending'} isn't read; wanted: {FORMATS}")


def _describes(file: File, content: ContentReader) -> bool:
    """Return whether a .json file is one object without text: a description of the data beside it."""
    with file.open() as opened:
        head = opened.read(_HEAD).removeprefix(b"\xef\xbb\xbf").strip()
    if not head.startswith(b"{"):
        return False
    text = head.decode("utf-8", "replace")
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        # A larger object, or rows the first of which is broken: the latter is said when they are read.
        return len(head) >= _HEAD - 1 and b"\n" in head[:2]
    if text[end:].strip():
        return False
    try:
        return content.read(value, file.name) is None
    except InputError:
        return False


def _is_saved_dataset(place: _Place, folder: str) -> bool:
    def holds(name: str) -> bool:
        return place.exists(posixpath.join(folder, name))

    return holds("dataset_dict.json") or (holds("state.json") and holds("dataset_info.json"))


def _saved_dataset(place: _Place, folder: str, split: str | None) -> ArrowSource | None:
    """Return a folder that ``datasets``' ``save_to_disk`` wrote, read without that package; else None."""
    if not _is_saved_dataset(place, folder):
        return None
    name = posixpath.basename(folder.rstrip("/"))
    if place.exists(posixpath.join(folder, "dataset_dict.json")):
        splits = _json(place, posixpath.join(folder, "dataset_dict.json")).get("splits") or []
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            asked = "has several splits" if split is None else f"has no split {split!r}"
            raise InputError(f"{name} {asked}; name one of {', '.join(splits)}")
        folder = posixpath.join(folder, str(split))
    state = _json(place, posixpath.join(folder, "state.json"))
    files = [posixpath.join(folder, entry["filename"]) for entry in state.get("_data_files") or ()]
    if not files:
        raise InputError(f"{folder}: its state.json names no data files; save the dataset again")
    return ArrowSource([place.file(path, {}) for path in files], name)


def _json(place: _Place, path: str) -> dict[str, Any]:
    if place.system is None:
        try:
            return dict(read_json(path))
        except (StoreError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no description of a saved dataset: {error}") from error
    with place.file(path, {}).reading():
        return dict(json.loads(place.system.cat_file(path)))

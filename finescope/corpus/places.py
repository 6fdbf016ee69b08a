"""Where the files of a corpus lie: folders of folders, patterns, saved datasets, here or behind URLs."""

from __future__ import annotations

import glob
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from finescope.corpus.beside import Found, describes, is_cache, is_work, refuse_pointer, without_tables_beside
from finescope.corpus.content import ContentReader
from finescope.corpus.copies import refuse_copies
from finescope.corpus.csvfiles import CSV_ENDINGS, CsvSource
from finescope.corpus.delta import LOG, commits, live
from finescope.corpus.files import File
from finescope.corpus.jsonfiles import JSON_ENDINGS, JsonSource
from finescope.corpus.place import Place, dead_link
from finescope.corpus.source import Source
from finescope.corpus.tables import ArrowSource, DatasetSource, ParquetSource
from finescope.errors import InputError, StoreError
from finescope.storage.files import PathLike, read_json

FORMATS = (
    ".jsonl, .json, .csv or .tsv (also .gz, .zst, .bz2, .xz), .parquet, .arrow, .feather, a folder of those, "
    "a saved Hugging Face dataset, or hf:NAME"
)
_ARROW = (".arrow", ".feather")
_ENDINGS = (*JSON_ENDINGS, *CSV_ENDINGS, ".parquet", *_ARROW)
_HIDDEN = (".", "_")
"""Beginnings of names that writers give to what is no data: ``_SUCCESS``, ``.cache``."""
_MARKS = (LOG, "_temporary", "_spark_metadata")
"""Folders without rows of their own, which aren't worth a word."""
_NULL = "__HIVE_DEFAULT_PARTITION__"


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
    place = Place.at(text)
    if place.over_http and not glob.has_magic(place.path):  # asking whether it is a folder would download it
        return Found([_source(place.file(place.path, {}))])
    if place.is_folder(place.path):
        return _some(
            _in_folder(place, place.path, split, content), f"{place.path} is a folder without", content
        )
    if place.exists(place.path):
        file = place.file(place.path, {})
        if file.name.lower().endswith(".json"):
            describes(file, content)  # refuses rows within an object; one that is alone is read as a row
        return Found([_source(file)])
    matches = place.matches() if glob.has_magic(place.path) else []
    if matches:
        return _some(_in_pattern(place, matches, split, content), f"{place.path} matches no", content)
    raise InputError(place.absence())


def _some(found: Found, lack: str, content: ContentReader) -> Found:
    if not found.sources:
        held = f"; it holds {', '.join(found.left_out[:5])}" if found.left_out else ""
        raise InputError(f"{lack} corpus files{held}; wanted: {FORMATS}")
    found.remarks += refuse_copies(found.sources, content)
    return found


def _in_folder(place: Place, folder: str, split: str | None, content: ContentReader) -> Found:
    saved = _saved_dataset(place, folder, split)
    if saved is not None:
        return Found([saved])
    found = Found()
    entries = list(_Walk(place, folder, found.left_out).below(folder))
    for path, constants in entries:
        if constants is None and _is_empty_dataset(place, path):
            found.left_out.append(f"{path[len(folder) :].lstrip('/')} (a saved dataset without rows)")
        elif constants is None:
            found.sources.append(_saved_dataset(place, path, split))  # type: ignore[arg-type]
        else:
            _take(found, place.file(path, constants, folder), content if len(entries) > 1 else None)
    return without_tables_beside(found, content)


def _take(found: Found, file: File, content: ContentReader | None) -> None:
    """Add a file that was come upon, unless its name, or what ``content`` makes of it, says it's no data."""
    if not _known(file.name):
        found.left_out.append(file.name)
    elif file.system is None and not os.path.isfile(file.path):
        if os.path.islink(file.path):
            raise InputError(dead_link(file.path))
        found.left_out.append(f"{file.label} (a pipe or a device)")
    elif content is not None and file.name.lower().endswith(".json") and describes(file, content):
        found.left_out.append(f"{file.label} (one object without text)")
    else:
        found.sources.append(_source(file))


@dataclass
class _Walk:
    """A walk through a folder; says in ``left_out`` what it passes over that might have been data."""

    place: Place
    root: str
    left_out: list[str]

    def below(
        self, folder: str, constants: dict[str, Any] | None = None, above: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield (file, what its folders say of its rows), depth first; saved datasets come as (folder,
        None)."""
        children = self.place.children(folder)
        if is_work(set(map(posixpath.basename, children))):
            self._refuse_root(folder)
            self.left_out.append(f"{folder[len(self.root) :].strip('/')} (work of FineScope)")
            return iter(())
        found = self._children(folder, children, constants or {}, above)
        return self._of_table(folder, found) if posixpath.join(folder, LOG) in children else found

    def _refuse_root(self, folder: str) -> None:
        if folder == self.root:
            raise InputError(
                f"{folder} is a folder that FineScope works in, and holds what was made of rows; the rows "
                "that a run has chosen are in its file curated.*"
            )

    def _of_table(
        self, folder: str, found: Iterator[tuple[str, dict[str, Any] | None]]
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield those files below a folder that its log, if it's that of a Delta Lake table, hasn't
        removed."""
        log = commits(self.place.children(posixpath.join(folder, LOG)))
        if not log:
            yield from found
            return
        counted = live(folder, [self.place.file(path, {}) for path in log])
        for path, constants in found:
            name = path[len(folder) :].lstrip("/")
            if name in counted:
                counted.remove(name)
            elif _known(name):
                self.left_out.append(f"{name} (no part of the Delta Lake table)")
                continue
            yield path, constants
        if counted:
            raise InputError(f"{folder}: {min(counted)}, a part of this Delta Lake table, isn't there")

    def _children(
        self, folder: str, children: list[str], constants: dict[str, Any], above: frozenset[str]
    ) -> Iterator[tuple[str, dict[str, Any] | None]]:
        here = above | {os.path.realpath(folder) if self.place.system is None else folder}
        for path in children:
            name = posixpath.basename(path)
            if path == folder:
                continue
            is_folder = self.place.is_folder(path)
            if name.startswith(_HIDDEN):
                self._hidden(name, is_folder)
            elif not is_folder and is_cache(name):
                self.left_out.append(f"{name} (a cache of datasets)")
            elif not is_folder:
                yield path, constants
            elif self.place.system is None and os.path.realpath(path) in here:
                continue  # a link that leads back
            elif (other := _leads_to(self.place, path, self.root)) is not None and not _is_hidden(other):
                self.left_out.append(f"{path[len(self.root) :].lstrip('/')} (a link to {other})")
            elif _is_saved_dataset(self.place, path):
                yield path, None
            else:
                yield from self.below(path, {**constants, **_partition(name)}, here)

    def _hidden(self, name: str, is_folder: bool) -> None:
        if is_folder and name.startswith("_") and name not in _MARKS:
            self.left_out.append(f"{name}/ (hidden)")
        elif _known(name) and not is_folder:
            self.left_out.append(f"{name} (hidden)")


def _leads_to(place: Place, path: str, root: str) -> str | None:
    """Return where within a folder else the folder or file at a path lies, if links lead there; else None."""
    if place.system is not None:
        return None
    real, top = os.path.realpath(path), os.path.realpath(root or ".")
    if not os.path.isdir(path):  # equal files are kept once by some caches, and linked under all their names
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if not real.startswith(f"{top}/") or real[len(top) + 1 :] == path[len(root) :].strip("/"):
        return None
    return real[len(top) + 1 :]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(_HIDDEN) for part in path.split("/"))


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
        if values and all(_whole(value) is not None for value in values):
            for constants in every:
                if constants.get(key) is not None:
                    constants[key] = int(constants[key])


def _whole(value: str) -> int | None:
    """Return the whole number of 64 bits that is written exactly so, or None: ``007`` is a name."""
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    number = int(value)
    return number if str(number) == value and -(2**63) <= number < 2**63 else None


def _in_pattern(place: Place, matches: list[str], split: str | None, content: ContentReader) -> Found:
    found = Found()
    seen: set[str] = set()
    base = _without_magic(place.path)
    matches = [path for path in matches if not _passed(path[len(base) :], place.path[len(base) :])]
    works = _Works(place, base)
    for path in matches:
        if any(path.startswith(f"{folder}/") for folder in seen):
            continue  # in a folder that matched itself
        is_folder = place.is_folder(path)
        work = works.around(path if is_folder else posixpath.dirname(path))
        if work is not None:
            found.left_out.append(f"{work[len(base) :].strip('/')} (work of FineScope)")
            seen.add(work)
            continue
        other = _leads_to(place, path, base)
        if other is not None and posixpath.join(base, other) in matches:
            found.left_out.append(f"{path[len(base) :].lstrip('/')} (a link to {other})")
            seen.add(path)
        elif is_folder:
            if "**" in place.path:
                continue
            seen.add(path)
            inside = _in_folder(place, path, split, content)
            constants = _constants(path, base)
            for source in inside.sources:
                source.constants.update({**constants, **source.constants})
            found.add(inside)
        else:
            constants = _constants(posixpath.dirname(path), base)
            _take(found, place.file(path, constants, base), content if len(matches) > 1 else None)
    return without_tables_beside(found, content)


class _Works:
    """Tells the matches of a pattern that lie in folders that this package works in.

    A pattern for the rows that runs have chosen, ``runs/*/curated.jsonl``, asks for files there.
    """

    def __init__(self, place: Place, base: str) -> None:
        self._place, self._base = place, base
        self._asked = posixpath.basename(place.path).startswith("curated")
        self._known: dict[str, bool] = {}

    def around(self, folder: str) -> str | None:
        """Return the folder of such work that a folder is, or lies in; None if there is none."""
        if self._asked:
            return None
        while len(folder) > len(self._base):
            if folder not in self._known:
                self._known[folder] = is_work(set(map(posixpath.basename, self._place.children(folder))))
            if self._known[folder]:
                return folder
            folder = posixpath.dirname(folder)
        return None


def _passed(path: str, pattern: str) -> bool:
    """Return whether a match has a component with a dot before it that its pattern doesn't ask for.

    A shell's wildcards pass over those, and so do local patterns; those of URLs don't by themselves.
    """
    return any(part.startswith(".") for part in path.split("/")) and not any(
        part.startswith(".") for part in pattern.split("/")
    )


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
    refuse_pointer(file)
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


def _is_saved_dataset(place: Place, folder: str) -> bool:
    def holds(name: str) -> bool:
        return place.exists(posixpath.join(folder, name))

    return holds("dataset_dict.json") or (holds("state.json") and holds("dataset_info.json"))


def _is_empty_dataset(place: Place, folder: str) -> bool:
    """Return whether a saved dataset has no rows: ``datasets`` (5.2.0) then writes no file of them."""
    state = posixpath.join(folder, "state.json")
    return place.exists(state) and _json(place, state).get("_data_files") == []


def _saved_dataset(place: Place, folder: str, split: str | None) -> ArrowSource | None:
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
        raise InputError(f"{folder}: its state.json names no data files: it has no rows, or was damaged")
    return ArrowSource([place.file(path, {}) for path in files], name)


def _json(place: Place, path: str) -> dict[str, Any]:
    if place.system is None:
        try:
            return dict(read_json(path))
        except (StoreError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no description of a saved dataset: {error}") from error
    with place.file(path, {}).reading():
        return dict(json.loads(place.system.cat_file(path)))

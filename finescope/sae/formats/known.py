"""Which formats there are, where below a path autoencoders lie, and reading one of whatever format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from finescope.errors import InputError
from finescope.sae.formats import native, sparsify
from finescope.sae.formats.checkpoint import Checkpoint
from finescope.sae.formats.format import Facts, Format

FORMATS: dict[str, Format] = {format.name: format for format in (native.FORMAT, sparsify.FORMAT)}
"""In the order in which they are tried."""

_DEPTH = 5  # folders below the one given that are looked into: layer_5/width_16k/average_l0_71/…
_SHOWN = 8


def read(
    path: Path,
    *,
    hookpoint: str | None = None,
    format: str = "auto",
    facts: Mapping[str, Any] | None = None,
    public: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read the autoencoder at ``path``, or the one of several below it that ``hookpoint`` names.

    Args:
        path: a folder or a file.
        hookpoint: the name of the folder or file below ``path``.
        format: a name of :data:`FORMATS`, or ``auto``.
        facts: what the files leave out, given by the caller.
        public: the same, known of a public autoencoder.

    Raises:
        InputError: no autoencoder there, several, one of a format that isn't known, or one that leaves out
            what must be known.
        StoreError: a damaged file.
    """
    if format != "auto" and format not in FORMATS:
        raise InputError(f"there is no format {format!r} of autoencoders; known are {', '.join(FORMATS)}")
    place = find(path, hookpoint)
    chosen = _recognise(place) if format == "auto" else FORMATS[format]
    known = Facts(facts or {}, public)
    checkpoint = chosen.read(place, known)
    known.refuse_unused(chosen.name)
    return checkpoint


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint in sparsify's layout, which most can read, or in FineScope's where that can't hold
    it.

    Raises:
        StoreError: the files can't be written.
    """
    (sparsify if sparsify.holds(checkpoint) else native).write(checkpoint, folder)


def find(path: Path, hookpoint: str | None = None) -> Path:
    """Return the folder or file of one autoencoder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path} is not a directory; give the one that holds the autoencoder, or its file")
    name = choose(places(_files(path)), hookpoint, path.resolve().name, str(path))
    return path / name if name else path


def places(files: Iterable[str]) -> list[str]:
    """Return the names of the autoencoders that files, paths below a root, belong to; "" is the root."""
    found: dict[str, None] = {}
    for file in files:
        for format in FORMATS.values():
            name = format.place_of(file)
            if name is not None:
                found[name] = None
                break
    return sorted(found, key=_by_number)


def choose(found: list[str], hookpoint: str | None, root: str, where: str) -> str:
    """Return which of the autoencoders below a root is meant.

    A hookpoint names one by its path below the root, or by the last part of the root's own; several below a
    path of that name (seeds) have to be told apart.

    Args:
        found: their names, as :func:`places` returns them.
        hookpoint: what the user asks for.
        root: the name of the root.
        where: the root, for messages.
    """
    if hookpoint is None:
        if "" in found:
            return ""
        chosen = found
    else:
        hookpoint = hookpoint.strip("/")
        if hookpoint in found:
            return hookpoint
        chosen = [name for name in found if name.startswith(f"{hookpoint}/")]
        if not chosen and "" in found and root == PurePosixPath(hookpoint).name:
            return ""
        if not chosen:
            known = f"it has {_some(found)}" if any(found) else "it has none"
            raise InputError(f"{where} has no autoencoder for the hookpoint {hookpoint!r}; {known}")
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise InputError(f"{where} has several autoencoders; name a hookpoint: {_some(chosen)}")
    marks = dict.fromkeys(format.mark for format in FORMATS.values())
    raise InputError(
        f"no autoencoder in {where}: none of {', '.join(marks)} is there or up to {_DEPTH} folders below"
    )


def _recognise(place: Path) -> Format:
    name = place.name if place.is_file() else None
    for format in FORMATS.values():
        if format.single != (name is not None):
            continue
        here = format.place_of(name) is not None if name is not None else (place / format.mark).is_file()
        if here and format.recognises(place):
            return format
    raise InputError(
        f"{place} is of no format that is known ({', '.join(FORMATS)}); if it is one of them with files"
        " renamed,"
        " give them their names, or name the format"
    )


def _files(root: Path) -> Iterator[str]:
    """Yield the paths of the files below ``root``, not too deep, as POSIX paths relative to it."""
    for folder, folders, files in os.walk(root, followlinks=True):
        inside = Path(folder).relative_to(root)
        if len(inside.parts) >= _DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            yield (inside / name).as_posix()


def _some(names: list[str]) -> str:
    shown = [name or "." for name in names[:_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts layers.2 before layers.10."""
    parts = []
    for part in name.replace("/", ".").split("."):
        parts.append((int(part), "") if part.isdecimal() else (-1, part))
    return parts

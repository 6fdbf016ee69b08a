"""Which formats there are, where below a path autoencoders lie, and reading one of whatever format."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from finescope.errors import InputError, StoreError
from finescope.sae.formats import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    latentsae,
    linear,
    llama_scope,
    llama_scope_r1,
    llamascopium,
    native,
    openai,
    qwen_scope,
    remote,
    saelens,
    sparsify,
)
from finescope.sae.formats.checkpoint import Checkpoint
from finescope.sae.formats.format import Facts, Format
from finescope.sae.formats.public import facts_of_path

_ALL: tuple[Format, ...] = (
    native.FORMAT,
    latentsae.FORMAT,
    sparsify.FORMAT,
    saelens.FORMAT,
    llama_scope_r1.FORMAT,
    llamascopium.FORMAT,
    llama_scope.FORMAT,
    gemma_scope.FORMAT,
    gemma_scope_2.FORMAT,
    dictionary_learning.FORMAT,
    dictionary_learning.STEP,
    qwen_scope.FORMAT,
    openai.FORMAT,
    *linear.FORMATS,
    circuit_tracer.FORMAT,
)
"""In the order in which they are tried; one name may stand for several marks."""
FORMATS = tuple(dict.fromkeys(format.name for format in _ALL))
WRITABLE = tuple(format.name for format in _ALL if format.write is not None)
"""Those that FineScope writes."""


class SeveralError(InputError):
    """There are several autoencoders, and nobody says which is meant.

    Attributes:
        names: of all of them.
    """

    def __init__(self, where: str, names: list[str]) -> None:
        super().__init__(f"{where} has several autoencoders; name a hookpoint: {_some(names)}")
        self.names = names


_DEPTH = 5  # folders below the one given that are looked into: layer_5/width_16k/average_l0_71/…
_SHOWN = 8


def read(
    path: str | Path,
    *,
    hookpoint: str | None = None,
    format: str = "auto",
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Read the autoencoder at ``path``, or the one of several below it that ``hookpoint`` names.

    Args:
        path: a folder or a file; or the name of a repository on the Hugging Face hub.
        hookpoint: the name of the folder or file below ``path``; it may stand behind the path, after ``#``.
        format: a name of :data:`FORMATS`, or ``auto``.
        facts: what the files leave out, given by the caller.

    Raises:
        InputError: no autoencoder there, several, one of a format that isn't known, or one that leaves out
            what must be known.
        StoreError: a damaged file.
    """
    return _read(path, hookpoint, format, facts or {}, ask=True)[0]


def look(
    path: str | Path, *, hookpoint: str | None = None, format: str = "auto", facts: Mapping[str, Any]
) -> tuple[Checkpoint, dict[str, str]]:
    """Read an autoencoder to be described, not used: facts that nobody gives don't stop it.

    Args:
        path, hookpoint, format, facts: as :func:`read` takes them.

    Returns:
        the checkpoint, and by name the meaning of the facts that :func:`read` would ask for; where they are
        used it has made-up values.

    Raises:
        InputError, StoreError: as :func:`read`.
    """
    return _read(path, hookpoint, format, facts, ask=False)


def _read(
    path: str | Path, hookpoint: str | None, format: str, facts: Mapping[str, Any], *, ask: bool
) -> tuple[Checkpoint, dict[str, str]]:
    if format != "auto" and format not in FORMATS:
        raise InputError(f"there is no format {format!r} of autoencoders; known are {', '.join(FORMATS)}")
    place = locate(path, hookpoint)
    chosen = _recognise(place, format)
    known = Facts(facts, facts_of_path(place), ask=ask)
    try:
        checkpoint = chosen.read(place, known)
    except (InputError, StoreError) as error:
        raise _naming(error, chosen, place) from error
    known.refuse_unused(chosen.name)
    return checkpoint, known.missing


def _naming(error: InputError | StoreError, format: Format, place: Path) -> InputError | StoreError:
    """Return an error that says as which format a place was read; the same if it does."""
    said = str(error).replace(str(place), "").replace(str(place.parent), "").casefold()
    if format.name in said or format.name.replace("_", " ") in said:
        return error
    return type(error)(f"{error} (recognised as {format.name})")


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint in sparsify's layout, which most can read, or in FineScope's where that can't hold
    it.

    Raises:
        StoreError: the files can't be written.
    """
    # sparsify's files don't say which model's activations an autoencoder of another library wants.
    holds = checkpoint.origin.format in ("finescope", "sparsify") and sparsify.holds(checkpoint)
    (sparsify if holds else native).write(checkpoint, folder)


def convert(checkpoint: Checkpoint, format: str, folder: Path) -> None:
    """Write a checkpoint as another library has it, which then makes the same codes and reconstructions.

    Args:
        checkpoint: of any format.
        format: a name of :data:`WRITABLE`.
        folder: where to.

    Raises:
        InputError: the format can't hold it, or isn't one that is written; or the folder isn't empty.
        StoreError: the files can't be written.
    """
    writers = {each.name: each.write for each in _ALL if each.write is not None}
    if format not in writers:
        raise InputError(f"{format!r} is no format that is written; there are {', '.join(writers)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already and isn't empty; name a new folder")
    writers[format](checkpoint, folder)


def locate(path: str | Path, hookpoint: str | None = None) -> Path:
    """Return the folder or file of one autoencoder here, fetched from the hub if that is where it is.

    Args:
        path: as :func:`read` takes it.
        hookpoint: likewise.

    Raises:
        InputError: it is neither here nor on the hub, or it isn't clear which is meant.
    """
    text = str(path)
    here = Path(path).expanduser()
    if not here.exists() and "#" in text:
        text, _, behind = text.rpartition("#")
        here, hookpoint = Path(text).expanduser(), behind or hookpoint
    if here.exists() or not remote.is_name(text):
        return find(here, hookpoint)
    owner, repository, *inside = text.split("/")
    below = "/".join(inside + ([hookpoint] if hookpoint else [])) or None
    return find(remote.fetch(f"{owner}/{repository}", below, _files_of), below)


def _files_of(files: list[str], hookpoint: str | None, where: str) -> list[str]:
    """Return which of the files below a root belong to the autoencoder that a hookpoint names."""
    name = choose(places(files), hookpoint, "", where)
    wanted = set()
    for format in _ALL:
        folder = posixpath.dirname(name) if format.single else name
        for file in files:
            if format.place_of(file) == name:
                beside = (posixpath.normpath(posixpath.join(folder, other)) for other in format.beside)
                wanted |= {file, *beside}
    return sorted(wanted & set(files))


def find(path: Path, hookpoint: str | None = None) -> Path:
    """Return the folder or file of one autoencoder."""
    if hookpoint is not None and (path / hookpoint).is_file():
        path = path / hookpoint
    if path.is_file():
        whole = path.absolute().as_posix()
        marks = [format.mark for format in _ALL if not format.single and whole.endswith(f"/{format.mark}")]
        return Path(whole[: -len(marks[0]) - 1]) if marks else path
    if not path.is_dir():
        raise InputError(f"{path} is not a directory; give the one that holds the autoencoder, or its file")
    name = choose(places(_files(path)), hookpoint, path.resolve().name, str(path))
    return path / name if name else path


def places(files: Iterable[str]) -> list[str]:
    """Return the names of the autoencoders that files, paths below a root, belong to; "" is the root."""
    folders: set[str] = set()
    singles: set[str] = set()
    for file in files:
        for format in _ALL:
            name = format.place_of(file)
            if name is not None:
                (singles if format.single else folders).add(name)
                break
    # Files beside or below an autoencoder are its own: states of trainers, earlier steps.
    own = {name for name in singles if any(part in folders for part in _above(name))}
    return sorted(folders | (singles - own), key=_by_number)


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
        raise SeveralError(where, chosen)
    marks = dict.fromkeys(format.mark for format in _ALL)
    raise InputError(
        f"no autoencoder in {where}: none of {', '.join(marks)} is there or up to {_DEPTH} folders below"
    )


def _recognise(place: Path, wanted: str) -> Format:
    """Return the format of a place, or the one wanted, if the place may be of it."""
    name = place.name if place.is_file() else None
    for format in _ALL:
        if format.single != (name is not None) or wanted not in ("auto", format.name):
            continue
        here = format.place_of(name) is not None if name is not None else (place / format.mark).is_file()
        if here and (wanted != "auto" or format.recognises(place)):
            return format
    if wanted != "auto":
        marks = " or ".join(dict.fromkeys(format.mark for format in _ALL if format.name == wanted))
        raise InputError(f"{place} can't be read as {wanted}: that has {marks}")
    raise InputError(
        f"{place} is of no format that is known ({', '.join(FORMATS)}); if files of one of them were renamed,"
        " give them their names back"
    )


def _above(name: str) -> Iterator[str]:
    """Yield the folders that a name lies in, the root "" last."""
    while name:
        name = name.rpartition("/")[0]
        yield name


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

"""Compiled objects, kept by everything that decides them. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# More than the objects of a few branches and of two interpreters need.
KEPT = 24


def folder() -> Path | None:
    """Where objects are kept: FINESCOPE_BUILD_CACHE, else in the user's cache; None where it says "off"."""
    named = os.environ.get("FINESCOPE_BUILD_CACHE", "")
    if named.lower() in ("off", "no", "0"):
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(named) if named else Path(cache, "finescope", "build")


def key(rules: str, named: Mapping[Path, str], sources: Iterable[Path], root: Path) -> str:
    """What decides an object.

    Args:
        rules: the commands that make it.
        named: folders outside the checkout that the rules name, and in words what is in them, such as a
            version: where they lie decides nothing.
        sources: every file of the checkout that may be read.
        root: the checkout.
    """
    for place, words in sorted({root: "the checkout", **named}.items(), key=lambda pair: -len(str(pair[0]))):
        rules = rules.replace(str(place), words)
    digest = hashlib.sha256(rules.encode())
    for path in sorted(sources):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def find(key: str, name: str) -> Path | None:
    """The object of that file name and key, if it is kept."""
    place = folder()
    found = None if place is None else place / key / name
    if found is None or not found.is_file():
        return None
    with suppress(OSError):
        os.utime(found.parent)  # the oldest go first
    return found


def keep(key: str, made: Path) -> None:
    """Keep a copy of an object; a cache that can't be written to is no error."""
    place = folder()
    if place is None:
        return
    with suppress(OSError):
        (place / key).mkdir(parents=True, exist_ok=True)
        with _whole(place / key / made.name) as fresh:
            shutil.copy2(made, fresh)
        others = sorted(place.iterdir(), key=lambda entry: entry.stat().st_mtime)
        for old in others[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)

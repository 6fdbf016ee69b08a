"""Files behind URLs, in ``fsspec`` file systems."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finescope.errors import InputError, StoreError


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URL such as ``s3://bucket/x``, or a chain of them, and not a path."""
    text = os.fspath(place)
    return "://" in text or "::" in text


def file_system(url: str) -> tuple[Any, str]:
    """Return the ``fsspec`` file system of a URL, and the path in it; None as system for local files.

    Raises:
        InputError: an unknown protocol, or one whose package isn't installed.
    """
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url} needs a package that isn't installed ({error}): pip install 'finescope[urls]'"
        ) from error
    except (ValueError, OSError) as error:  # a chain of URLs opens the outer one at once
        raise InputError(f"{url} can't be opened: {error}") from error
    return (None, path) if "file" in protocols(system) else (system, path)


def protocols(system: Any) -> tuple[str, ...]:
    """Return the names of an ``fsspec`` file system."""
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


@contextlib.contextmanager
def saying(doing: str, url: str) -> Iterator[None]:
    """Turn whatever the libraries of a store raise into a ``StoreError`` that names the URL."""
    try:
        yield
    except (InputError, StoreError):
        raise
    except Exception as error:
        raise StoreError(f"can't {doing} {url}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def uploaded(url: str) -> Iterator[Path]:
    """Yield a name on this machine to write to; on success the file is put at the URL, whole or not at all.

    Raises:
        InputError: see ``file_system``.
        StoreError: the store refuses it.
    """
    system, path = file_system(url)
    with tempfile.TemporaryDirectory(prefix="finescope-") as folder:
        file = Path(folder, posixpath.basename(path))
        yield file
        with saying("write", url):
            put(system, file, path)


@contextlib.contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """Yield a copy of the file at a URL on this machine, which is gone afterwards.

    Raises:
        InputError: see ``file_system``.
        StoreError: it isn't there, or can't be read.
    """
    system, path = file_system(url)
    with tempfile.TemporaryDirectory(prefix="finescope-") as folder:
        file = Path(folder, posixpath.basename(path))
        with saying("read", url):
            system.get_file(path, str(file))
        yield file


def put(system: Any, file: Path, path: str) -> None:
    """Put a file of this machine at a path of a file system."""
    system.makedirs(posixpath.dirname(path), exist_ok=True)
    system.put_file(str(file), path)

"""Writing files so that a reader never sees half of one: temporary name, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.remote import file_system, is_url, uploaded

PathLike = str | os.PathLike[str]

_TEMPORARY = re.compile(r"^\..+\.\d+(-[0-9a-f]+)?\.tmp$")
# What a write meets when the medium can't take more: full disk, quota, file-size limit, read-only mount.
_NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ROOM[errno.EFBIG] = "the file-size limit is reached"
_NO_ROOM[errno.EROFS] = "the file system is read-only"
_NO_ROOM[errno.EACCES] = "permission is denied"
_NO_ROOM[errno.EPERM] = "the system does not permit it"
_NO_ROOM[errno.ENOTDIR] = _NO_ROOM[errno.EEXIST] = "a part of the path is a file, not a folder"
_NO_ROOM[errno.EISDIR] = "it is a folder"
_NO_ROOM[errno.ENAMETOOLONG] = "the name is too long"


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success flush it to the disk and rename it to ``path``.

    On any exception, Ctrl-C included, the temporary file is removed and ``path`` keeps what it held. Missing
    parent folders are made. With a URL the file is made on this machine, and put there whole.

    Raises:
        StoreError: the disk is full, or the place can't be written to. Nothing is left behind.
    """
    if is_url(path):
        system, local = file_system(os.fspath(path))
        if system is not None:
            with uploaded(os.fspath(path)) as temporary:
                yield temporary
            return
        path = local
    path = Path(path)
    # Processes of several machines may have one number: in containers it is often 1.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[None]:
    """Turn the errors of a medium that can't take more into a ``StoreError`` that names ``path``."""
    try:
        yield
    except Exception as error:
        reason = _NO_ROOM.get(_errno(error) or 0)
        if reason is None:
            raise
        remedy = "make room" if _errno(error) in _FULL else "choose another place"
        raise StoreError(
            f"can't write {path}: {reason}. Nothing was left half-written; {remedy} and run again"
        ) from error


@contextlib.contextmanager
def reading(path: PathLike, remedy: str = "") -> Iterator[None]:
    """Turn what a file raises that is missing, unreadable or damaged into a ``StoreError`` that names it.

    Args:
        path: the file.
        remedy: how to have a whole file again, such as "embed it again".
    """
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist{remedy and f'; {remedy}'}") from error
    except OSError as error:
        reason = "it is a folder" if os.path.isdir(path) else error.strerror or str(error)
        raise StoreError(f"{path} can't be read: {reason}") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} is truncated or corrupt ({error}){remedy and f'; {remedy}'}") from error


def make_folder(path: PathLike) -> None:
    """Make a folder, and those that it lies in, where they are missing.

    Raises:
        StoreError: the place can't be written to, or a file is in the way.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = _NO_ROOM.get(error.errno or 0, error.strerror)
        raise StoreError(f"can't make the folder {path}: {reason}; choose another place") from error


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors reports the operating system's error as text only.
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems refuse fsync on a folder or altogether; the rename is atomic there all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(directory: PathLike) -> list[Path]:
    """Delete the temporary files that a killed run left in ``directory``; return their paths."""
    stale = [path for path in Path(directory).glob(".*.tmp") if _TEMPORARY.match(path.name)]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write bytes, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: JSON has none.

    Raises:
        ValueError: the value holds a NaN or an infinity.
        StoreError: the disk is full.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a file name that isn't UTF-8: escaped, it survives
            text = json.dumps(value, indent=2, allow_nan=False, default=str)
    write_text(path, text + "\n")


def read_json(path: PathLike) -> Any:
    """Read a JSON file of ours.

    Raises:
        StoreError: the file is missing, unreadable or not JSON.
    """
    with reading(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def write_tensors(path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write CPU tensors to one safetensors file, atomically; the same contents give the same bytes.

    Raises:
        StoreError: the disk is full.
    """
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        temporary.chmod(mode)  # the library makes files that only their owner may read
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put a safetensors header's metadata in the order of its keys; the library writes them in any order."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # always, unless the library's own spelling of JSON changes
            file.seek(8)
            file.write(text.ljust(size))


def map_tensors(path: PathLike, remedy: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memory-map a safetensors file; return its tensors and its metadata. Pages are read when touched.

    Args:
        path: the file.
        remedy: how to have a whole file again, for the message about one that isn't.

    Raises:
        StoreError: the file is missing, truncated or corrupt.
    """
    from safetensors import safe_open

    with reading(path, remedy), safe_open(os.fspath(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118

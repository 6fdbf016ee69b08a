"""Files of a corpus, here or behind a URL, hashed while they are read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from finescope.corpus.lines import Mark
from finescope.errors import InputError, ReadError
from finescope.storage.identity import sha256_file

_BLOCK = 1 << 20
_LASTING = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, LookupError, ImportError, NotImplementedError),
)
"""What is as it is however often a file is read; all else may pass, whatever a store's library calls it."""


@dataclass
class File:
    """One file: a local path, or a path in an ``fsspec`` file system."""

    path: str
    system: Any = field(default=None, repr=False)
    """The ``fsspec`` file system; None for the local disk."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Columns that folders named ``key=value`` give to every row."""
    label: str = ""
    """What messages call it: its path within the folder that was named, else its name."""
    _digest: tuple[Any, str] | None = field(default=None, repr=False)
    _marks: list[Mark] = field(default_factory=list, repr=False)
    _kept: tuple[Any, list[Mark]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.label = self.label or self.name

    @property
    def name(self) -> str:
        """The last part of the path."""
        if self.system is None:
            return os.path.basename(self.path)
        return self.path.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stamp()[0]

    def open(self) -> IO[bytes]:
        """Open for reading bytes.

        Raises:
            InputError: a file behind a URL can't be had; as ``reading``.
        """
        if self.system is None:
            return open(self.path, "rb")
        with self.reading():
            return self.system.open(self.path, "rb")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what a file system raises into an error that names the file.

        Raises:
            ReadError: reading failed, which may pass.
            InputError: a file behind a URL isn't there, or no one may read it.
            What a local file raises that isn't there, or holds something else.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            lasting = isinstance(error, _LASTING)
            if self.system is None and (lasting or not isinstance(error, OSError) or error.errno is None):
                raise
            kind = InputError if lasting else ReadError
            raise kind(f"{self.path} can't be read: {type(error).__name__}: {error}") from error

    def fingerprint(self) -> dict[str, Any]:
        """Return name, size and SHA-256 of the bytes, which are read unless they just have been."""
        stamp = self.stamp()
        if self._digest is None or self._digest[0] != stamp:
            if self.system is None:
                self._digest = (stamp, sha256_file(self.path))
            else:
                with contextlib.closing(HashedReader(self)) as file:
                    while file.read(_BLOCK):
                        pass
        digest = self._digest
        found = {"name": self.name, "bytes": stamp[0], "sha256": digest[1] if digest else ""}
        return {**found, "constants": self.constants} if self.constants else found

    def known(self) -> list[Any]:
        """Return, as plain values, the hash and what the file looked like when it had it."""
        self.fingerprint()
        return list(self._digest) if self._digest else []

    def keep_digest(self, stamp: Any, digest: str) -> None:
        """Take the hash of a file that was read whole, if it hasn't changed since ``stamp``."""
        if stamp == self.stamp():
            self._digest = (stamp, digest)

    @property
    def marks(self) -> list[Mark]:
        """Places in ascending order that reading can begin at, from a pass over a file of lines."""
        if self._kept is not None:
            stamp, marks = self._kept
            self._marks, self._kept = marks if stamp == self.stamp() else [], None
        return self._marks

    def keep_marks(self, stamp: Any, marks: list[Mark]) -> None:
        """Take the marks of an earlier pass, which are of no use if the file has changed since ``stamp``."""
        self._kept = stamp, marks

    def stamp(self) -> tuple[int, Any]:
        """Return size and what changes when the contents do."""
        if self.system is None:
            found = os.stat(self.path)
            return found.st_size, (found.st_mtime_ns, found.st_ino)
        with self.reading():
            info = self.system.info(self.path)
        marks = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created", "blob_id")
        return int(info.get("size") or 0), tuple(str(info[name]) for name in marks if name in info)


class HashedReader(io.RawIOBase):
    """Reads a file from start to end; when the end is reached the file knows its hash, if that is wanted."""

    def __init__(self, file: File, hashed: bool = True) -> None:
        self._owner, self._stamp = file, file.stamp()
        self._file = file.open()
        known = file._digest is not None and file._digest[0] == self._stamp
        self._hash = hashlib.sha256() if hashed and not known else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._hash is None and self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._owner.reading():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        with self._owner.reading():
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        if self._hash is not None:
            self._hash.update(block)
            if not block and len(buffer):
                self._owner.keep_digest(self._stamp, self._hash.hexdigest())
        return len(block)

    def close(self) -> None:
        self._file.close()
        super().close()

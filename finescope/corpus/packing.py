"""Files of text that may be packed: gzip, zstd, bzip2, xz."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from finescope.corpus.files import File, HashedReader
from finescope.errors import InputError

PACKED = (".gz", ".zst", ".bz2", ".xz")
_BUFFER = 1 << 20


def opened(file: File, packing: str, *, hashed: bool = True) -> Any:
    """Open a file for reading its bytes, unpacked.

    Args:
        file: the file.
        packing: one of ``PACKED``, or something else for plain files.
        hashed: whether it is hashed as it is read.

    Raises:
        InputError: a package that is needed isn't installed.
    """
    raw = io.BufferedReader(HashedReader(file, hashed), _BUFFER)
    if packing == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")  # it has a buffer of its own
    if packing == ".zst":
        return io.BufferedReader(ZstdReader(raw, file.label), _BUFFER)
    if packing == ".bz2":
        return io.BufferedReader(StreamReader(raw, bz2.BZ2Decompressor), _BUFFER)
    if packing == ".xz":
        return io.BufferedReader(StreamReader(raw, lzma.LZMADecompressor), _BUFFER)
    return raw


@contextlib.contextmanager
def unpacking(place: str, packing: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into an error that names the place.

    Raises:
        InputError: naming it.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{place}: can't be {'unpacked' if packing in PACKED else 'read'} ({error}); "
            "the file is truncated or corrupt"
        ) from error


class _Unpacker(io.RawIOBase):
    """Raw stream of what is unpacked from a file, which it closes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class StreamReader(_Unpacker):
    """Raw stream over what several streams of bzip2 or xz hold, one after the other.

    Zero bytes may stand between and after them: xz pads its streams so. Python's own files end there, and
    where a later stream is damaged, without a word; here that is an error.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        super().__init__(file)
        self._new = new
        self._stream: Any = None
        self._begun = False
        self._rest = b""

    def readinto(self, buffer: Any) -> int:
        if not len(buffer):
            return 0
        while True:
            if self._stream is None and not self._next_stream():
                return 0
            block = b""
            if self._stream.needs_input:
                block = self._rest or self._file.read(_BUFFER)
                self._rest = b""
                if not block:
                    raise EOFError("it ends within a stream")
            found = self._stream.decompress(block, len(buffer))
            if self._stream.eof:
                self._rest, self._stream = self._stream.unused_data, None
            if found:
                buffer[: len(found)] = found
                return len(found)

    def _next_stream(self) -> bool:
        """Begin the next stream; return whether there is one."""
        while True:
            self._rest = self._rest or self._file.read(_BUFFER)
            if not self._rest:
                if self._begun:
                    return False
                raise EOFError("it is empty")
            if self._begun:
                self._rest = self._rest.lstrip(b"\0")
            if self._rest:
                self._stream, self._begun = self._new(), True
                return True


class ZstdReader(_Unpacker):
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
        super().__init__(file)
        self._frame: Any = None
        self._ready = b""

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(_BUFFER)
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

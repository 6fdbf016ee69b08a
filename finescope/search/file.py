"""The file of an index: one safetensors file, written in one pass and mapped when read.

The tensors are ``rows.P`` (or ``indptr.P``, ``indices.P`` and ``values.P`` of sparse codes) for each part P,
``packed.P.B`` for block B of a part, and ``ids``. They are written block by block, because neither the rows
nor their packed copies need to fit into memory, so this does not use the safetensors library; any program
that does can read them.

A packed copy is only right for the rows it was made from, so a change of the file must not go unnoticed. The
header holds the SHA-256 of every tensor, and the second at which the file was written, which the file then
gets as its time of modification. Whatever writes to a file moves that time; a copy of the file may too, and
then the checksums decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from finescope.errors import StoreError
from finescope.ops.schemas import call
from finescope.storage.files import PathLike, atomic_path
from finescope.storage.identity import sha256_json
from finescope.storage.mapping import MappedFile

FORMAT = "finescope-index"
_VERSION = 3  # 2: packed copies may hold a common mean; 3: int16, not bfloat16, where there is no AMX
_REMEDY = "save the index again"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Room that the header gets for each tensor: its entry and its checksum.
_ENTRY_BYTES = 320
# Elements that are held against a checksum at a time.
_READ = 8 << 20


class IndexWriter:
    """Adds tensors one after the other to a file that begins with room for their header.

    Attributes:
        facts: what else to keep, as JSON can.
    """

    def __init__(self, file: BinaryIO, tensors: int) -> None:
        self._file = file
        self._room = -(-(4096 + _ENTRY_BYTES * tensors) // 64) * 64 - 8  # tensors begin on multiples of 64
        self.facts: dict[str, Any] = {}
        self._header: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._end = 0
        file.seek(8 + self._room)

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: Iterable[Tensor]) -> None:
        """Write a tensor, given as blocks of its rows. Sizes must not grow, so that all are aligned."""
        digest, begin = hashlib.sha256(), self._end
        for block in blocks:
            if block.numel():
                content = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(content)
                self._file.write(content)
                self._end += len(content)
        self._header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, self._end],
        }
        self._digests[name] = digest.hexdigest()

    def finish(self) -> int:
        """Write the header; returns the time, in ns, that the file must get."""
        written = int(time.time()) // 2 * 2  # file systems keep times to two seconds or better
        contents = {"facts": self.facts, "sha256": self._digests, "written": written}
        metadata = {"format": FORMAT, "version": str(_VERSION), "contents": json.dumps(contents)}
        metadata["digest"] = sha256_json([self._header, contents])
        text = json.dumps({"__metadata__": metadata, **self._header}, separators=(",", ":")).encode()
        if len(text) > self._room:
            raise RuntimeError(f"{len(text)} bytes of header, room for {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        return written * 1_000_000_000


@contextlib.contextmanager
def writing(path: PathLike, tensors: int) -> Iterator[IndexWriter]:
    """Yield what writes an index file of at most so many tensors; it gets its name once all is written.

    Raises:
        StoreError: the disk is full, or the place can't be written to. Nothing is left behind.
    """
    if Path(path).is_dir():
        raise StoreError(f"can't write {path}: it is a folder, and an index is one file; choose another name")
    with atomic_path(path) as temporary:
        with open(temporary, "wb", buffering=0) as file:
            writer = IndexWriter(file, tensors)
            yield writer
            modified = writer.finish()
        os.utime(temporary, ns=(modified, modified))


def read(path: PathLike, *, mmap: bool) -> tuple[dict[str, Tensor], dict[str, Any], MappedFile | None]:
    """Return the tensors, the facts, and the mapping that the tensors lie in.

    Args:
        path: a file written by ``write``.
        mmap: map the tensors rather than reading them. The bytes are then held against their checksums only
            if the file was touched since it was written.

    Raises:
        StoreError: the file is missing, truncated, corrupt, changed, or no index.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            header, contents, start = _header(path, file, status.st_size)
        mapping = MappedFile.open(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise StoreError(f"{path} is a folder; an index is one file, written by Index.save") from error
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error}") from error
    tensors = {}
    for name, entry in header.items():
        place = start + entry["data_offsets"][0]
        tensors[name] = mapping.tensor(_DTYPES[entry["dtype"]], entry["shape"], place)
    if not mmap or status.st_mtime_ns != contents["written"] * 1_000_000_000:
        _verify(path, tensors, contents["sha256"], mapping)
    if mmap:
        return tensors, contents["facts"], mapping
    return {name: tensor.clone() for name, tensor in tensors.items()}, contents["facts"], None


def _header(path: PathLike, file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Entries, contents, and where the data starts, all checked against each other and the file's size."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise StoreError(f"{path} is truncated or no index; {_REMEDY}")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        kind, version = metadata["format"], int(metadata["version"])
        if kind == FORMAT and version > _VERSION:
            raise StoreError(f"{path} is of version {version}; this release reads up to {_VERSION}")
        if kind == FORMAT and version < _VERSION:
            raise StoreError(
                f"{path} is of version {version}, whose packed copies this release doesn't read "
                f"(version {_VERSION}); save the index again from its rows"
            )
        contents = json.loads(metadata["contents"])
        if kind != FORMAT or metadata["digest"] != sha256_json([header, contents]):
            raise ValueError("its header isn't what was written")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is corrupt or no index ({error}); {_REMEDY}") from error
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != end:
        raise StoreError(
            f"{path} has {size} bytes instead of {end}: it is truncated or was changed; {_REMEDY}"
        )
    return header, contents, 8 + length


def _verify(
    path: PathLike, tensors: Mapping[str, Tensor], digests: Mapping[str, str], mapping: MappedFile
) -> None:
    for name, tensor in tensors.items():
        digest = hashlib.sha256()
        flat = tensor.reshape(-1)
        for first in range(0, len(flat), _READ):
            block = flat[first : first + _READ]
            mapping.read_ahead(block)
            digest.update(block.view(torch.uint8).numpy().data)
            mapping.release(block)
        if digest.hexdigest() != digests[name]:
            raise StoreError(
                f"{path} was changed after it was written: {name} isn't what was saved, so its rows and "
                f"their packed copies don't belong together; {_REMEDY}"
            )


def check_packed(path: PathLike, rows: Tensor, packed: list[Tensor], tall: int, metric: str) -> None:
    """Refuse packed copies that the engine can't take for those of these rows."""
    if packed and len(packed) != -(-len(rows) // tall):
        raise StoreError(
            f"{path} is corrupt: {len(packed)} packed copies for {len(rows)} rows; save the index again"
        )
    for number, copy in enumerate(packed):
        block = rows[number * tall : (number + 1) * tall]
        try:
            call("cosine_topk_packed", block[:0], block, copy, 0, metric)
        except (RuntimeError, ValueError) as error:
            raise StoreError(
                f"{path} is corrupt: the packed copy of rows {number * tall} to "
                f"{number * tall + len(block) - 1} isn't one of them; save the index again"
            ) from error

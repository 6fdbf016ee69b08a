"""Shards as they are read: whole, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.files import PathLike, map_tensors
from finescope.storage.identity import sha256_file
from finescope.storage.manifest import Manifest, ShardEntry


def require_complete(directory: PathLike, manifest: Manifest) -> None:
    """Refuse a store whose writing was cut off.

    Raises:
        StoreError: it isn't complete.
    """
    if not manifest.complete:
        raise StoreError(
            f"{directory} is unfinished ({len(manifest.shards)} shards); run what wrote it again to resume"
        )


def check_sizes(directory: PathLike, entry: ShardEntry) -> None:
    """Refuse a shard whose files are missing or of another size than when written.

    Raises:
        StoreError: naming the file.
    """
    for name, size in ((entry.file, entry.bytes), (entry.table, entry.table_bytes)):
        path = Path(directory) / name
        try:
            actual = path.stat().st_size
        except OSError as error:
            raise StoreError(f"{path} is missing; remove the folder and write it again") from error
        if actual != size:
            raise StoreError(
                f"{path} has {actual} bytes instead of {size}: it is truncated or was changed; "
                "remove the folder and write it again"
            )


def verify_shard(directory: PathLike, entry: ShardEntry) -> None:
    """Refuse a shard whose bytes aren't those written.

    Raises:
        StoreError: naming the file.
    """
    check_sizes(directory, entry)
    for name, digest in ((entry.file, entry.sha256), (entry.table, entry.table_sha256)):
        path = Path(directory) / name
        if sha256_file(path) != digest:
            raise StoreError(
                f"{path} is corrupt: its bytes aren't those written; remove the folder and write it again"
            )


def map_shard(directory: PathLike, entry: ShardEntry, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Memory-map the tensors of one shard.

    Raises:
        StoreError: the file is missing, truncated, corrupt, or lacks one of ``names``.
    """
    check_sizes(directory, entry)
    path = Path(directory) / entry.file
    tensors, _ = map_tensors(path)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise StoreError(f"{path} is corrupt: it has no tensor {missing[0]!r}")
    return tensors


def read_tables(directory: PathLike, shards: Sequence[ShardEntry], columns: Sequence[str] | None) -> Any:
    """Return the Parquet tables of shards as one pyarrow table.

    Raises:
        StoreError: one is missing, truncated or corrupt.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def one(entry: ShardEntry) -> Any:
        path = Path(directory) / entry.table
        check_sizes(directory, entry)
        try:
            return pq.read_table(path, columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path} is corrupt: {error}") from error

    try:
        return pa.concat_tables([one(entry) for entry in shards], promote_options="permissive")
    except pa.ArrowException as error:
        raise StoreError(f"the tables of {directory} don't go together: {error}") from error

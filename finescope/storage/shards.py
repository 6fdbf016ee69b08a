"""A folder of numbered shards with a manifest: the ledger behind the activation and the code store.

Every shard is a safetensors file (the bulk) and a Parquet file (ids and metadata). Both are written under
temporary names and renamed; the manifest, rewritten last, is what makes a shard count. So a run that is
killed at any moment leaves a folder whose listed shards are whole, and the next run goes on after the last
of them, with what pieces tell of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.files import (
    PathLike,
    atomic_path,
    make_folder,
    map_tensors,
    remove_temporaries,
    write_json,
    write_tensors,
)
from finescope.storage.identity import differences, sha256_file, sha256_json
from finescope.storage.lock import FolderLock
from finescope.storage.manifest import MANIFEST, VERSION, Manifest, ShardEntry, read_manifest
from finescope.storage.pieces import Pieces

_SHOWN = 4


class ShardWriter:
    """Adds shards to a folder, going on where an earlier run of the same work stopped.

    Attributes:
        shards: what is noted about the finished shards.
        complete: whether the work was finished already.
        facts: plain values about the whole store.
        pieces: what of the next shard is done already.
    """

    def __init__(
        self, directory: PathLike, kind: str, fingerprint: Mapping[str, Any], *, mode: str = "resume"
    ) -> None:
        """Open or make the folder and take its lock.

        Args:
            directory: the folder.
            kind: what is stored, such as "finescope-codes".
            fingerprint: plain values that decide the contents: input, model, options.
            mode: "resume" goes on with work of the same fingerprint and refuses any other; "overwrite" starts
                anew, removing the shards that are there and nothing else.

        Raises:
            StoreError: another run holds the folder; it holds other work; a finished shard is damaged.
        """
        if mode not in ("resume", "overwrite"):
            raise ValueError(f"mode must be 'resume' or 'overwrite', got {mode!r}")
        self._directory = Path(directory)
        self._kind = kind
        self._fingerprint = dict(fingerprint)
        self.facts: dict[str, Any] = {}
        self.shards: list[ShardEntry] = []
        self.complete = False
        self._schema: Any = None
        self.pieces = Pieces(directory, sha256_json([kind, self._fingerprint]))
        make_folder(self._directory)
        self._lock = FolderLock(self._directory)
        try:
            self._take_over(mode)
        except BaseException:
            self._lock.release()
            raise

    def _take_over(self, mode: str) -> None:
        remove_temporaries(self._directory)
        path = self._directory / MANIFEST
        if not path.exists():
            self._remove_shards([])
            if mode == "overwrite":
                self.pieces.clear()
            return
        if mode == "overwrite":
            path.unlink()
            self._remove_shards([])
            self.pieces.clear()
            return
        found = read_manifest(self._directory, self._kind)
        changed = differences(found.fingerprint, self._fingerprint)
        if changed:
            shown = "; ".join(map(str, changed[:_SHOWN]))
            raise StoreError(
                f"{self._directory} holds work on something else: {shown}. "
                "Choose another folder, or overwrite this one"
            )
        for entry in found.shards:
            verify_shard(self._directory, entry)
        self.shards, self.complete, self.facts = found.shards, found.complete, found.facts
        self._remove_shards([name for entry in self.shards for name in (entry.file, entry.table)])

    def _remove_shards(self, keep: list[str]) -> None:
        """Delete shard files the manifest doesn't list: a run was killed between a file and the manifest."""
        for pattern in ("shard-*.safetensors", "shard-*.parquet"):
            for path in self._directory.glob(pattern):
                if path.name not in keep:
                    path.unlink()

    def write(self, tensors: Mapping[str, Tensor], table: Any, notes: Mapping[str, Any]) -> None:
        """Add one shard.

        Args:
            tensors: CPU tensors by name.
            table: a pyarrow table, one line a document.
            notes: plain values for the manifest (counts, and what resuming needs).

        Raises:
            StoreError: the disk is full. Shards written before stay, this one leaves nothing.
        """
        import pyarrow.parquet as pq

        self._schema = self._merged_schema(table)
        stem = f"shard-{len(self.shards):05d}"
        bulk, meta = self._directory / f"{stem}.safetensors", self._directory / f"{stem}.parquet"
        with atomic_path(meta) as temporary:
            pq.write_table(table, temporary)
        header = {"format": self._kind, "version": str(VERSION)}
        scalars = {name: value for name, value in self.facts.items() if isinstance(value, (str, int))}
        header.update({name: str(value) for name, value in scalars.items()})
        write_tensors(bulk, tensors, header)
        self.shards.append(ShardEntry(*_known(bulk), *_known(meta), table.num_rows, dict(notes)))
        self._write_manifest()
        self.pieces.clear()

    def _merged_schema(self, table: Any) -> Any:
        """Return the columns of all shards together; found out now and not when they are read, hours later.

        Raises:
            StoreError: a column holds one type of value in an earlier shard and another in this one.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._schema is None:
            paths = [self._directory / entry.table for entry in self.shards]
            schemas = [pq.read_schema(path) for path in paths]
        else:
            schemas = [self._schema]
        try:
            return pa.unify_schemas([*schemas, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise StoreError(
                f"a column changes its type between rows, which a table can't hold: {error}. Leave "
                "that column out, or give it one type"
            ) from error

    def describe(self, **facts: Any) -> None:
        """Set plain facts about the whole store (width, …) for the manifest and every shard's header."""
        self.facts.update(facts)

    def finish(self) -> None:
        """Declare the work complete."""
        self.complete = True
        self._write_manifest()

    def _write_manifest(self) -> None:
        manifest = {
            "format": self._kind,
            "version": VERSION,
            "complete": self.complete,
            "facts": self.facts,
            "fingerprint": self._fingerprint,
            "shards": [entry.to_dict() for entry in self.shards],
        }
        write_json(self._directory / MANIFEST, manifest)

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _known(path: Path) -> tuple[str, int, str]:
    """Name, size and hash of a file."""
    return path.name, path.stat().st_size, sha256_file(path)


def id_column(ids: Sequence[str]) -> Any:
    """Return ids as a Parquet column.

    Raises:
        StoreError: an id that isn't valid Unicode; names it.
    """
    import pyarrow as pa

    try:
        return pa.array(list(ids), pa.string())
    except UnicodeEncodeError as error:
        raise StoreError(
            f"id {error.object!r} holds half a surrogate pair, which no file can hold; change that id"
        ) from error


def printable(place: str) -> str:
    """Return a place whose file name may hold bytes that aren't UTF-8, as text that can be stored."""
    return place.encode("utf-8", "replace").decode("utf-8")


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

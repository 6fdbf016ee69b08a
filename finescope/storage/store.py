"""What stores of every kind have in common: a finished folder that is read, and one that is being written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.checked import check_sizes, read_tables, require_complete, verify_shard
from finescope.storage.files import PathLike
from finescope.storage.manifest import ShardEntry, read_manifest
from finescope.storage.shards import ShardWriter

_Writer = TypeVar("_Writer", bound="StoreWriter")


class Store:
    """The documents of a finished folder of shards, N of them.

    Attributes:
        directory: the folder.
        facts: plain values about the whole store.
        num_tokens: tokens of all documents.
    """

    def __init__(self, directory: PathLike, kind: str) -> None:
        """Open a finished store of a kind; shards are mapped when touched.

        Raises:
            StoreError: no store, unfinished, or a file that is missing or truncated (named).
        """
        self.directory = directory
        manifest = read_manifest(directory, kind)
        require_complete(directory, manifest)
        self._shards: Sequence[ShardEntry] = manifest.shards
        for shard in self._shards:
            check_sizes(directory, shard)
        self.facts = manifest.facts
        self.num_tokens = sum(shard.tokens for shard in self._shards)
        self._origin = manifest.fingerprint
        self._rows = sum(shard.rows for shard in self._shards)

    def __len__(self) -> int:
        return self._rows

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this store from another: its origin and the hashes of its shards."""
        return {"origin": self._origin, "shards": [shard.sha256 for shard in self._shards]}

    def verify(self) -> None:
        """Read every byte and compare with the hashes taken when it was written.

        Raises:
            StoreError: naming the first damaged file.
        """
        for shard in self._shards:
            verify_shard(self.directory, shard)

    def ids(self) -> list[str]:
        """Return the N ids in order."""
        return list(self._table(["id"])["id"].to_pylist())

    def _table(self, columns: Sequence[str] | None, shards: Sequence[ShardEntry] | None = None) -> Any:
        """Return the tables of all shards, or of some, as one."""
        return read_tables(self.directory, self._shards if shards is None else shards, columns)

    def table_blocks(self, columns: Sequence[str], rows: int) -> Iterator[Any]:
        """Yield the metadata of all rows in order, pyarrow tables of so many rows; the last may have fewer.

        Raises:
            StoreError: a table is missing or damaged.
        """
        import pyarrow as pa

        waiting = list[ShardEntry]()
        rest = self._table(columns, self._shards[:1]).slice(0, 0)
        for number, shard in enumerate(self._shards, start=1):
            waiting.append(shard)
            held = rest.num_rows + sum(entry.rows for entry in waiting)
            if held < rows and number < len(self._shards):
                continue
            rest = pa.concat_tables([rest, self._table(columns, waiting)], promote_options="permissive")
            waiting = []
            while rest.num_rows >= rows:
                yield rest.slice(0, rows)
                rest = rest.slice(rows)
        if rest.num_rows:
            yield rest

    def _starts(self) -> Iterator[tuple[int, ShardEntry]]:
        """Yield every shard with the number of its first row."""
        start = 0
        for shard in self._shards:
            yield start, shard
            start += shard.rows


class StoreWriter:
    """Writes a store shard by shard; a finished shard is never written again.

    Use it as a context manager and call ``finish`` at the end; leaving without it keeps the finished shards.
    """

    def __init__(
        self,
        directory: PathLike,
        kind: str,
        fingerprint: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        mode: str,
        planned: bool = False,
    ) -> None:
        """Open or make the folder.

        Args:
            directory, kind, fingerprint, mode, planned: as ``ShardWriter``.
            facts: plain values to keep in the manifest.

        Raises:
            StoreError: as ``ShardWriter``.
        """
        self._shards = ShardWriter(directory, kind, fingerprint, mode=mode, planned=planned)
        self._shards.describe(**facts)

    @property
    def complete(self) -> bool:
        """Whether an earlier run finished the work."""
        return self._shards.complete

    @property
    def entries(self) -> Sequence[ShardEntry]:
        """What is noted about the finished shards: where to go on."""
        return self._shards.shards

    @property
    def num_rows(self) -> int:
        """Rows in finished shards."""
        return self._shards.rows

    @property
    def num_tokens(self) -> int:
        """Tokens behind the rows in finished shards."""
        return self._shards.tokens

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts in the manifest."""
        return self._shards.facts

    @property
    def pieces_due(self) -> bool:
        """Whether it is time to keep what of the next shard is done: see ``keep_piece``."""
        return self._shards.pieces.due()

    def keep_piece(self, tensors: Mapping[str, Tensor], **notes: Any) -> None:
        """Keep what was done since the last piece, so that a killed run loses no more than a minute.

        Raises:
            StoreError: the disk is full.
        """
        self._shards.pieces.write(len(self.entries), tensors, notes)

    def pieces(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Yield, once, tensors and notes of the pieces of the next shard that an earlier run left."""
        return self._shards.pieces.found(len(self.entries))

    def describe(self, **facts: Any) -> None:
        """Add facts to the manifest, which is written with the next shard."""
        self._shards.describe(**facts)

    def _finish(self, nothing: str, **facts: Any) -> None:
        """Declare the store complete.

        Raises:
            StoreError: there is ``nothing`` in it.
        """
        if not self.entries:
            raise StoreError(nothing)
        self._shards.describe(**facts)
        self._shards.finish()

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.close()

"""A folder of numbered shards with a manifest: the ledger behind the activation and the code store.

Every shard is a safetensors file (the bulk) and a Parquet file (ids and metadata). Both are written under
temporary names and renamed; the manifest, rewritten last, or a note beside them is what makes a shard count.
So a run that is killed at any moment leaves a folder whose listed shards are whole, and the next run makes
the others, with what pieces tell of the one at work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.checked import verify_shard
from finescope.storage.files import PathLike, make_folder, remove_temporaries, write_json
from finescope.storage.identity import differences
from finescope.storage.lock import FolderLock
from finescope.storage.manifest import MANIFEST, VERSION, Manifest, ShardEntry, read_manifest
from finescope.storage.shardfiles import ShardFiles

_SHOWN = 4


class ShardWriter:
    """Adds shards to a folder, going on where an earlier run of the same work stopped.

    Shards come one after the other (``write``), or were made elsewhere, in any order (``adopt``).

    Attributes:
        files: where shards are written, and of what store.
        shards: what is noted about the finished shards up to the first that is missing.
        ahead: about those after it, by number.
        rows, tokens: in all finished shards.
        complete: whether the work was finished already.
        damaged: numbers of finished shards that were found damaged, and are to be made again.
        pieces: what of the next shard is done already.
    """

    def __init__(
        self,
        directory: PathLike,
        kind: str,
        fingerprint: Mapping[str, Any],
        *,
        mode: str = "resume",
        planned: bool = False,
    ) -> None:
        """Open or make the folder and take its lock.

        Args:
            directory: the folder.
            kind: what is stored, such as "finescope-codes".
            fingerprint: plain values that decide the contents: input, model, options.
            mode: "resume" goes on with work of the same fingerprint and refuses any other; "overwrite" starts
                anew, removing the shards that are there and nothing else.
            planned: each shard can be made by itself: one that is damaged is made again, and not refused.

        Raises:
            StoreError: another run holds the folder; it holds other work; a finished shard is damaged.
        """
        if mode not in ("resume", "overwrite"):
            raise ValueError(f"mode must be 'resume' or 'overwrite', got {mode!r}")
        self.files = ShardFiles(Path(directory), kind, dict(fingerprint), {})
        self.shards: list[ShardEntry] = []
        self.ahead: dict[int, ShardEntry] = {}
        self.rows = self.tokens = 0
        self.complete = False
        self.damaged: list[int] = []
        self._listed = 0
        self._begun = False
        self._schema: Any = None
        self.pieces = self.files.pieces()
        make_folder(directory)
        self._lock = FolderLock(directory)
        try:
            self._take_over(mode, planned)
        except BaseException:
            self._lock.release()
            raise

    @property
    def _directory(self) -> Path:
        return self.files.directory

    def _take_over(self, mode: str, planned: bool) -> None:
        remove_temporaries(self._directory)
        path = self._directory / MANIFEST
        if mode == "overwrite":
            path.unlink(missing_ok=True)
            self._remove_files(set())
            self.pieces.clear()
            return
        found = finished_shards(self.files)
        whole = dict(found.shards)
        for number, entry in found.shards.items():
            try:
                verify_shard(self._directory, entry)
            except StoreError:
                if not planned:
                    raise
                self.damaged.append(number)
                del whole[number]
        self._remove_files({name for entry in whole.values() for name in (entry.file, entry.table)})
        self.files = replace(self.files, facts=found.facts)
        if self.damaged:
            for number, entry in whole.items():
                self.files.note(number, entry)
        for number in sorted(whole):
            self._take(number, whole[number])
        self.complete, self._begun = found.complete and not self.damaged, found.begun
        self._listed = 0 if self.damaged else found.listed
        if self.damaged:
            self._write_manifest()

    def _remove_files(self, keep: set[str]) -> None:
        """Delete shards that nothing lists: a run was killed between a file and its note."""
        for pattern in ("shard-*.safetensors", "shard-*.parquet"):
            for path in self._directory.glob(pattern):
                if path.name not in keep:
                    path.unlink()
        for path in self._directory.glob("shard-*.json"):
            if f"{path.stem}.safetensors" not in keep:
                path.unlink()

    def write(self, tensors: Mapping[str, Tensor], table: Any, notes: Mapping[str, Any]) -> None:
        """Add the next shard.

        Args:
            tensors, table, notes: as ``ShardFiles.write``.

        Raises:
            StoreError: the disk is full. Shards written before stay, this one leaves nothing.
        """
        self._schema = self._merged_schema(table.schema)
        number = len(self.shards)
        self._take(number, self.files.write(number, tensors, table, notes))
        self._write_manifest()
        self.pieces.clear()

    def adopt(self, number: int, entry: ShardEntry) -> None:
        """Add a shard that ``files`` have written and noted.

        The manifest lists it at once or some shards later: written anew for each of many, it would be written
        out a number of times that grows with their square.

        Raises:
            StoreError: its columns aren't those of the other shards.
        """
        import pyarrow.parquet as pq

        self._schema = self._merged_schema(pq.read_schema(self._directory / entry.table))
        self._take(number, entry)
        if len(self.shards) > self._listed + self._listed // 16:
            self._write_manifest()

    def _take(self, number: int, entry: ShardEntry) -> None:
        self.ahead[number] = entry
        self.rows, self.tokens = self.rows + entry.rows, self.tokens + entry.tokens
        while len(self.shards) in self.ahead:
            self.shards.append(self.ahead.pop(len(self.shards)))

    def _merged_schema(self, schema: Any) -> Any:
        """Return the columns of all shards together; found out now and not when they are read, hours later.

        Raises:
            StoreError: a column holds one type of value in an earlier shard and another in this one.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._schema is None:
            paths = [self._directory / entry.table for entry in (*self.shards, *self.ahead.values())]
            schemas = [pq.read_schema(path) for path in paths]
        else:
            schemas = [self._schema]
        try:
            return pa.unify_schemas([*schemas, schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise StoreError(
                f"a column changes its type between rows, which a table can't hold: {error}. Leave "
                "that column out, or give it one type"
            ) from error

    @property
    def finished(self) -> dict[int, ShardEntry]:
        """All finished shards, by number."""
        return {**dict(enumerate(self.shards)), **self.ahead}

    def describe(self, **facts: Any) -> None:
        """Set plain facts about the whole store (width, …) for the manifest and every shard's header."""
        self.files = replace(self.files, facts={**self.files.facts, **facts})

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values about the whole store."""
        return self.files.facts

    def begin(self) -> None:
        """Say in the folder what is made there, before others make shards of it."""
        if not self._begun:
            self._write_manifest()

    def finish(self) -> None:
        """Declare the work complete.

        Raises:
            ValueError: a shard is missing.
        """
        if self.ahead:
            raise ValueError(f"shard {len(self.shards)} is missing")
        self.complete = True
        self._write_manifest()
        self.pieces.clear()

    def _write_manifest(self) -> None:
        write_manifest(self.files, self.shards, complete=self.complete)
        for number in range(self._listed, len(self.shards)):
            self.files.forget(number)
        self._listed, self._begun = len(self.shards), True

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SharedShards:
    """A store that several processes make shards of, none of which holds it alone.

    Attributes:
        finished: by number, the shards that are whole, of those asked for.
    """

    def __init__(self, files: ShardFiles, numbers: Iterable[int], *, mode: str = "resume") -> None:
        """Take part in the work, beginning it if need be.

        Args:
            files: what is made.
            numbers: of the shards that this process is to make; the finished ones are verified.
            mode: "resume", or "overwrite" what others have begun.

        Raises:
            StoreError: another run holds the folder alone, or it holds other work.
        """
        self._files = files
        make_folder(files.directory)
        self._lock = FolderLock(files.directory, shared=True)
        try:
            self.finished = self._take_part(numbers, mode)
        except BaseException:
            self._lock.release()
            raise

    def _take_part(self, numbers: Iterable[int], mode: str) -> dict[int, ShardEntry]:
        if not (self._files.directory / MANIFEST).exists() or mode == "overwrite":
            write_manifest(self._files, [], complete=False)
        self.check()
        known, whole = finished_shards(self._files).shards, {}
        for number in set(numbers) & known.keys():
            with contextlib.suppress(StoreError):  # it is made again
                verify_shard(self._files.directory, known[number])
                whole[number] = known[number]
        return whole

    def check(self) -> None:
        """Refuse to go on when another process has begun other work here.

        Raises:
            StoreError: it has.
        """
        found = read_manifest(self._files.directory, self._files.kind)
        _refuse_other_work(self._files, found)

    def __enter__(self) -> SharedShards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


@dataclass
class Finished:
    """What is finished of a store that may be in work.

    Attributes:
        shards: by number.
        begun: whether the folder says that this work was begun there.
        listed: how many of them the manifest lists, from the first on.
        complete: whether it was declared complete.
        facts: plain values about the whole store.
    """

    shards: dict[int, ShardEntry] = field(default_factory=dict)
    begun: bool = False
    listed: int = 0
    complete: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def finished_shards(files: ShardFiles) -> Finished:
    """Return what manifest and notes say is finished of a store; nothing is verified.

    Raises:
        StoreError: the folder holds other work, or its manifest is damaged.
    """
    noted = files.noted()
    if not (files.directory / MANIFEST).exists():
        return Finished(noted)
    found = read_manifest(files.directory, files.kind)
    other = not found.shards and differences(found.fingerprint, files.fingerprint)
    if other and not replace(files, fingerprint=found.fingerprint).noted():
        return Finished()  # it was begun, no more
    _refuse_other_work(files, found)
    shards = {**noted, **dict(enumerate(found.shards))}
    return Finished(shards, True, len(found.shards), found.complete, found.facts)


def _refuse_other_work(files: ShardFiles, found: Manifest) -> None:
    changed = differences(found.fingerprint, files.fingerprint)
    if changed:
        shown = "; ".join(map(str, changed[:_SHOWN]))
        raise StoreError(
            f"{files.directory} holds work on something else: {shown}. "
            "Choose another folder, or overwrite this one"
        )


def write_manifest(files: ShardFiles, shards: Sequence[ShardEntry], *, complete: bool) -> None:
    """Write what a store says of itself."""
    manifest = {
        "format": files.kind,
        "version": VERSION,
        "complete": complete,
        "facts": dict(files.facts),
        "fingerprint": dict(files.fingerprint),
        "shards": [entry.to_dict() for entry in shards],
    }
    write_json(files.directory / MANIFEST, manifest)


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

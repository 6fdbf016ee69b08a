"""The files of single shards: all that a process needs to know that makes some of a store's, in any order.

A shard counts when a note beside it says so, or the manifest does. Whoever holds the folder alone puts what
the notes say into the manifest (``shards``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.files import atomic_path, read_json, write_json, write_tensors
from finescope.storage.identity import sha256_file, sha256_json
from finescope.storage.manifest import VERSION, ShardEntry
from finescope.storage.pieces import Pieces


@dataclass(frozen=True)
class ShardFiles:
    """Where the shards of one store are written, and what they are shards of. It can be pickled.

    Attributes:
        directory: the folder.
        kind: what is stored, such as "finescope-codes".
        fingerprint: plain values that decide the contents.
        facts: plain values about the whole store; those that are numbers or text stand in every shard.
    """

    directory: Path
    kind: str
    fingerprint: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What tells shards of this work from those of other work."""
        return sha256_json([self.kind, dict(self.fingerprint)])

    def pieces(self) -> Pieces:
        """Return where is kept what of a shard is done before it is whole."""
        return Pieces(self.directory, self.identity)

    def write(
        self, number: int, tensors: Mapping[str, Tensor], table: Any, notes: Mapping[str, Any]
    ) -> ShardEntry:
        """Write the two files of a shard, each whole or not at all; return what is to be noted of it.

        Args:
            number: of the shard, from 0.
            tensors: CPU tensors by name.
            table: a pyarrow table, one line a document.
            notes: plain values to be noted (counts, and what resuming needs).

        Raises:
            StoreError: the disk is full.
        """
        import pyarrow.parquet as pq

        bulk, meta = (self.directory / f"{_stem(number)}{ending}" for ending in (".safetensors", ".parquet"))
        with atomic_path(meta) as temporary:
            pq.write_table(table, temporary)
        header = {"format": self.kind, "version": str(VERSION)}
        scalars = {name: value for name, value in self.facts.items() if isinstance(value, (str, int))}
        header.update({name: str(value) for name, value in scalars.items()})
        write_tensors(bulk, tensors, header)
        return ShardEntry(*_known(bulk), *_known(meta), table.num_rows, dict(notes))

    def note(self, number: int, entry: ShardEntry) -> None:
        """Note beside a shard that it is whole."""
        write_json(self._note(number), {"identity": self.identity, **entry.to_dict()})

    def noted(self) -> dict[int, ShardEntry]:
        """Return, by number, the shards of this work that notes say are whole."""
        found = {}
        for path in self.directory.glob("shard-*.json"):
            with contextlib.suppress(StoreError, ValueError):
                entry = self.entry_of(read_json(path))
                if entry is not None:
                    found[int(path.stem.partition("-")[2])] = entry
        return found

    def entry_of(self, held: Any) -> ShardEntry | None:
        """Return what a note says of a shard of this work; None if it is of other work, or can't be read."""
        try:
            return ShardEntry.from_dict(held) if held.pop("identity") == self.identity else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # it says nothing, and its shard is made again

    def forget(self, number: int) -> None:
        """Remove the note beside a shard: the manifest has it."""
        with contextlib.suppress(OSError):
            self._note(number).unlink()

    def _note(self, number: int) -> Path:
        return self.directory / f"{_stem(number)}.json"


def _stem(number: int) -> str:
    return f"shard-{number:05d}"


def _known(path: Path) -> tuple[str, int, str]:
    """Name, size and hash of a file."""
    return path.name, path.stat().st_size, sha256_file(path)

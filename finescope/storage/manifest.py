"""What a store says of itself: its manifest, as it is written and as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finescope.errors import StoreError
from finescope.storage.files import PathLike, read_json

MANIFEST = "manifest.json"
VERSION = 1
_ENTRY = {"file": str, "bytes": int, "sha256": str, "table": str, "table_bytes": int, "table_sha256": str}
_ENTRY |= {"rows": int}


@dataclass(frozen=True)
class ShardEntry:
    """What a manifest says of a shard.

    Attributes:
        file, bytes, sha256: name, size and hash of the file of tensors.
        table, table_bytes, table_sha256: those of the table.
        rows: how many documents it holds.
        notes: plain values that the kind of store has of its own: counts, and what resuming needs.
    """

    file: str
    bytes: int
    sha256: str
    table: str
    table_bytes: int
    table_sha256: str
    rows: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens behind the documents."""
        return int(self.notes.get("tokens", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        own = {name: getattr(self, name) for name in _ENTRY}
        return {**own, **self.notes}

    @classmethod
    def from_dict(cls, found: Any) -> ShardEntry:
        """Return what ``to_dict`` has made plain.

        Raises:
            ValueError: it isn't that.
        """
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), _ENTRY[name]) for name in _ENTRY
        ):
            raise ValueError("not an entry of a shard")
        notes = {name: value for name, value in found.items() if name not in _ENTRY}
        return cls(**{name: found[name] for name in _ENTRY}, notes=notes)


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        complete: whether the work was finished.
        facts: plain values about the whole store.
        fingerprint: plain values that decide the contents.
        shards: the finished shards, in order.
    """

    complete: bool
    facts: dict[str, Any]
    fingerprint: dict[str, Any]
    shards: list[ShardEntry]


def read_manifest(directory: PathLike, kind: str) -> Manifest:
    """Return the manifest of a store.

    Raises:
        StoreError: there is none, it is damaged, or it is of another kind or a newer version.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise StoreError(f"{directory} does not exist")
    path = directory / MANIFEST
    if not path.is_file():
        raise StoreError(f"{directory} is not a store: it has no {MANIFEST}")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != kind:
        said = found.get("format") if isinstance(found, dict) else None
        raise StoreError(f"{directory} holds {said or 'something else'}, not {kind}")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        raise StoreError(f"{path} is of version {found.get('version')}; this release reads up to {VERSION}")
    missing = {"complete", "facts", "fingerprint", "shards"} - found.keys()
    if missing:
        raise StoreError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    damaged = StoreError(f"{path} is damaged: its list of shards isn't what was written")
    if not isinstance(found["shards"], list) or not isinstance(found["facts"], dict):
        raise damaged
    try:
        entries = [ShardEntry.from_dict(entry) for entry in found["shards"]]
    except ValueError:
        raise damaged from None
    return Manifest(bool(found["complete"]), found["facts"], found["fingerprint"], entries)


def begun_with(directory: PathLike) -> dict[str, Any] | None:
    """Return the fingerprint of the work that was begun in a folder; None if none can be read."""
    try:
        found = read_json(Path(directory) / MANIFEST)["fingerprint"]
    except (StoreError, KeyError, TypeError):
        return None
    return dict(found) if isinstance(found, dict) else None

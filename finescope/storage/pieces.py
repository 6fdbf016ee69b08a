"""What of a shard at work is done already, kept now and then, so that a killed run loses a minute."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.errors import StoreError
from finescope.storage.files import PathLike, map_tensors, write_tensors

SECONDS = 60.0
"""Work between two pieces, about."""


class Pieces:
    """Small files beside the shards. They go when the shard is written, and count only for the same work.

    Each process has an object of its own, and works on one shard at a time.
    """

    def __init__(self, directory: PathLike, identity: str) -> None:
        """Name the folder; nothing is read yet.

        Args:
            directory: that of the shards.
            identity: of the work; pieces of other work are not found.
        """
        self._directory, self._identity = Path(directory), identity
        self._shard = self._count = 0
        self._last = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time for the next piece."""
        return time.monotonic() - self._last >= SECONDS

    def write(self, shard: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Keep what was done since the last piece.

        Args:
            shard: number of the shard at work.
            tensors: CPU tensors by name.
            notes: plain values.

        Raises:
            StoreError: the disk is full.
        """
        self._turn_to(shard)
        header = {"identity": self._identity, "shard": str(shard), "notes": json.dumps(notes)}
        write_tensors(self._path(self._count), tensors, header)
        self._count += 1
        self._last = time.monotonic()

    def found(self, shard: int) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Yield tensors and notes of the pieces of a shard that an earlier run left, in their order.

        One that is damaged ends them: its work, and what follows, is done again.
        """
        self._turn_to(shard)
        while True:
            try:
                tensors, header = map_tensors(self._path(self._count))
                mine = header.get("identity") == self._identity and header.get("shard") == str(shard)
                notes = json.loads(header["notes"]) if mine else None
            except (StoreError, KeyError, ValueError):
                notes = None
            if notes is None:
                self._remove(self._count)
                return
            self._count += 1
            yield tensors, notes

    def clear(self, shard: int | None = None) -> None:
        """Forget the pieces of a shard, which is written; None: of all."""
        if shard is None:
            for path in self._directory.glob("piece-*"):
                with contextlib.suppress(OSError):
                    path.unlink()
        else:
            self._turn_to(shard)
            self._remove(0)
            with contextlib.suppress(OSError):
                self.alone(shard).unlink()
        self._count, self._last = 0, time.monotonic()

    def alone(self, shard: int) -> Path:
        """Return where is noted what is known of a shard that ends who is at it; it goes with the pieces."""
        return self._directory / f"piece-{shard:05d}.json"

    def _turn_to(self, shard: int) -> None:
        if shard != self._shard:
            self._shard, self._count = shard, 0

    def _path(self, number: int) -> Path:
        return self._directory / f"piece-{self._shard:05d}-{number:05d}.safetensors"

    def _remove(self, first: int) -> None:
        for path in self._directory.glob(f"piece-{self._shard:05d}-*.safetensors"):
            if path.name >= self._path(first).name:
                with contextlib.suppress(OSError):
                    path.unlink()

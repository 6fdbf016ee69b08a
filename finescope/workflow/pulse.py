"""What the processes that embed are doing, in small files that anybody may read: ``finescope status``."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.storage.files import write_text

if TYPE_CHECKING:
    from finescope.corpus.plan import Shard
    from finescope.embeddings.embedder import Embedder
    from finescope.storage.manifest import ShardEntry

FOLDER = "workers"
"""Below the folder of a store in work."""
TOTAL = "total.json"
SECONDS = 2.0
"""Between two words of one process, at least."""


@dataclass
class Beat:
    """What one process says of itself.

    Attributes:
        host, pid: who it is.
        shard, first, rows: the shard at work, its first row and its rows; None between two shards.
        done, tokens: rows and tokens of it that are done.
        finished: rows of the shards that it has finished.
        seconds: since it began, by a clock that is never set.
        error: what stopped it; "" if nothing did.
    """

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    shard: int | None = None
    first: int = 0
    rows: int = 0
    done: int = 0
    tokens: int = 0
    finished: int = 0
    seconds: float = 0.0
    error: str = ""


class Pulse:
    """Embeds, and says every few seconds how far it is."""

    def __init__(self, embedder: Embedder) -> None:
        """Watch an embedder; whoever it tells of its progress goes on being told."""
        self._embedder, self._tell = embedder, embedder.progress
        embedder.progress = self._progress
        self._beat, self._began, self._last = Beat(), time.monotonic(), 0.0
        folder = embedder.order.files.directory / FOLDER
        self._path = folder / f"{self._beat.host}-{self._beat.pid}.json"

    def __call__(self, shard: Shard) -> tuple[int, ShardEntry]:
        """Embed a shard; see ``Embedder``."""
        return self._watched(shard, self._embedder)

    def carefully(self, shard: Shard, ended: int, how: str) -> tuple[int, ShardEntry]:
        """Embed a shard row by row; see ``Embedder``."""
        return self._watched(shard, lambda shard: self._embedder.carefully(shard, ended, how))

    def _watched(
        self, shard: Shard, embed: Callable[[Shard], tuple[int, ShardEntry]]
    ) -> tuple[int, ShardEntry]:
        beat = self._beat
        beat.shard, beat.first, beat.rows, beat.done, beat.tokens = (
            shard.number,
            shard.first,
            shard.rows,
            0,
            0,
        )
        self._say()
        try:
            found = embed(shard)
        except Exception as error:
            beat.error = f"{type(error).__name__}: {error}"
            self._say()
            raise
        beat.shard, beat.finished = None, beat.finished + shard.rows
        self._say()
        return found

    def _progress(self, rows: int, tokens: int) -> None:
        self._beat.done, self._beat.tokens = rows, tokens
        if time.monotonic() - self._last >= SECONDS:
            self._say()
        if self._tell is not None:
            self._tell(rows, tokens)

    def _say(self) -> None:
        self._last = time.monotonic()
        self._beat.seconds = round(self._last - self._began, 3)
        write_text(self._path, json.dumps(asdict(self._beat)) + "\n")


def announce(folder: Path, shards: Sequence[Shard]) -> None:
    """Say beside a store how much there is to do."""
    total = {"shards": len(shards), "rows": sum(shard.rows for shard in shards)}
    write_text(folder / FOLDER / TOTAL, json.dumps(total) + "\n")


def fall_silent(folder: Path) -> None:
    """Remove what was said beside a store: it is finished."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder / FOLDER)


def beats(folder: Path) -> list[tuple[Beat, float]]:
    """Return what the processes at work on a store have said last, and how many seconds ago, by the clock."""
    found = []
    for path in sorted((folder / FOLDER).glob("*-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append((Beat(**json.loads(path.read_text())), max(0.0, time.time() - path.stat().st_mtime)))
    return found


def announced(folder: Path) -> dict[str, Any] | None:
    """Return what ``announce`` has said, or None."""
    try:
        found = json.loads((folder / FOLDER / TOTAL).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""What the processes that embed are doing, in small files that anybody may read: ``finescope status``."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.errors import StoreError
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
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Beat:
    """What one process says of itself.

    Attributes:
        host, pid: who it is.
        shard, first, rows: the shard at work, its first row and its rows; None between two shards.
        done, tokens: rows and tokens of it that are done.
        finished, finished_tokens: rows and tokens of the shards that it has finished.
        seconds: since it began, by a clock that is never set.
        error: what stopped it; "" if nothing did.
        boot, clock: what tells since when its machine has been running, and the seconds since then.
    """

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    shard: int | None = None
    first: int = 0
    rows: int = 0
    done: int = 0
    tokens: int = 0
    finished: int = 0
    finished_tokens: int = 0
    seconds: float = 0.0
    error: str = ""
    boot: str = ""
    clock: float = 0.0


class Pulse:
    """Embeds, and says every few seconds how far it is."""

    def __init__(self, embedder: Embedder) -> None:
        """Watch an embedder; whoever it tells of its progress goes on being told."""
        self._embedder, self._tell = embedder, embedder.progress
        embedder.progress = self._progress
        self._beat, self._began, self._last = Beat(boot=_boot()), time.monotonic(), 0.0
        folder = embedder.order.files.directory / FOLDER
        # Containers may be called alike, and have processes of one number.
        self._path = folder / f"{self._beat.host}-{self._beat.pid}-{secrets.token_hex(4)}.json"

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
        beat.error = ""
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
        beat.finished_tokens += found[1].tokens
        self._say()
        return found

    def _progress(self, rows: int, tokens: int) -> None:
        self._beat.done, self._beat.tokens = rows, tokens
        if time.monotonic() - self._last >= SECONDS:
            self._say()
        if self._tell is not None:
            self._tell(rows, tokens)

    def _say(self) -> None:
        self._last = self._beat.clock = time.monotonic()
        self._beat.seconds = round(self._last - self._began, 3)
        with contextlib.suppress(OSError, StoreError):  # words that nobody gets are no reason to stop
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
    """Return what the processes at work on a store have said last, and how many seconds ago.

    No two clocks are compared that are set, or differ: those of this machine have said when, since it was
    started; and of files written by others their own system is asked for the time.
    """
    found, now = [], None
    for path, text in _said(folder).items():
        with contextlib.suppress(OSError, ValueError, TypeError):
            beat, changed = Beat(**json.loads(text)), path.stat().st_mtime
            if beat.boot and beat.boot == _boot():
                ago = time.monotonic() - beat.clock
            else:
                now = _time_of(folder / FOLDER) if now is None else now
                ago = now - changed
            found.append((beat, max(0.0, ago)))
    return found


def _said(folder: Path) -> dict[Path, str]:
    found = {}
    for path in sorted((folder / FOLDER).glob("*-*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path] = path.read_text()
    return found


@cache
def _boot() -> str:
    """Return what is the same in all processes of a machine since it was started; "" where nothing tells."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _time_of(folder: Path) -> float:
    """Return the time by the clock that files of a folder are stamped by, in seconds."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may only be read
        return time.time()


def followed(
    results: Iterator[tuple[int, ShardEntry]], folder: Path, tell: Callable[[int, int], None]
) -> Iterator[tuple[int, ShardEntry]]:
    """Yield results of shards that others work on; meanwhile say every two seconds how far they are.

    Args:
        results: number of each shard, and what is noted of it.
        folder: the store in work.
        tell: called, from a thread, with (rows, tokens) that are done of unfinished shards, if any are.
    """
    finished: set[int] = set()
    before, over = _said(folder), threading.Event()

    def listen() -> None:
        while not over.wait(SECONDS):
            rows, tokens = _in_work(folder, finished, before)
            if rows:  # until then they load, which tells nothing of how fast they are
                tell(rows, tokens)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        for number, entry in results:
            finished.add(number)
            yield number, entry
    finally:
        over.set()
        thread.join()
        getattr(results, "close", lambda: None)()


def _in_work(folder: Path, finished: Container[int], before: Mapping[Path, str]) -> tuple[int, int]:
    """Return the rows and tokens of unfinished shards that are done, without what was said ``before``."""
    done: dict[int, tuple[int, int]] = {}
    for path, text in _said(folder).items():
        with contextlib.suppress(ValueError, TypeError):
            beat = Beat(**json.loads(text))
            if text != before.get(path) and beat.shard is not None and beat.shard not in finished:
                # A shard whose worker is lost goes on with another, from what it has kept.
                done[beat.shard] = max(done.get(beat.shard, (0, 0)), (beat.done, beat.tokens))
    return sum(rows for rows, _ in done.values()), sum(tokens for _, tokens in done.values())


def announced(folder: Path) -> dict[str, Any] | None:
    """Return what ``announce`` has said, or None."""
    try:
        found = json.loads((folder / FOLDER / TOTAL).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""Work that worker processes do in the tests of engines: quick, and with accidents on demand."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finescope.corpus.plan import Shard
from finescope.errors import InputError


@dataclass(frozen=True)
class Numbering:
    """Notes in a folder which process did which shard.

    Attributes:
        folder: where; a file for each time that a shard is begun.
        kills: shards that end the worker which is at them, and how many times.
        refuses: a shard that raises.
        unread: shards that can't be read, and how many times.
        loads: whether loading ends well.
    """

    folder: Path
    kills: tuple[tuple[int, int], ...] = ()
    refuses: int | None = None
    unread: tuple[tuple[int, int], ...] = ()
    loads: bool = True

    def open(self) -> Callable[[Shard], Any]:
        if not self.loads:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._do

    def _do(self, shard: Shard) -> tuple[int, int, str]:
        before = len(list(self.folder.glob(f"{shard.number}-*")))
        (self.folder / f"{shard.number}-{before}-{os.getpid()}").touch()
        if before < dict(self.kills).get(shard.number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if before < dict(self.unread).get(shard.number, 0):
            raise OSError(errno.EIO, "Input/output error")
        if shard.number == self.refuses:
            raise InputError(f"row {shard.first} is bad")
        return shard.number, os.getpid(), os.environ.get("OMP_NUM_THREADS", "")

"""How far a run is, from its files alone: nobody who works on it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finescope.errors import StoreError
from finescope.progress import counted, duration
from finescope.storage.files import read_json
from finescope.storage.manifest import MANIFEST
from finescope.workflow.layout import CORPUS_CODES
from finescope.workflow.ledger import FOLDER, Ledger
from finescope.workflow.pulse import Beat, announced, beats

SILENT = 120.0
"""Seconds without a word after which a process is taken to be gone."""


@dataclass(frozen=True)
class Status:
    """How far the embedding of a corpus is.

    Attributes:
        stages: those that are finished, in the order in which they were.
        shards, rows: how many there are; None where nobody has said so yet.
        done, done_rows: finished shards, and rows, those of shards in work included.
        running: processes at work.
        failed: processes that were stopped by an error, and whose shard is not done.
        silent: processes that have said nothing for two minutes.
        rate, token_rate: rows and tokens per second of all processes at work.
        slowest: the process with the fewest rows per second.
    """

    stages: list[str]
    shards: int | None
    rows: int | None
    done: int
    done_rows: int
    running: list[Beat]
    failed: list[Beat]
    silent: list[Beat]
    rate: float
    token_rate: float
    slowest: Beat | None

    @property
    def seconds_left(self) -> float | None:
        """Until the last row is embedded, at this rate; None where that can't be said."""
        if self.rows is None or self.rate <= 0:
            return None
        return max(0, self.rows - self.done_rows) / self.rate

    def plain(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "stages": self.stages,
            "shards": self.shards,
            "shards_done": self.done,
            "shards_running": len(self.running),
            "rows": self.rows,
            "rows_done": self.done_rows,
            "rows_per_second": round(self.rate, 3),
            "tokens_per_second": round(self.token_rate, 3),
            "seconds_left": self.seconds_left and round(self.seconds_left, 1),
            "slowest": self.slowest and _name(self.slowest),
            "failed": [
                {"worker": _name(beat), "shard": beat.shard, "error": beat.error} for beat in self.failed
            ],
            "silent": [{"worker": _name(beat), "shard": beat.shard} for beat in self.silent],
        }

    def lines(self) -> list[str]:
        """Return what is to be printed."""
        said = [f"finished: {', '.join(self.stages) or 'nothing yet'}"]
        if self.shards is not None:
            said.append(
                f"embedding: {self.done:,} of {counted(self.shards, 'shard')} done, {len(self.running):,} "
                f"running, {len(self.failed):,} failed; {self.done_rows:,} of {self.rows:,} rows"
            )
        if self.running:
            left = self.seconds_left
            said.append(
                f"{self.rate:,.3g} rows/s, {self.token_rate:,.0f} tokens/s"
                + (f", {duration(left)} left" if left is not None else "")
                + (
                    f"; slowest: {_name(self.slowest)}, {_rate(self.slowest):,.3g} rows/s"
                    if self.slowest
                    else ""
                )
            )
        said += [f"failed: {_name(beat)} at shard {beat.shard}: {beat.error}" for beat in self.failed]
        said += [f"silent for two minutes: {_name(beat)} at shard {beat.shard}" for beat in self.silent]
        return said


def status(run: Path) -> Status:
    """Return how far a run, or a store of codes in work, is.

    Raises:
        StoreError: there is neither.
    """
    codes = run / CORPUS_CODES if (run / CORPUS_CODES).is_dir() else run
    total = announced(codes) or {}
    if not (run / FOLDER).is_dir() and not total and not (codes / MANIFEST).exists():
        raise StoreError(f"{run} holds no run; give the --out of `finescope curate`, `plan` or `embed`")
    finished: dict[int, int] = {}
    if (codes / MANIFEST).exists():
        finished = dict(enumerate(int(entry["rows"]) for entry in read_json(codes / MANIFEST)["shards"]))
    for path in codes.glob("shard-*.json"):
        try:
            finished[int(path.stem.partition("-")[2])] = int(read_json(path)["rows"])
        except (StoreError, ValueError, KeyError, TypeError):
            continue
    running, failed, silent = list[Beat](), list[Beat](), list[Beat]()
    for beat, ago in beats(codes):
        if beat.error:
            if beat.shard not in finished:
                failed.append(beat)
        elif beat.shard is not None and beat.shard not in finished:
            (running if ago < SILENT else silent).append(beat)
    return Status(
        stages=_stages(run),
        shards=total.get("shards"),
        rows=total.get("rows"),
        done=len(finished),
        done_rows=sum(finished.values()) + sum(beat.done for beat in running),
        running=running,
        failed=failed,
        silent=silent,
        rate=sum(map(_rate, running)),
        token_rate=sum(map(_token_rate, running)),
        slowest=min(running, key=_rate, default=None),
    )


def _stages(run: Path) -> list[str]:
    ledger = Ledger(run)
    notes = sorted((run / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [path.stem for path in notes if "seconds" in ledger.facts(path.stem)]


def _rate(beat: Beat) -> float:
    return (beat.finished + beat.done) / beat.seconds if beat.seconds > 0 else 0.0


def _token_rate(beat: Beat) -> float:
    return (beat.finished_tokens + beat.tokens) / beat.seconds if beat.seconds > 0 else 0.0


def _name(beat: Beat) -> str:
    return f"{beat.host}:{beat.pid}"

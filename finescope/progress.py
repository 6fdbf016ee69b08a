"""Progress of long stages: a live bar with rate and time left on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

_Item = TypeVar("_Item")
PLAIN_SECONDS = 15.0
"""Seconds between two plain lines of one stage."""
_TELLING_SHARE, _TELLING_AMOUNT = 0.05, 8192
"""Share of a stage that tells how fast it goes; or so many units, if they are a hundredth of it.

The first texts that a model reads are the longest of thousands: told by them, minutes would be hours.
"""


class Task:
    """One running stage; advance it as work is done."""

    def __init__(self, reporter: Reporter, name: str, total: float | None, unit: str, done: float):
        self.name, self.total, self.unit = name, total, unit
        self.done = self._before = done
        self.note = ""
        self.started = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._reporter = reporter

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Add finished work, in the task's unit; ``note`` is shown behind the numbers."""
        self.update(self.done + amount, note)

    def update(self, done: float, note: str | None = None, total: float | None = None) -> None:
        """Set the finished work, and the total where it has become known."""
        if self._first is None:
            self._first = done, time.monotonic()
        self.done = done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        self._reporter._show(self)

    def wrap(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield ``items``, advancing by one after each."""
        for item in items:
            yield item
            self.advance()

    @property
    def seconds(self) -> float:
        """Seconds since the task began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Units per second, without what was done before the task began."""
        return (self.done - self._before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def speed(self) -> str:
        """The rate in words; an empty string as long as it tells little."""
        return f"{_short(self.rate)} {self.unit}/s" if self._telling else ""

    @property
    def left(self) -> str:
        """The time left in words; an empty string as long as it can't be told.

        What was done up to the first update has no say in it: loading and warming up are in that.
        """
        if not (self._telling and self._first and self.total and self.done < self.total):
            return ""
        done, at = self._first
        passed = time.monotonic() - at
        return f"{duration((self.total - self.done) * passed / (self.done - done))} left"

    @property
    def _telling(self) -> bool:
        if self._first is None or self.done <= self._first[0]:
            return False
        if not self.total:
            return True
        share, amount = (self.done - self._before) / self.total, self.done - self._before
        return share >= _TELLING_SHARE or (share >= 0.01 and amount >= _TELLING_AMOUNT)

    def line(self) -> str:
        """Return name, amount, and, once they tell something, rate and time left as one plain line."""
        amount = f"{self.done:,.0f}" + (f"/{self.total:,.0f}" if self.total else "")
        return ", ".join(
            filter(None, [f"{self.name}: {amount} {self.unit}", self.speed, self.left, self.note])
        )


class Reporter:
    """Prints lines and task progress to standard error, so that standard output stays clean for data."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self.stream = sys.stderr if stream is None else stream
        self.quiet = quiet
        self._live: Any = None
        self._ids: dict[int, Any] = {}
        self._last = 0.0

    @property
    def interactive(self) -> bool:
        """Whether the stream is a terminal."""
        return bool(getattr(self.stream, "isatty", lambda: False)())

    def say(self, message: str) -> None:
        """Print one line."""
        if self.quiet:
            return
        if self._live is not None:
            self._live.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=self.stream, flush=True)

    @contextmanager
    def task(
        self, name: str, total: float | None = None, unit: str = "rows", *, done: float = 0.0
    ) -> Iterator[Task]:
        """Show a stage while the block runs, and one summary line when it ends well.

        Args:
            name: of the stage.
            total: of the units there are; None if unknown.
            unit: what is counted.
            done: how many of them an earlier run has done.
        """
        task = Task(self, name, total, unit, done)
        if self.interactive and not self.quiet and self._live is None:
            self._live = _rich_progress(self.stream)
            self._live.start()
            self._ids[id(task)] = self._live.add_task(name, total=total, note="", rate="", left="")
        self._last = time.monotonic()
        finished = False
        try:
            yield task
            finished = True
        finally:
            if id(task) in self._ids:
                self._live.stop()
                self._live = None
                self._ids.clear()
        if finished:
            rate = task.rate
            note = f", {task.note}" if task.note else ""
            self.say(
                f"{name}: {task.done:,.0f} {unit} in {duration(task.seconds)} ({_short(rate)} {unit}/s){note}"
            )

    def _show(self, task: Task) -> None:
        if self.quiet:
            return
        if id(task) in self._ids:
            self._live.update(
                self._ids[id(task)],
                completed=task.done,
                total=task.total,
                note=task.note,
                rate=task.speed,
                left=task.left,
            )
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self.say(task.line())


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a time span as people say it: ``4.2 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _rich_progress(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )

"""What a training run tells: means of the loss terms, a bar or lines for people, JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

Metrics = dict[str, Any]
Progress = bool | Callable[[Metrics], None] | None
"""None: a bar on a terminal, lines elsewhere; False: silent; a function: called with every record."""

TERMS = ("loss", "fvu", "reconstruction_loss", "l1_loss", "auxk_loss", "multi_topk_fvu", "l0")


class Meter:
    """Running means of :data:`TERMS`, summed on the device so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self.count = 0

    def add(self, terms: Tensor) -> None:
        """Add one step's terms [len(TERMS)]."""
        self._sums += terms
        self.count += 1

    def means(self) -> Metrics:
        """Return the mean of every term since the last :meth:`clear`."""
        return dict(zip(TERMS, (self._sums / max(1, self.count)).tolist(), strict=True))

    def clear(self) -> None:
        """Start a new average."""
        self._sums.zero_()
        self.count = 0

    def state(self) -> list[float]:
        """Return the sums and the count; JSON keeps every bit of them."""
        return [*self._sums.tolist(), float(self.count)]

    def restore(self, state: list[float]) -> None:
        """Take over what :meth:`state` returned."""
        self._sums.copy_(torch.tensor(state[:-1], dtype=torch.float64))
        self.count = int(state[-1])


class MetricsFile:
    """``metrics.jsonl``: one JSON object per line, flushed line by line."""

    def __init__(self, path: Path, step: int) -> None:
        """Open ``path`` for a run that stands at ``step``; lines beyond it belong to steps done again."""
        kept = _lines_up_to(path, step) if step and path.exists() else []
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)
        self._file.flush()

    def write(self, record: Metrics) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Display(Protocol):
    """Something that shows progress to a person."""

    def start(self, total_steps: int | None, step: int) -> None:
        """A run of ``total_steps`` (None: unknown) begins at ``step``."""

    def advance(self, step: int) -> None:
        """``step`` steps are done."""

    def record(self, record: Metrics) -> None:
        """A record of metrics is there."""

    def close(self) -> None:
        """The run ended, well or not."""


class Silent:
    """Shows nothing, or hands every record to a function."""

    def __init__(self, callback: Callable[[Metrics], None] | None = None) -> None:
        self._callback = callback

    def start(self, total_steps: int | None, step: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def record(self, record: Metrics) -> None:
        if self._callback is not None:
            self._callback(record)

    def close(self) -> None: ...


class Lines:
    """Plain lines, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total: int | None = None

    def start(self, total_steps: int | None, step: int) -> None:
        self._total = total_steps

    def advance(self, step: int) -> None: ...

    def record(self, record: Metrics) -> None:
        print(describe(record, self._total), file=self._stream, flush=True)

    def close(self) -> None: ...


class Bar:
    """A progress bar with rate and time to go, for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )

    def start(self, total_steps: int | None, step: int) -> None:
        self._bar.start()
        self._task = self._bar.add_task("training", total=total_steps, completed=step, note="")

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def record(self, record: Metrics) -> None:
        if record["event"] == "epoch":
            self._bar.print(describe(record, None), highlight=False)
        else:
            note = (
                f"FVU {record['fvu']:.4f}  L0 {record['l0']:.1f}  dead {100 * record['dead_fraction']:.1f}%"
                f"  {record['tokens_per_second']:,.0f} tok/s"
            )
            self._bar.update(self._task, note=note)  # short enough for 80 columns

    def close(self) -> None:
        self._bar.stop()


class Reporter:
    """Sends records to the display and, where there is an output directory, to ``metrics.jsonl``."""

    def __init__(self, progress: Progress, metrics: Path | None, total_steps: int | None, step: int) -> None:
        self._display = _display(progress)
        self._file = None if metrics is None else MetricsFile(metrics, step)
        self._total = total_steps
        self._step = step

    def __enter__(self) -> Reporter:
        self._display.start(self._total, self._step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close()
        if self._file is not None:
            self._file.close()

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self._display.advance(step)

    def record(self, record: Metrics) -> None:
        """Show and write one record."""
        self._display.record(record)
        if self._file is not None:
            self._file.write(record)


def describe(record: Metrics, total_steps: int | None) -> str:
    """Return one line of text for a record."""
    if record["event"] == "epoch":
        return (
            f"Epoch {record['epoch']}/{record['num_epochs']}: "
            f"Reconstruction Loss: {record['reconstruction_loss']:.6f}, L1 Loss: {record['l1_loss']:.6f}, "
            f"FVU: {record['fvu']:.4f}, dead: {100 * record['dead_fraction']:.1f}%"
        )
    steps = f"step {record['step']}" + (f"/{total_steps}" if total_steps else "")
    return f"{steps}  epoch {record['epoch']}/{record['num_epochs']}  {_short(record)}"


def _short(record: Metrics) -> str:
    parts = [
        f"loss {record['loss']:.4f}",
        f"FVU {record['fvu']:.4f}",
        f"L1 {record['l1_loss']:.3f}",
        f"AuxK {record['auxk_loss']:.4f}",
        f"FVU(4K) {record['multi_topk_fvu']:.4f}",
        f"L0 {record['l0']:.1f}",
        f"dead {100 * record['dead_fraction']:.1f}%",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if record["eta_seconds"] is not None:
        minutes, seconds = divmod(round(record["eta_seconds"]), 60)
        parts.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
    return "  ".join(parts)


def _display(progress: Progress) -> Display:
    if callable(progress):
        return Silent(progress)
    if progress is False:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines(sys.stderr)


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Return the complete lines of ``path`` whose step isn't beyond ``step``."""
    kept = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that the killed run was writing
            if record.get("step", 0) <= step:
                kept.append(line)
    return kept

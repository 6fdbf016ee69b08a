"""What a training run tells: means of the loss terms, for people as lines or a bar, for programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.progress import Reporter, Task

METRICS_NAME = "metrics.jsonl"

Metrics = dict[str, Any]
Progress = bool | Callable[[Metrics], None] | Reporter | None
"""None: a bar on a terminal, a line per record elsewhere; False: silent; a function: called with every
record; a reporter: shows the training as one of its tasks."""

TERMS = (
    "loss",
    "fvu",
    "reconstruction_loss",
    "l1_loss",
    "auxk_loss",
    "multi_topk_fvu",
    "sparsity_loss",
    "l0",
)


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


class Log:
    """Takes the records of a run: into ``metrics.jsonl``, to a caller's function, onto the screen."""

    def __init__(self, progress: Progress, path: Path | None, total_steps: int | None, step: int) -> None:
        """Prepare the log of a run of ``total_steps`` (None: unknown) that stands at ``step``."""
        self._callback = progress if callable(progress) else None
        self._reporter = progress if isinstance(progress, Reporter) else Reporter(quiet=progress is not None)
        self._tells = progress is None
        self._path, self._total, self._step = path, total_steps, step
        self._stack = ExitStack()

    def __enter__(self) -> Log:
        self._file = None
        if self._path is not None:
            # Lines beyond the step at which the run stands belong to steps that are done again.
            kept = _lines_up_to(self._path, self._step) if self._step and self._path.exists() else []
            self._file = self._stack.enter_context(self._path.open("w", encoding="utf-8"))
            self._file.writelines(kept)
            self._file.flush()
        self._task: Task = self._stack.enter_context(
            self._reporter.task("training", self._total, "steps", done=self._step)
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self._task.update(step)

    def record(self, record: Metrics) -> None:
        """Show and write one record."""
        if self._callback is not None:
            self._callback(record)
        self._task.update(record["step"], _note(record))
        if self._tells and (record["event"] == "epoch" or not self._reporter.interactive):
            self._reporter.say(describe(record, self._total))
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def training_log(folder: Path) -> list[Metrics]:
    """Read the log beside an SAE; [] where there is none (an SAE from elsewhere)."""
    path = folder / METRICS_NAME
    if not path.is_file():
        return []
    return [json.loads(line) for line in _lines_up_to(path, None)]


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


def _note(record: Metrics) -> str:
    """Return what is shown beside a bar: short enough for 80 columns."""
    return (
        f"FVU {record['fvu']:.3f}, L0 {record['l0']:.1f}, dead {record['dead_fraction']:.1%},"
        f" {record['tokens_per_second']:,.0f} tokens/s"
    )


def _lines_up_to(path: Path, step: int | None) -> list[str]:
    """Return the complete lines of ``path``, those only whose step isn't beyond ``step`` if that is given."""
    kept = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that the killed run was writing
            if step is None or record.get("step", 0) <= step:
                kept.append(line)
    return kept

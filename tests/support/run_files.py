"""Runs of a job of ``save_job``, and what they leave that two runs of one job must have in common."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finescope.corpus.plan import Planner
from finescope.progress import Reporter
from finescope.workflow import context
from finescope.workflow.engines.engine import Engine
from finescope.workflow.job import Job
from finescope.workflow.run import Outcome, Run


def job_of(folder: Path, out: Path, **settings: Any) -> Job:
    """Return a quick job on the files of ``save_job``."""
    asked = {
        "model": str(folder / "model"), "layer": "layers.0", "targets": str(folder / "seeds.jsonl"),
        "corpus": [str(folder / "corpus.jsonl")], "out": str(out), "device": "cpu", "draws": 2,
        "label_column": "label", "training": {"num_epochs": 1}, "selection": {"k": 5}, **settings,
    }  # fmt: skip
    return Job.from_dict(asked)


def curated(folder: Path, out: Path, *, engine: Engine | None = None, **settings: Any) -> Outcome:
    """Do the whole job."""
    return Run(job_of(folder, out, **settings), Reporter(quiet=True), engine=engine).curate()


def small_shards(patch: pytest.MonkeyPatch) -> None:
    """Have plans made in shards of 16 rows: what ``save_job`` writes for 20 and 40 comes to four."""
    patch.setattr(context, "Planner", lambda: Planner(16))


def in_small_shards(folder: Path, out: Path) -> Path:
    """Do the whole job in one process, in small shards; return the folder of the run."""
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        curated(folder, out)
    return out


def contents(out: Path) -> dict[str, Any]:
    """Return the bytes of all files of a run; without times of day, seconds and the folder's own name."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir():
            found[name] = "a folder"
        elif name.startswith("stages/") or name == "manifest.json":
            found[name] = _without_times(json.loads(path.read_text()), str(out))
        elif name in ("report.html", "config.yaml"):
            text = path.read_text().replace(str(out), "OUT")
            found[name] = re.sub(r"(?<=<dt>run time</dt><dd>)[^<]*", "", text)
        elif path.name == "metrics.jsonl":
            found[name] = [
                _without_times(json.loads(line), str(out)) for line in path.read_text().splitlines()
            ]
        else:
            found[name] = path.read_bytes()
    return found


def _without_times(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(held, out) for name, held in value.items() if "second" not in name}
    if isinstance(value, list):
        return [_without_times(held, out) for held in value]
    return value.replace(out, "OUT") if isinstance(value, str) else value

"""Tests and benchmarks on a GPU in a fixed time, and a table of what passed: ``python -m benchmarks.gpu``.

``--device cpu --tiny`` goes through every line without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import finescope
from benchmarks.gpu.timing import Bench
from finescope import diagnostics

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
# Sections in the order of their worth, and the seconds each may take.
SECTIONS = {"ceilings": 30, "encode": 120, "dense": 90, "train": 130, "sparse": 70, "streaming": 60}
TESTS = 130
SANITIZER = 120
LEAST_SANITIZER = 40
# Of each of the processes that test at the same time.
THREADS = max(1, (os.cpu_count() or 1) // 4)
# What a killed process needs to go away, and the report to be written.
RESERVE = 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that prove nothing but that it runs")
    parser.add_argument("--seconds", type=float, default=500, help="for everything (default: 500)")
    parser.add_argument("--only", nargs="*", choices=[*SECTIONS, "tests", "sanitizer"], help="some stages")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return run_section(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --tiny goes through the motions without one", file=sys.stderr)
        return 2
    return Run(args).all()


def run_section(args: argparse.Namespace) -> int:
    """The process of one section."""
    bench = Bench(args.device, args.tiny, args.record, args.seconds)
    if args.ceilings and args.ceilings.exists():
        bench.record["ceilings"] = json.loads(args.ceilings.read_text()).get("ceilings", {})
    importlib.import_module(f"benchmarks.gpu.{args.section}").run(bench)
    bench.record["finished"] = True
    bench.save()
    return 0


class Run:
    """All stages, each in a process of its own, within one time limit."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = time.monotonic() + args.seconds
        self.stages = args.only or ["tests", *SECTIONS, "sanitizer"]
        self.scratch = Path(tempfile.mkdtemp(prefix="finescope-gpu-"))
        self.record: dict[str, Any] = {"machine": machine(args.device), "tiny": args.tiny, "stages": {}}
        args.out.mkdir(parents=True, exist_ok=True)
        card = re.sub(r"[^a-z0-9]+", "-", self.record["machine"]["device"].lower()).strip("-")
        day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        self.path = args.out / f"{day}-{card}{'-tiny' if args.tiny else ''}.json"

    def left(self) -> float:
        return self.end - time.monotonic() - RESERVE

    def all(self) -> int:
        print(json.dumps(self.record["machine"], indent=1), flush=True)
        for stage in self.stages:
            began = time.monotonic()
            print(f"== {stage} ({self.left():.0f} s left)", flush=True)
            try:
                found = self.stage(stage)
            except Exception as error:  # the table must come, whatever happens
                found = {"outcome": f"failed: {type(error).__name__}: {error}"}
            found["wall_s"] = round(time.monotonic() - began, 1)
            self.record["stages"][stage] = found
            self.path.write_text(json.dumps(self.record, indent=1) + "\n")
        table, failed = summary(self.record)
        print(table)
        print(f"record: {self.path}")
        return int(failed)

    def stage(self, stage: str) -> dict[str, Any]:
        if self.left() < 5:
            return {"outcome": "skipped: no time left"}
        if stage == "tests":
            return self.tests()
        if stage == "sanitizer":
            if self.left() < LEAST_SANITIZER:
                return {"outcome": "skipped: no time left"}
            command = ["tests/test_cuda_sanitizer.py", "--run-slow", "-k", "memcheck"]
            return self.pytest([command], min(SANITIZER, self.left()))
        return self.section(stage)

    def section(self, stage: str) -> dict[str, Any]:
        record = self.scratch / f"{stage}.json"
        seconds = min(SECTIONS[stage], self.left())
        command = [sys.executable, "-m", "benchmarks.gpu", "--section", stage, "--device", self.args.device]
        command += ["--record", str(record), "--ceilings", str(self.scratch / "ceilings.json")]
        command += ["--seconds", str(seconds * 0.85), *(["--tiny"] if self.args.tiny else [])]
        code, output = run(command, seconds)
        found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
        if found.get("finished"):
            found["outcome"] = "finished"
        else:
            found["outcome"] = "stopped: out of time" if code is None else f"failed: exit status {code}"
            found["output"] = output[-3000:]
        return found

    def tests(self) -> dict[str, Any]:
        """The tests that need a device, every file in a process of its own, four at a time."""
        limit = min(TESTS, self.left())
        began = time.monotonic()
        select = ["-m", "requires_cuda"] if self.args.device == "cuda" else ["tests/test_cuda_info.py"]
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--continue-on-collection-errors"]
        _, output = run([*command, *select], limit, echo=False)
        files = sorted(set(re.findall(r"^(tests/\w+\.py)::", output, re.MULTILINE)))
        if not files:
            return {"outcome": "failed: no tests were found", "output": output[-3000:]}
        marked = ["-m", "requires_cuda and not slow"] if self.args.device == "cuda" else []
        return self.pytest([[file, *marked] for file in files], limit - (time.monotonic() - began))

    def pytest(self, selections: list[list[str]], seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds

        def one(selection: list[str]) -> tuple[str, int | None, str]:
            command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rfE", *selection]
            limit = end - time.monotonic()
            if limit < 5:
                return selection[0], None, "no time left"
            return selection[0], *run(command, limit, echo=False, threads=THREADS)

        found: dict[str, Any] = {"files": {}, "failures": []}
        with ThreadPoolExecutor(4) as pool:
            for name, code, output in pool.map(one, selections):
                counts = re.findall(
                    r"(\d+) (passed|failed|skipped|errors?)\b", output.strip().split("\n")[-1]
                )
                counted = {what: int(number) for number, what in counts}
                # 5: nothing was left to run after deselecting.
                good = code in (0, 5)
                found["files"][name] = {"code": code, **counted}
                print(
                    f"  {name}: {'out of time' if code is None else counted or f'exit status {code}'}",
                    flush=True,
                )
                if not good:
                    found["failures"] += re.findall(r"^(?:FAILED|ERROR) .*$", output, re.MULTILINE) or [name]
                    print("\n".join(output.split("\n")[-25:]), flush=True)
        total = {
            what: sum(file.get(what, 0) for file in found["files"].values())
            for what in ("passed", "failed", "skipped")
        }
        words = ", ".join(f"{number} {what}" for what, number in total.items())
        found["outcome"] = f"failed: {words}" if found["failures"] else f"finished: {words}"
        return found


def run(
    command: list[str], seconds: float, echo: bool = True, threads: int | None = None
) -> tuple[int | None, str]:
    """Run a command for at most so many seconds. Returns its exit status (None: stopped) and its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    parts: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        for line in process.stdout or ():
            parts.append(line)
            if echo:
                print(line, end="", flush=True)

    with process, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            code: int | None = process.wait(max(1.0, seconds))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers that a section may have started
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
        reading.result()
    return code, "".join(parts)


def machine(device: str) -> dict[str, Any]:
    """What a number depends on."""
    state = diagnostics.collect()
    found = {
        "device": "cpu",
        "finescope": finescope.__version__,
        "torch": torch.__version__,
        "python": state["python"],
        "native": state["native"],
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": list(torch.cuda.get_device_capability(0)),
            "memory_bytes": properties.total_memory,
            "processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def summary(record: dict[str, Any]) -> tuple[str, bool]:
    """The table of a record, and whether a test or a comparison with the truth failed."""
    lines = ["", "| stage | result | seconds |", "|---|---|---|"]
    failed = False
    for name, stage in record["stages"].items():
        outcome = stage["outcome"]
        failed |= outcome.startswith("failed")
        lines.append(f"| {name} | {outcome} | {stage.get('wall_s', '')} |")
        for check, result in stage.get("checks", {}).items():
            failed |= result != "passed"
            lines.append(f"| {name}: {check} equals float64 | {result} | |")
        lines += [f"| {name} | {failure} | |" for failure in stage.get("failures", [])[:12]]
    lines += ["", "| work | against | times | wanted | |", "|---|---|---|---|---|"]
    for stage in record["stages"].values():
        for entry in stage.get("ratios", []):
            ratio, target = entry["ratio"], entry["target"]
            shown = "not measured" if ratio is None else f"{ratio:.2f}"
            verdict = (
                ""
                if target is None
                else "skipped"
                if ratio is None
                else "reached"
                if ratio >= target
                else "missed"
            )
            wanted = "" if target is None else f"≥ {target:g}"
            lines.append(f"| {entry['work']} | {entry['against']} | {shown} | {wanted} | {verdict} |")
    for stage in record["stages"].values():
        lines += [f"- {note}" for note in stage.get("notes", [])]
    return "\n".join(lines), failed


if __name__ == "__main__":
    sys.exit(main())

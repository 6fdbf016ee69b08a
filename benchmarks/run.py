"""Run benchmarks and keep their result: ``python -m benchmarks.run [--all] [--add] [-k FILTER] [--rows N]``.

Writes ``benchmarks/results/<date>-<processor>-<instruction set>-<threads>threads.json`` with what every
benchmark found, and from such files the table of the README and RESULTS.md (see ``benchmarks/table.py``).
``--add`` keeps what the file of today holds already, so that the grid can be run in pieces.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness, table

HERE = Path(__file__).parent
DIGITS = {"ratio": 3, "recall": 5, "share": 3}
"""Digits kept of what a benchmark may have found: times over ours, recall of peers, shares of all pairs."""


def pytest(options: list[str], *, root: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run the benchmarks of a checkout; returns pytest-benchmark's record.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", "pytest", "benchmarks", "-q", f"--benchmark-json={record}", *options]
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        subprocess.run(command, cwd=root, env={**os.environ, **(env or {}), "PYTHONPATH": path}, check=True)
        found: dict[str, Any] = json.loads(record.read_text())
        return found


def compact(record: dict[str, Any], date: str) -> dict[str, Any]:
    """Machine, ratios, and the shares that were counted: absolute times mean nothing elsewhere."""
    entries = record["benchmarks"]
    found: dict[str, Any] = {"machine": {**entries[0]["extra_info"]["machine"], "date": date}}
    for kind in DIGITS:
        found[kind] = {
            entry["name"].removeprefix("bench_"): {
                name: float(f"{value:.{DIGITS[kind]}g}") for name, value in entry["extra_info"][kind].items()
            }
            for entry in entries
            if entry["extra_info"].get(kind)
        }
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="the whole grid: hours, and 24 GiB of memory")
    parser.add_argument("--add", action="store_true", help="keep the other results of today's file")
    parser.add_argument("-k", metavar="FILTER", help="as for pytest")
    parser.add_argument("--rows", type=int, help="texts of the benchmarks that read text, to try them")
    given = parser.parse_args()
    options = (["--all"] if given.all else []) + (["-k", given.k] if given.k else [])
    options += [f"--rows={given.rows}"] if given.rows else []
    date = datetime.date.today().isoformat()
    result = compact(pytest(options, root=HERE.parent), date)
    machine = result["machine"]
    words = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['isa']}".lower()).strip("-")
    path = harness.RESULTS / f"{date}-{words}-{machine['threads']}threads.json"
    if given.add and path.exists():
        held = json.loads(path.read_text())
        if held["machine"] != machine:
            parser.error(f"{path} is of another build or machine; leave out --add")
        for kind in DIGITS:
            result[kind] = {**held.get(kind, {}), **result[kind]}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(path)
    for document, text in table.documents().items():
        document.write_text(text)
    print(table.document([result]))


if __name__ == "__main__":
    main()

"""Run benchmarks and keep their result: ``python -m benchmarks.run [--all] [--add] [-k FILTER]``.

Writes ``benchmarks/results/<date>-<processor>-<instruction set>-<threads>threads.json`` with the ratios of
every benchmark, and from such files the table of the README and RESULTS.md (see ``benchmarks/table.py``).
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
    """Machine and ratios: absolute times mean nothing elsewhere."""
    entries = record["benchmarks"]
    return {
        "machine": {**entries[0]["extra_info"]["machine"], "date": date},
        "ratio": {
            entry["name"].removeprefix("bench_"): {
                name: float(f"{ratio:.3g}") for name, ratio in entry["extra_info"]["ratio"].items()
            }
            for entry in entries
        },
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="the whole grid: hours, and 24 GiB of memory")
    parser.add_argument("--add", action="store_true", help="keep the other results of today's file")
    parser.add_argument("-k", metavar="FILTER", help="as for pytest")
    given = parser.parse_args()
    options = (["--all"] if given.all else []) + (["-k", given.k] if given.k else [])
    date = datetime.date.today().isoformat()
    result = compact(pytest(options, root=HERE.parent), date)
    machine = result["machine"]
    words = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['isa']}".lower()).strip("-")
    path = harness.RESULTS / f"{date}-{words}-{machine['threads']}threads.json"
    if given.add and path.exists():
        held = json.loads(path.read_text())
        if held["machine"] != machine:
            parser.error(f"{path} is of another build or machine; leave out --add")
        result["ratio"] = {**held["ratio"], **result["ratio"]}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(path)
    for document, text in table.documents().items():
        document.write_text(text)
    print(table.document([result]))


if __name__ == "__main__":
    main()

"""Compare two commits: ``python -m benchmarks.compare REV_A REV_B [-k FILTER] [--turns N]``.

Each commit gets a worktree and a build of its own; the benchmarks are those of this checkout. They are run in
turns, one process each (A B, B A, A B …), so that what else the machine does hits both alike. What is printed
is how many times longer A took than B, median over median of all turns: above 1, B is faster.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.run import HERE, pytest

ROOT = HERE.parent


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A built checkout of a commit that runs the benchmarks of this one; removed afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        shutil.rmtree(folder / "benchmarks", ignore_errors=True)
        shutil.copytree(HERE, folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "results"))
        print(f"building {revision} …", file=sys.stderr)
        subprocess.run(
            [sys.executable, "build_native.py", "--mode", "auto"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def measure(folder: Path, options: list[str]) -> dict[str, float]:
    """The median seconds of ours in each benchmark, in one process."""
    record = pytest(options, root=folder, env={"FINESCOPE_BENCH_ALONE": "1"})
    return {entry["name"]: entry["extra_info"]["median_s"]["ours"] for entry in record["benchmarks"]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="REV_A")
    parser.add_argument("after", metavar="REV_B")
    parser.add_argument("-k", metavar="FILTER", help="which benchmarks, as for pytest")
    parser.add_argument("--all", action="store_true", help="big ones as well")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    options = (["--all"] if given.all else []) + (["-k", given.k] if given.k else [])
    times: dict[str, defaultdict[str, list[float]]] = {side: defaultdict(list) for side in "AB"}
    with (
        tempfile.TemporaryDirectory() as place,
        worktree(given.before, Path(place) / "a") as a,
        worktree(given.after, Path(place) / "b") as b,
    ):
        for turn in range(given.turns):
            sides = [("A", a), ("B", b)]
            for side, folder in sides if turn % 2 == 0 else sides[::-1]:
                for name, seconds in measure(folder, options).items():
                    times[side][name].append(seconds)
    print(f"\n| work | {given.before} took this many times as long as {given.after} | turns |\n|---|---|---|")
    for name, before in times["A"].items():
        if not (after := times["B"][name]):
            continue
        ratio = statistics.median(before) / statistics.median(after)
        turns = [x / y for x, y in zip(before, after, strict=True)]
        print(f"| {name.removeprefix('bench_')} | {ratio:.2f} | {min(turns):.2f}–{max(turns):.2f} |")


if __name__ == "__main__":
    main()

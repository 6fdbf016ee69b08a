"""Search of a dense corpus on disk, larger than memory if so wanted: rate, memory, and what the disk gives.

    python -m benchmarks.bench_dense_stream --rows 20000000

writes a matrix [rows, 384] of float32 (30.7 GB for 20 million rows) as one ``.npy`` file, maps it, and
searches it with 64 queries in a process of its own. For how fast the disk is, it also reads the file and does
nothing else, by ``read`` and through a mapping. Before each the system is made to drop the file from its
cache. The file is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import data
from finescope import Index
from finescope.ops import native

D, Q, TOP = 384, 64, 100
BLOCK = 100_000


def write(path: Path, rows: int) -> None:
    """Write the matrix; every ten blocks are the same but for their order."""
    kinds = [data.rows("gaussian", BLOCK, D, seed=seed).numpy() for seed in range(10)]
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, D))
    for number, first in enumerate(range(0, rows, BLOCK)):
        part = kinds[number % len(kinds)][: rows - first]
        matrix[first : first + len(part)] = part
        if number % 20 == 19:
            matrix.flush()


def forget(path: Path) -> None:
    """Have the system drop the file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Memory:
    """The most memory this process holds by itself (not pages of files), looked at every 20 ms; in MB."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.before = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._now())

    def _now(self) -> float:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def search(path: Path) -> dict[str, float]:
    """Seconds of a search with nothing prepared, and the memory it took beyond the process's own."""
    matrix = np.load(path, mmap_mode="r")
    queries = data.rows("gaussian", Q, D, seed=99)
    index = Index(matrix)
    with Memory() as memory:
        start = time.perf_counter()
        index.search(queries, TOP)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "extra_mb": memory.peak - memory.before}


def read(path: Path) -> dict[str, float]:
    """Seconds of reading the file by ``read``, 16 MiB at a time."""
    room = bytearray(1 << 24)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(room):
            pass
    return {"seconds": time.perf_counter() - start}


def touch(path: Path) -> dict[str, float]:
    """Seconds of reading the file through a mapping, by all threads."""
    module = native.module("cpu")
    if module is None:
        raise SystemExit("bench_dense_stream needs the native operations")
    matrix = np.load(path, mmap_mode="r")
    start = time.perf_counter()
    module.fingerprint(matrix.ctypes.data, matrix.nbytes)
    return {"seconds": time.perf_counter() - start}


WORK = {"search": search, "read": read, "mapped": touch}


def in_process(name: str, path: Path) -> dict[str, float]:
    """One of ``WORK`` on a file that is not in cache, in a process of its own."""
    forget(path)
    command = [sys.executable, "-m", "benchmarks.bench_dense_stream", "--child", name, "--file", str(path)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    """Measure, and print rates as shares of the disk's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(WORK[given.child](given.file)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        path = Path(temporary) / "rows.npy"
        write(path, given.rows)
        size = path.stat().st_size
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found = {name: in_process(name, path) for name in WORK}
    print(
        f"{torch.get_num_threads()} threads, {given.rows} rows: {size / memory:.2f} of this machine's memory"
    )
    for name in ("read", "mapped"):
        print(f"search: {found[name]['seconds'] / found['search']['seconds']:.2f} of the rate of {name}")
    print(f"search: {found['search']['extra_mb']:.0f} MB beyond the process's own")


if __name__ == "__main__":
    main()

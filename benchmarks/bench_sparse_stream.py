"""Search of a corpus on disk, larger than what may be in memory: rate, memory, and cost per row.

    python -m benchmarks.bench_sparse_stream --rows 10000000

writes a store of document codes (64 non-zeros of 16384 each, 2.7 GB for 10 million rows), searches it with 64
targets in a process of its own, and its first million rows in memory, in turns. The store is removed
afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import data
from finescope import Index, SparseCodes
from finescope.embeddings import CodeStore, CodeStoreWriter
from finescope.ops import sparse_cosine_topk

NNZ, F, Q, TOP = 64, 16384, 64, 100
SHARD, HELD, FEW = 250_000, 1_000_000, 100_000


def write(folder: Path, rows: int) -> None:
    """Write a store of ``rows`` codes, of which every millionth is the same."""
    kinds = [data.codes(min(SHARD, rows), NNZ, F, seed=seed) for seed in range(4)]
    with CodeStoreWriter(folder, F, mode="overwrite") as writer:
        for number, first in enumerate(range(0, rows, SHARD)):
            part = kinds[number % len(kinds)][: rows - first]
            writer.write(part, [str(first + row) for row in range(len(part))])
        writer.finish()


def forget(folder: Path) -> None:
    """Have the system drop the files from its cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb() -> float:
    """The most memory this process had resident; ru_maxrss would count that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def search(folder: Path, rounds: int, cold: bool) -> dict[str, float]:
    """Rows per second (median), and the most memory that this process had resident, in MB."""
    index, queries = Index(CodeStore(folder)), data.codes(Q, NNZ, F, seed=9)
    times = []
    for _ in range(rounds):
        if cold:
            forget(folder)
        start = time.perf_counter()
        index.search(queries, TOP)
        times.append(time.perf_counter() - start)
    return {"rows_per_s": len(index) / statistics.median(times), "peak_mb": peak_mb()}


def in_process(folder: Path, rounds: int, cold: bool) -> dict[str, float]:
    """``search`` in a process of its own, so that the memory of this one does not count."""
    command = [sys.executable, "-m", "benchmarks.bench_sparse_stream", "--child", str(folder)]
    command += ["--rounds", str(rounds), *(["--cold"] if cold else [])]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def in_memory(codes: SparseCodes) -> float:
    """Rows per second of a search with nothing prepared, as a stream cannot prepare anything."""
    queries = data.codes(Q, NNZ, F, seed=9)
    start = time.perf_counter()
    sparse_cosine_topk(queries, codes, TOP)
    return len(codes) / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print shares of the rate in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(search(given.child, given.rounds, given.cold)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        large, small = Path(temporary) / "large", Path(temporary) / "small"
        write(large, given.rows)
        write(small, FEW)
        parts = (part for start, part in CodeStore(large).iter_shards() if start < HELD)
        held = SparseCodes.cat(list(itertools.islice(parts, HELD // SHARD)))
        in_memory(held)
        memory = [in_memory(held)]
        found = {"cached": in_process(large, given.rounds, False)}
        memory.append(in_memory(held))
        found["from disk"] = in_process(large, given.rounds, True)
        memory.append(in_memory(held))
        found["100,000 rows"] = in_process(small, 5, False)
    rate = statistics.median(memory)
    print(f"{torch.get_num_threads()} threads, {given.rows} rows; in memory: {len(held)}")
    for name, one in found.items():
        print(f"{name}: {one['rows_per_s'] / rate:.2f} of the rate in memory, peak {one['peak_mb']:.0f} MB")
    ratio = found["100,000 rows"]["rows_per_s"] / found["cached"]["rows_per_s"]
    print(f"cost of a row among {given.rows} / among {FEW}: {ratio:.2f}")


if __name__ == "__main__":
    main()

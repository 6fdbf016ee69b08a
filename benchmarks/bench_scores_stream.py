"""Scores and selections of a corpus on disk, in processes of their own: seconds a row, and memory.

    python -m benchmarks.bench_scores_stream --rows 10000000

writes a store of document codes (64 non-zeros of 16384 each, float16; 2.7 GB for 10 million rows) and a
Parquet file of as many texts, then runs ``finescope score`` with 64 targets, and ``finescope select`` for 10⁵
rows. Beyond ``--distinct`` rows, shards and texts are hard links to the first ones, under names of their own:
the store is a valid one, but the system may read it from its cache. All of it is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import data
from finescope import SparseCodes
from finescope.embeddings import CodeStore, CodeStoreWriter

NNZ, F, TARGETS, CHOSEN = 64, 16384, 64, 100_000
SHARD = 50_000
"""Rows of a shard."""
PROCESS = """
import resource, sys, time
from pathlib import Path
from finescope.cli import main
start = time.perf_counter()
assert not main(sys.argv[1:], standalone_mode=False)
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, peak)
"""


def halves(codes: SparseCodes) -> SparseCodes:
    """Return codes with float16 values."""
    return SparseCodes(codes.indptr, codes.indices, codes.values.to(torch.float16), F)


def write(folder: Path, rows: int, distinct: int) -> None:
    """Write codes of corpus and targets, and the corpus; ``rows`` is a multiple of ``distinct``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with CodeStoreWriter(folder / "targets", F, facts={"pooling": "sqrt_mean"}) as writer:
        writer.write(halves(data.codes(TARGETS, NNZ, F, seed=9)), [f"target {row}" for row in range(TARGETS)])
        writer.finish()
    (folder / "corpus").mkdir()
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    with (
        CodeStoreWriter(folder / "codes", F, facts={"pooling": "sqrt_mean"}) as writer,
        pq.ParquetWriter(folder / "corpus" / "part-000.parquet", schema) as texts,
    ):
        for number, first in enumerate(range(0, distinct, SHARD)):
            ids = [str(row) for row in range(first, min(first + SHARD, distinct))]
            codes = data.codes(len(ids), NNZ, F, seed=100 + number)
            writer.write(halves(codes), ids, n_tokens=[9] * len(ids))
            texts.write_table(pa.table([ids, [f"text of row {one}" for one in ids]], schema=schema))
        writer.finish()
    repeat(folder, rows // distinct)


def repeat(folder: Path, times: int) -> None:
    """Have the same shards and texts stand in their folders several times, as hard links."""
    path = folder / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    shards = list(manifest["shards"])
    for copy in range(1, times):
        os.link(folder / "corpus" / "part-000.parquet", folder / "corpus" / f"part-{copy:03d}.parquet")
        for shard in shards:
            name = f"shard-{len(manifest['shards']):05d}"
            other = {**shard, "file": f"{name}.safetensors", "table": f"{name}.parquet"}
            for kind in ("file", "table"):
                os.link(folder / "codes" / shard[kind], folder / "codes" / other[kind])
            manifest["shards"].append(other)
    path.write_text(json.dumps(manifest))


def run(*arguments: str | Path) -> dict[str, float]:
    """Run ``finescope`` as a process; return its seconds, processor time, and memory at most, in MB."""
    command = [sys.executable, "-c", PROCESS, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, processor, peak = map(float, done.stdout.splitlines()[-1].split())
    return {"seconds": seconds, "processor_s": processor, "peak_mb": peak}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--distinct", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; must have room")
    given = parser.parse_args()
    distinct = min(given.rows, given.distinct)
    if given.rows % distinct:
        parser.error("--rows is a multiple of --distinct")
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place)
        write(folder, given.rows, distinct)
        scores = folder / "scores.parquet"
        stages = {
            "score": ("score", folder / "codes", folder / "targets", "--out", scores, "--quiet"),
            "select": ("select", scores, "--corpus", folder / "corpus", "-k", str(CHOSEN), "--out",
                       folder / "picked.jsonl", "--quiet"),
        }  # fmt: skip
        print(f"{CodeStore(folder / 'codes')}")
        for name, arguments in stages.items():
            found = run(*arguments)
            each = 1e6 * found["processor_s"] / given.rows
            print(
                f"{name}: {found['seconds']:.1f} s, {each:.2f} µs of processor time a row, "
                f"{found['peak_mb']:,.0f} MB resident at most"
            )


if __name__ == "__main__":
    main()

"""The whole job, a process each: ``finescope curate`` of short texts against the script that one would write.

The script embeds targets and corpus with transformers (batches of 64 sorted by length, mean pooling), takes
every row's largest cosine with a target by NumPy, and writes the 1,000 best rows. Ours trains an autoencoder
on the way, and writes codes, scores, measures and a report besides; "autoencoder given" is ours without
training.
``--rows`` takes another number of sentences.

    python -m benchmarks.bench_curate CORPUS TARGETS OUT K    the script
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import harness, texts

ROWS = 20_000
TARGETS, K = 20, 1000


def by_hand(corpus: Path, targets: Path, out: Path, k: int) -> None:
    """The script."""
    rows, seeds = (path.read_text(encoding="utf-8").splitlines() for path in (corpus, targets))
    tokenizer, model = texts.plain_model()
    left, right = (
        texts.mean_pooled(tokenizer, model, [json.loads(line)["text"] for line in lines]).numpy()
        for lines in (rows, seeds)
    )
    left, right = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left, right))
    best = np.argsort(-(left @ right.T).max(axis=1), kind="stable")[:k]
    out.write_text("".join(rows[row] + "\n" for row in best), encoding="utf-8")


def lines(path: Path) -> int:
    """How many rows a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.big
def bench_curate(benchmark: Any, rows: int, tmp_path: Path) -> None:
    numbers, k = itertools.count(), min(K, rows // 2)

    def ours(*options: str) -> Path:
        run = texts.curate(tmp_path / f"run{next(numbers)}", rows, TARGETS, k, options)
        assert lines(next(run.glob("curated.*"))) == k
        return run

    autoencoder = ours() / "sae"
    given = texts.write_job(tmp_path, rows, TARGETS)

    def script() -> None:
        out = tmp_path / "best.jsonl"
        command = [sys.executable, "-m", "benchmarks.bench_curate", *map(str, (*given, out)), str(k)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert lines(out) == k

    peers = {"plain script": script, "ours, autoencoder given": lambda: ours("--sae", str(autoencoder))}
    harness.compare(benchmark, ours, peers, 1)


if __name__ == "__main__":
    by_hand(*map(Path, sys.argv[1:4]), int(sys.argv[4]))

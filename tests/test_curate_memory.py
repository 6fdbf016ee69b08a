"""A run with labels holds a few numbers a row, however many rows there are.

Every stage that goes through all rows is tried on codes, words and dense vectors as a run writes them, made
up, at two sizes above those at which blocks are full. Fails if: texts, counts of words, codes or dense
vectors of all rows are in memory at once, be it as pages of mapped files; a table of scores costs more than a
few numbers and an id a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, json, sys
from pathlib import Path

import numpy as np
import torch

from finescope.cli.memory import give_back_large_blocks
from finescope.codes import SparseCodes
from finescope.embeddings import CodeStoreWriter
from finescope.progress import Reporter
from finescope.workflow.context import Context
from finescope.workflow.job import Job
from finescope.workflow.layout import CODES
from finescope.workflow.stages.evaluate import Evaluate
from finescope.workflow.stages.report import Report
from finescope.workflow.stages.score import Score
from finescope.workflow.stages.select import Select

LATENTS, PER_ROW, WIDTH, SHARD = 8192, 64, 384, 4096
folder, sizes = Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]


def texts(first, rows):
    drawn = np.random.default_rng(first)
    words = drawn.zipf(1.3, (rows, 40)) % 20_000
    return [" ".join(map("w{}".format, row)) for row in words.tolist()]


def made_up(out, name, rows):
    seed = 0 if name == "corpus" else 10**6
    with CodeStoreWriter(
        out / CODES[name], LATENTS, dense_width=WIDTH, facts={"pooling": "sqrt_mean", "label_column": "label"}
    ) as writer:
        for first in range(0, rows, SHARD):
            count = min(SHARD, rows - first)
            drawn = torch.Generator().manual_seed(seed + first)
            steps = torch.randint(1, LATENTS // PER_ROW, (count, PER_ROW), generator=drawn)
            writer.write(
                SparseCodes(
                    torch.arange(count + 1) * PER_ROW,
                    (steps.cumsum(dim=1) - 1).flatten().to(torch.int32),
                    torch.rand(count * PER_ROW, generator=drawn) + 0.01,
                    LATENTS,
                ),
                [f"{name}-{first + row}" for row in range(count)],
                n_tokens=[40] * count,
                texts=texts(seed + first, count),
                labels=["wanted" if row % 500 == 0 else "other" for row in range(count)],
                dense=torch.randn(count, WIDTH, generator=drawn),
            )
        writer.finish()
    with open(folder / f"{name}.jsonl", "w") as file:
        for first in range(0, rows, SHARD):
            count = min(SHARD, rows - first)
            for row, text in enumerate(texts(seed + first, count)):
                file.write(json.dumps({"id": f"{name}-{first + row}", "text": text}) + "\\n")


def peak(stage, context):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    stage.work(context)
    return resident("VmHWM") - before


def resident(what):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[what].split()[0]) * 1024


give_back_large_blocks()
torch.set_num_threads(2)
found = []
for size in [256, *sizes]:  # the first is for modules and fonts
    out = folder / str(size)
    made_up(out, "corpus", size)
    made_up(out, "targets", 20)
    job = Job.from_dict({
        "model": "", "targets": str(folder / "targets.jsonl"), "corpus": [str(folder / "corpus.jsonl")],
        "out": str(out), "label_column": "label", "target_labels": ["wanted"], "scorer": "contrast+tfidf",
        "selection": {"k": 50}, "report_rows": 10, "draws": 0,
    })
    stages = (Score(), Select(), Evaluate(), Report())
    found.append({stage.name: peak(stage, Context(job, Reporter(quiet=True))) for stage in stages})
print(json.dumps(found[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for peaks")
def test_memory_grows_by_a_few_numbers_a_row(tmp_path: Path) -> None:
    small, large = 40_960, 98_304
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(small), str(large)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    per_row = {stage: (second[stage] - first[stage]) / (large - small) for stage in first}
    # A dense vector alone is 768 bytes, 3072 in float64; codes are 256, and 768 as numbers to reckon with.
    assert max(per_row.values()) < 512, per_row
    assert max(second.values()) < 700 << 20, second

"""What a run does once its codes are there: scores and the table of methods; selection, measures and report.

Codes are made up: 100 latents a row of 8192, 20 targets. "numpy, scipy" is what one writes by hand for the
first: the matrix of all cosines in float64, kept, and a sort of all rows for every draw. The table has the
methods that the first release had; its intervals came from 50 draws with replacement, today's from leaving
out each of the 20 targets. The second has no peer; it runs as its own process, whose largest
resident memory is noted, and asserted below 1 GB. The third holds a run with twenty target sets
against one with one: scores, the rows selected, and what is written of both.

    python -m benchmarks.compare 40dc3f2 HEAD -k workflow --turns 3    both, against the first release
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import finescope
from benchmarks import data, harness
from finescope import SparseCodes
from finescope.curation import CorpusScorer, compare_methods

M, F, T, DRAWS = 100, 8192, 20, 50
ROWS, MANY, SETS = 200_000, 1_000_000, 20
METHODS = ("contrast", "paper", "length", "random")
SHARE = 0.025
"""Relevant rows: one domain of forty."""
RESIDENT = 1 << 30


def bench_workflow_scores(benchmark: Any) -> None:
    """Scores, nearest targets, and the table of methods with its intervals."""
    corpus, targets = data.codes(ROWS, M, F), data.codes(T, M, F, seed=1)
    rng = np.random.default_rng(0)
    relevant, lengths = rng.random(ROWS) < SHARE, rng.integers(10, 500, ROWS)

    def ours() -> dict[str, float]:
        table = CorpusScorer(corpus, weights="idf").score(targets, "contrast")
        assert table.nearest_target.size == ROWS
        return compared(relevant, corpus, targets, lengths)

    expected = by_hand(relevant, corpus, targets)
    found = ours()
    assert abs(found["contrast"] - expected["contrast"]) < 1e-9
    assert abs(found["paper"] - expected["paper"]) < 1e-9
    harness.compare(benchmark, ours, {"scipy": lambda: by_hand(relevant, corpus, targets)}, 1)


def compared(
    relevant: np.ndarray, corpus: SparseCodes, targets: SparseCodes, lengths: np.ndarray
) -> dict[str, float]:
    """Average precision by method; two commits may call this differently."""
    try:
        from finescope.curation import Evidence
    except ImportError:  # up to 40dc3f2
        lines = compare_methods(
            relevant, targets=targets, corpus=corpus, pooling="sqrt_mean", lengths=lengths, draws=DRAWS
        )
    else:
        lines = compare_methods(
            relevant,
            Evidence(corpus, "sqrt_mean", lengths=lengths),
            Evidence(targets, "sqrt_mean"),
            methods=METHODS,
            draws=DRAWS,
        )
    names = {"codes: default": "contrast", "codes: paper": "paper"}
    return {names.get(line.name, line.name): line.metrics["average_precision"].value for line in lines}


def by_hand(relevant: np.ndarray, corpus: SparseCodes, targets: SparseCodes) -> dict[str, float]:
    """The two methods on codes with all draws, as numpy and scipy do them: with all cosines kept."""
    found = {}
    draws = [np.arange(T), *(np.delete(np.arange(T), left) for left in range(T))]
    for name in ("contrast", "paper"):
        rows, seeds = corpus.to_scipy().astype(np.float64), targets.to_scipy().astype(np.float64)
        if name == "contrast":
            weights = np.log((ROWS + 1) / (np.bincount(rows.indices, minlength=F) + 1))
            rows.data *= weights[rows.indices]
            seeds.data *= weights[seeds.indices]
        else:
            rows.data **= 2
            seeds.data **= 2
        for side in (rows, seeds):
            norms = np.sqrt(np.bincount(np.repeat(np.arange(side.shape[0]), M), weights=side.data**2))
            side.data /= np.repeat(norms, M)
        cosines = rows @ seeds.toarray().T
        mean = rows @ np.asarray(rows.mean(axis=0)).ravel()
        values = []
        for draw in draws:
            of_draw = cosines[:, draw]
            score = of_draw.mean(axis=1) - mean if name == "contrast" else of_draw.max(axis=1)
            hits = relevant[np.argsort(-score, kind="stable")]
            values.append(float((np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean()))
        np.std(values[1:])
        found[name] = values[0]
    return found


@pytest.mark.big
def bench_workflow_reselect(benchmark: Any, tmp_path: Path) -> None:
    """Select, evaluate and report a million rows without labels, from saved codes and scores."""
    run = a_run(tmp_path)
    reselect(run, 100)  # scores it first
    peaks: list[int] = []
    harness.compare(benchmark, lambda: peaks.append(reselect(run, 500)), {}, 1)
    benchmark.extra_info["resident_bytes"] = max(peaks)
    print(f"  largest resident memory: {max(peaks) / 1e6:,.0f} MB")
    assert harness.ALONE or max(peaks) < RESIDENT


def reselect(run: Path, k: int) -> int:
    """Run ``finescope select`` as its own process; return the bytes it had resident at most."""
    code = (
        "import resource, sys; from finescope.cli import main; "
        "assert not main(sys.argv[1:], standalone_mode=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, "select", str(run), "-k", str(k), "--quiet"]
    root = str(Path(finescope.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: pip compiles what it installs
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024


def a_run(folder: Path) -> Path:
    """Make up the folder of a run whose rows are embedded: corpus, targets, their codes, and a manifest."""
    from finescope.embeddings import CodeStoreWriter

    out = folder / "run"
    words = np.array([f"word{number}" for number in range(5000)])
    rng = np.random.default_rng(0)
    for name, rows, shard in (("corpus", MANY, 50_000), ("targets", T, T)):
        with (
            (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file,
            CodeStoreWriter(out / "codes" / name, F, facts={"pooling": "sqrt_mean"}) as store,
        ):
            for first in range(0, rows, shard):
                ids = [f"{name}-{row}" for row in range(first, first + shard)]
                texts = [" ".join(row) for row in words[rng.integers(0, words.size, (shard, 12))]]
                for one, text in zip(ids, texts, strict=True):
                    file.write(json.dumps({"id": one, "text": text}) + "\n")
                codes = data.codes(shard, M, F, seed=2 + first)
                codes = SparseCodes(codes.indptr, codes.indices, codes.values.to(torch.float16), F)
                store.write(codes, ids, n_tokens=[len(text) // 4 for text in texts])
            store.finish()
    configuration = {
        "targets": str(folder / "targets.jsonl"),
        "corpus": [str(folder / "corpus.jsonl")],
        "out": str(out),
        "selection": {"k": 100},
        "sae_path": str(out / "sae"),
        "scorer": "contrast",
    }
    (out / "manifest.json").write_text(json.dumps({"configuration": configuration}))
    (out / "stages").mkdir()
    for name in ("corpus", "targets"):
        note = {"key": "made up", "inputs": {"rows": {}}, "finished": True, "facts": {}}
        (out / "stages" / f"embed-{name}.json").write_text(json.dumps(note))
    return out


@pytest.mark.big
def bench_workflow_sets(benchmark: Any, tmp_path: Path) -> None:
    """Score a million rows for twenty sets of twenty targets and select of them, against a run with one."""
    alone = a_run(tmp_path)
    run = with_sets(alone, tmp_path / "sets")
    chosen(alone)
    chosen(run)
    found, expected = (
        pq.read_table(path / "scores.parquet", columns=["score"]) for path in (run / "sets/set0", alone)
    )
    assert found["score"].equals(expected["score"])
    harness.compare(benchmark, lambda: chosen(run), {"one set": lambda: chosen(alone)}, 3)


def with_sets(alone: Path, run: Path) -> Path:
    """Make up a run with several target sets over the codes of another, whose targets are the first set."""
    from finescope.embeddings import CodeStoreWriter

    (run / "stages").mkdir(parents=True)
    (run / "codes").mkdir()
    (run / "codes/corpus").symlink_to(alone / "codes/corpus")
    shutil.copy(alone / "stages/embed-corpus.json", run / "stages")
    given = []
    for number in range(SETS):
        name = f"set{number}"
        place = run / "sets" / name
        (place / "stages").mkdir(parents=True)
        shutil.copy(alone / "stages/embed-targets.json", place / "stages")
        given.append(f"{name}={alone.parent / 'targets.jsonl'}")
        if not number:
            (place / "codes").mkdir()
            (place / "codes/targets").symlink_to(alone / "codes/targets")
            continue
        with CodeStoreWriter(place / "codes/targets", F, facts={"pooling": "sqrt_mean"}) as store:
            codes = data.codes(T, M, F, seed=2**31 + number)
            store.write(codes, [f"targets-{row}" for row in range(T)], n_tokens=[9] * T)
            store.finish()
    configuration = json.loads((alone / "manifest.json").read_text())["configuration"]
    del configuration["targets"]
    configuration = {**configuration, "target_sets": given, "out": str(run)}
    (run / "manifest.json").write_text(json.dumps({"configuration": configuration}))
    return run


def chosen(folder: Path) -> None:
    """Score the rows of a run again, select 1000 for each target set, and write them."""
    from finescope.progress import Reporter
    from finescope.workflow.finished import open_run
    from finescope.workflow.setrun import SetsRun
    from finescope.workflow.stages.score import Score
    from finescope.workflow.stages.select import Select
    from finescope.workflow.stages.sets import ScoreSets, SelectSets

    run = open_run(folder, Reporter(quiet=True), {"selection": {"k": 1000}})
    (folder / "stages/score.json").unlink(missing_ok=True)
    for stage in (ScoreSets(), SelectSets()) if isinstance(run, SetsRun) else (Score(), Select()):
        stage.run(run.context)

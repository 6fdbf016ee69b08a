"""The cheap end of a run: curated rows, metrics and manifest, made anew from saved scores and codes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.corpus import write_rows
from finescope.curation.blocks import resident_codes
from finescope.curation.selection import Selection, select
from finescope.progress import counted
from finescope.storage.files import write_json
from finescope.workflow.layout import (
    CORPUS_CODES,
    MANIFEST,
    METRICS,
    SCORES,
    SELECTION,
    TARGET_CODES,
)
from finescope.workflow.stages import evaluate
from finescope.workflow.tables import ScoredRows, curated_records, write_selection

if TYPE_CHECKING:
    from finescope.workflow.run import Run

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_LIBRARIES = ("numpy", "scipy", "sklearn", "transformers", "pyarrow")


def select_rows(run: Run, scored: ScoredRows) -> tuple[Selection, Path]:
    """Select rows by the job's limits and write them in the format of the corpus; return the file's path."""
    limits = run.job.selection_config()
    arguments: dict[str, Any] = {}
    if limits.strategy != "rank" or limits.near_duplicate is not None or limits.diversity is not None:
        prepared, targets = run.prepared()
        arguments = {"scorer": prepared, "corpus": prepared.corpus, "targets": targets}
    selection = select(scored.table, limits, tokens=scored.tokens, exclude=scored.is_target, **arguments)
    curated = run.out / f"curated{run.corpus.suffix}"
    write_rows(curated, curated_records(run.corpus, scored, selection.indices), run.corpus)
    for ending in _ENDINGS:
        if ending != run.corpus.suffix:  # of an earlier corpus in another format
            (run.out / f"curated{ending}").unlink(missing_ok=True)
    write_selection(run.out / SELECTION, scored, selection)
    _say_selection(run, scored, selection, limits.k)
    return selection, curated


def _say_selection(run: Run, scored: ScoredRows, selection: Selection, wanted: int | None) -> None:
    say = run.reporter.say
    say(f"selected {len(selection):,} of {len(scored.table):,} rows")
    if wanted is not None and len(selection) < wanted:
        reasons = ", ".join(
            f"{count:,} {name.replace('_', ' ')}"
            for name, count in selection.counts.items()
            if count and name != "selected"
        )
        say(f"fewer than the {wanted:,} asked for; the others: {reasons or 'there are no more rows'}")
    if scored.is_target.any():
        say(f"left out as targets themselves: {counted(int(scored.is_target.sum()), 'row')}")


def evaluate_run(
    run: Run, scored: ScoredRows, selection: Selection
) -> tuple[dict[str, Any], evaluate.Labels | None]:
    """Measure the selection, against labels where there are any, and write ``metrics.json``."""
    job = run.job
    prepared, targets = run.prepared()
    metrics = evaluate.base_metrics(scored, selection.indices)
    metrics["dropped"] = {name: count for name, count in selection.counts.items() if name != "selected"}
    metrics["quality"] = evaluate.selection_metrics(
        scored, selection.indices, targets, prepared, lengths=scored.tokens, seed=job.seed
    )
    labels = None
    if job.label_column is None:
        metrics["needs_labels"] = list(evaluate.NEEDS_LABELS)
    else:
        labels = evaluate.read_labels(run.corpus, run.targets, job.label_column, job.target_labels)
        metrics["labels"] = evaluate.label_metrics(labels, scored, selection.indices)
        few = len(scored.table) <= evaluate.MAX_TFIDF_ROWS
        with run.reporter.task("comparing with baselines", None, "methods") as task:
            lines = evaluate.method_table(
                labels,
                scored,
                targets,
                resident_codes(prepared.corpus),
                job.recipe(),
                job.recipe().pooling,
                texts=[row.content for row in run.corpus.rows(records=False)] if few else None,
                target_texts=[row.content for row in run.targets.rows(records=False)] if few else None,
                dense=run.store(CORPUS_CODES).dense(),
                target_dense=run.store(TARGET_CODES).dense(),
                top_m=job.top_m,
                at=sorted({10, max(1, len(selection))}),
                draws=job.draws,
                seed=job.seed,
            )
            task.update(len(lines))
        metrics["labels"]["methods"] = [line.to_dict() for line in lines]
    write_json(run.out / METRICS, metrics)
    return metrics, labels


def write_manifest(run: Run, selection: Selection, curated: Path) -> None:
    """Write what was run, on what, with which versions, and what came out."""
    import importlib

    import torch

    import finescope

    versions = {
        "finescope": finescope.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in _LIBRARIES:
        versions[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
    stages = ("train", "embed-corpus", "embed-targets", "score")
    write_json(
        run.out / MANIFEST,
        {
            "format": 1,
            "configuration": run.job.to_dict(),
            "recipe": vars(run.job.recipe()),
            "selection": selection.config,
            "seed": run.job.seed,
            "versions": versions,
            "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
            "inputs": {"corpus": run.fingerprint("corpus"), "targets": run.fingerprint("targets")},
            "counts": {"rows": len(selection.reason), **selection.counts},
            "stages": {name: run.ledger.facts(name) for name in stages},
            "files": {"curated": curated.name, "scores": SCORES, "selection": SELECTION, "metrics": METRICS},
        },
    )

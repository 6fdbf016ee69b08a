"""The stages of several target sets together: scored in one pass, selected side by side, a page above all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.corpus import OUTPUTS
from finescope.curation.shares import parse_shares
from finescope.errors import InputError
from finescope.progress import counted
from finescope.report.explain import examples_of
from finescope.report.sets import SetLine, render_sets
from finescope.storage.files import read_json, write_json, write_text
from finescope.workflow.layout import (
    CONFIG,
    CORPUS_CODES,
    MANIFEST,
    METRICS,
    REPORT,
    ROWS,
    SCORES,
    SELECTION,
    SET_FOLDERS,
    SETS,
    TARGET_CODES,
)
from finescope.workflow.learned import HASH, write_learned
from finescope.workflow.setcontext import SetsContext
from finescope.workflow.setnames import MIXTURE
from finescope.workflow.sets import score_each, select_each, write_mixture
from finescope.workflow.stage import Stage
from finescope.workflow.stages.manifest import made_with
from finescope.workflow.stages.report import Averaged, shown_apart, write_report
from finescope.workflow.stages.score import Score, forget_changed
from finescope.workflow.stages.select import write_chosen
from finescope.workflow.tables import about_targets, read_selection, write_rows, write_scores

if TYPE_CHECKING:
    from finescope.workflow.context import Context


def _sets(context: Context) -> SetsContext:
    assert isinstance(context, SetsContext)
    return context


@dataclass(frozen=True)
class ScoreSets(Stage):
    """Scores every row of the corpus against all target sets."""

    name = "score"
    reads = (CORPUS_CODES, SET_FOLDERS)
    writes = (ROWS, SETS)

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return what decides the scores by one set, and the targets of all."""
        sets = _sets(context).sets
        keys = {name: each.ledger.key("embed-targets") for name, each in sets.items()}
        return {**Score().decisive(context), "targets": keys}

    def run(self, context: Context) -> bool:
        """Do the stage unless all tables are there, of the same inputs."""
        folders = {name: each.folder for name, each in _sets(context).sets.items()}
        forget_changed(context, folders)
        if any(not (folder / name).exists() for folder in folders.values() for name in Score.writes):
            (context.folder / ROWS).unlink(missing_ok=True)
        return super().run(context)

    def work(self, context: Context) -> Mapping[str, Any]:
        """Score; write a table of each set, and once what they share."""
        from finescope.curation.scoring.evidence import Spaces

        run, job = _sets(context), context.job
        found = score_each(
            run.store(CORPUS_CODES),
            {name: each.store(TARGET_CODES) for name, each in run.sets.items()},
            Spaces(run.evidence),
            {name: each.seeds for name, each in run.sets.items()},
            job.recipe(),
            job.seed,
            nearest=False,  # found again of the rows that are selected or shown
        )
        learned = {}
        for name, (scored, scoring) in found.items():
            if scoring.remark:
                context.reporter.say(f"{name}: {scoring.remark}")
            folder = run.sets[name].folder
            write_scores(folder / SCORES, scored, rows=False)
            learned[name] = write_learned(folder, scoring)
        write_rows(run.folder / ROWS, next(iter(found.values()))[0])
        write_json(run.folder / SETS, {"format": "finescope-sets", "sets": list(found)})
        return {HASH: learned}


@dataclass(frozen=True)
class SelectSets(Stage):
    """Selects rows for every target set by the job's limits."""

    name = "select"
    reads = (ROWS, SET_FOLDERS, "corpus")
    writes = tuple(f"{MIXTURE}{ending}" for ending in OUTPUTS)

    def work(self, context: Context) -> None:
        """Select; write each set's rows, and with shares the mixture."""
        run, job = _sets(context), context.job
        limits = job.selection_config()
        scored = {name: each.scored() for name, each in run.sets.items()}
        more: dict[str, Any] = {}
        if limits.look_at_codes:
            more["scorer"] = next(iter(run.sets.values())).scoring.space
            more["targets"] = {name: each.scoring.targets for name, each in run.sets.items()}
        if limits.quotas:
            more["labels"] = run.label_names()
            if more["labels"] is None:
                raise InputError("quotas are of labels: name their column with --label-column")
        shares = parse_shares(job.shares) if job.shares else None
        selections = select_each(scored, limits, exclusive=job.exclusive, shares=shares, **more)
        write_chosen(run.sets, scored, selections)
        for name in run.sets:
            about = about_targets(scored[name].targets_in_corpus)
            for words in (said(selections[name]), *selections[name].unfilled, *about):
                context.reporter.say(f"{name}: {words}")
        for ending in OUTPUTS:
            (run.folder / f"{MIXTURE}{ending}").unlink(missing_ok=True)
        if job.shares:
            write_mixture(run.folder / f"{MIXTURE}{run.output_ending}", run.corpus, scored, selections)


def said(selection: Any) -> str:
    """Return in words how many rows were selected, and what became of the others."""
    others = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in selection.counts.items()
        if count and name != "selected"
    )
    return f"selected {counted(len(selection), 'row')}" + (f"; the others: {others}" if others else "")


@dataclass(frozen=True)
class ReportSets(Stage):
    """Writes the page of every target set; one pass over the codes finds what names the latents of all."""

    averaged: Averaged | None = None

    name = "report"
    reads = (SET_FOLDERS,)
    writes = ()

    def work(self, context: Context) -> None:
        """Take apart the scores of the rows that each page shows, look up their latents, and write."""
        sets = _sets(context).sets
        apart = {name: shown_apart(each) for name, each in sets.items()}
        examples = examples_of(next(iter(sets.values())).scoring, list(apart.values()))
        for name, each in sets.items():
            write_report(each, self.averaged, apart[name], examples)


@dataclass(frozen=True)
class IndexSets(Stage):
    """Writes the page above the pages of the sets, and their metrics in one file."""

    name = "report"
    reads = (SET_FOLDERS,)
    writes = (REPORT, METRICS)

    def work(self, context: Context) -> None:
        """Gather what the sets' files hold, and write."""
        run, job = _sets(context), context.job
        metrics = {name: read_json(each.folder / METRICS) for name, each in run.sets.items()}
        chosen = {name: read_selection(each.folder / SELECTION) for name, each in run.sets.items()}
        write_json(run.folder / METRICS, {"sets": metrics})
        sets = dict.fromkeys(run.sets)
        shared = {
            name: {
                other: int(np.intersect1d(chosen[name].indices, chosen[other].indices).size)
                for other in sets
                if other != name
            }
            for name in sets
        }
        lines = [
            SetLine(
                name,
                f"{SET_FOLDERS}/{name}/{REPORT}",
                metrics[name],
                chosen[name].tokens,
                {other: rows for other, rows in shared[name].items() if rows},
                short=_short(chosen[name], metrics[name]),
            )
            for name in sets
        ]
        mixture = f"{MIXTURE}{run.output_ending}"
        rule = "mixed by shares" if job.shares else "a row in its best set only" if job.exclusive else ""
        write_text(
            run.folder / REPORT,
            render_sets(
                f"Curated: {counted(len(lines), 'target set')}",
                f"{counted(len(next(iter(chosen.values())).reason), 'row')} of {run.corpus.name}"
                + (f"; {rule}" if rule else ""),
                lines,
                mixture if (run.folder / mixture).exists() else None,
                job.to_dict(),
            ),
        )


def _short(selection: Any, metrics: Mapping[str, Any]) -> int | None:
    """How many rows were asked for, where there are fewer."""
    wanted = selection.config.get("k")
    return wanted if wanted is not None and metrics["selected"] < wanted else None


@dataclass(frozen=True)
class ManifestSets(Stage):
    """Writes the manifest, which makes the folder that of a finished run, and the job for ``--config``."""

    name = "manifest"
    reads = (SET_FOLDERS,)
    writes = (CONFIG, MANIFEST)

    def work(self, context: Context) -> None:
        """Write configuration, versions, inputs, and what the sets' own manifests count."""
        run, job = _sets(context), context.job
        of_sets = {name: read_json(each.folder / MANIFEST) for name, each in run.sets.items()}
        write_text(run.folder / CONFIG, job.to_yaml())
        write_json(
            run.folder / MANIFEST,
            {
                "format": 1,
                "configuration": job.to_dict(),
                "sets": {
                    name: {"folder": str(Path(SET_FOLDERS) / name), "counts": manifest["counts"]}
                    for name, manifest in of_sets.items()
                },
                **made_with(run),
                "inputs": {
                    "corpus": run.ledger.inputs("embed-corpus")["rows"],
                    "targets": {name: manifest["inputs"]["targets"] for name, manifest in of_sets.items()},
                },
            },
        )

"""Runs with several target sets: the work that they share is done once, and each has a folder of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finescope.errors import InputError
from finescope.html.notebook import notebook
from finescope.progress import Reporter, counted
from finescope.storage.files import read_json
from finescope.workflow.context import Context
from finescope.workflow.engines.engine import Engine
from finescope.workflow.job import Job
from finescope.workflow.layout import ACTIVATIONS, METRICS, REPORT
from finescope.workflow.run import Outcome, Run
from finescope.workflow.sending import sending
from finescope.workflow.setcontext import SetContext, SetsContext
from finescope.workflow.setnames import MIXTURE
from finescope.workflow.stages.embed import Embed
from finescope.workflow.stages.evaluate import Evaluate
from finescope.workflow.stages.manifest import Manifest
from finescope.workflow.stages.report import Averaged, Report
from finescope.workflow.stages.select import Select
from finescope.workflow.stages.sets import IndexSets, ManifestSets, ReportSets, ScoreSets, SelectSets

TOGETHER = ("preset", "pooling", "weights", "scorer", "top_m")
"""Settings of the scores, which all sets of a run have together."""
SHARED_OUT = ("exclusive", "shares")
"""Settings of how sets share rows."""


@dataclass
class SetsOutcome:
    """What a run with several target sets produced.

    Attributes:
        folder: of the run.
        sets: by name, what each produced.
        mixture: the file with the rows of all sets, if shares were given.
        metrics: of all sets, by name.
        seconds: that it took.
    """

    folder: Path
    sets: dict[str, Outcome]
    mixture: Path | None
    metrics: dict[str, Any]
    seconds: float

    def lines(self) -> list[str]:
        """Return in words what was written."""
        found = [f"{name}: {outcome.lines()[0]}" for name, outcome in self.sets.items()]
        found += [f"all of them in {self.mixture}"] if self.mixture else []
        return found + next(iter(self.sets.values())).remarks()

    def _repr_html_(self) -> str:
        """Return a line for each set, for notebooks."""
        every = list(self.sets.values())
        said = [f"page: {self.folder / REPORT}", *every[0].remarks()]
        return notebook(
            f"Rows selected for {counted(len(every), 'target set')} of {every[0].metrics['rows']:,}",
            {
                "set": list(self.sets),
                "targets": [each.metrics["targets"] for each in every],
                "selected": [len(each.selection) for each in every],
                "lowest score": [each.metrics["lowest_selected_score"] for each in every],
                "rows": [each.curated for each in every],
            },
            said=[*said, f"rows of all sets: {self.mixture}"] if self.mixture else said,
            caption="Each set is an outcome of its own: sets[NAME]",
        )


class SetsRun(Run):
    """One run with several target sets. Stages finished there with the same inputs are not redone."""

    context: SetsContext

    def _opened(self, job: Job, reporter: Reporter, restart: bool, engine: Engine | None) -> Context:
        return SetsContext(job, reporter, restart=restart, engine=engine)

    def _prepare_targets(self) -> None:
        for each in self.context.sets.values():
            self._do(Embed("targets"), of=each)
        self._do(ScoreSets())

    def finish(self, averaged: Averaged | None = None) -> SetsOutcome:  # type: ignore[override]
        """Select for every set, evaluate and report each, and write the page above them."""
        start = time.monotonic()
        self._do(SelectSets())
        for each in self.context.sets.values():
            self._do(Evaluate(), of=each)
        self._do(ReportSets(averaged))
        outcomes = {}
        for name, each in self.context.sets.items():
            self._do(Manifest(), of=each)
            outcomes[name] = self._outcome(each, time.monotonic() - start)
        self._do(IndexSets(), ManifestSets())
        folder = self.context.folder
        mixture = folder / f"{MIXTURE}{self.context.output_ending}"
        return SetsOutcome(
            folder,
            outcomes,
            mixture if self.context.job.shares else None,
            read_json(folder / METRICS),
            time.monotonic() - start,
        )

    def _check_labels(self) -> None:
        for each in self.context.sets.values():
            _ = each.labels

    def _score_again(self) -> None:
        self._do(ScoreSets())


class SetRun(Run):
    """One target set of a finished run, to be selected from, measured and reported again."""

    context: SetContext

    def __init__(self, run: SetsContext, name: str, changes: Mapping[str, Any]):
        """Open it.

        Raises:
            InputError: there is no such set, or the changes are of what all sets have together.
        """
        if name not in run.sets:
            raise InputError(f"{run.folder} holds no target set {name!r}; there are {', '.join(run.sets)}")
        for fields, words in ((TOGETHER, "are scored together"), (SHARED_OUT, "share the rows out together")):
            wrong = [field for field in fields if field in changes]
            if wrong:
                raise InputError(f"the target sets of {run.folder} {words}: give {wrong[0]} for that folder")
        self._run = run
        # Sections are changed field by field.
        job = run.sets[name].job.to_dict()
        for field, value in changes.items():
            job[field] = {**job[field], **value} if isinstance(job[field], dict) else value
        self._context = SetContext(run, name, job["targets"], {field: job[field] for field in changes})
        super().__init__(self._context.job, run.reporter)

    def _opened(self, job: Job, reporter: Reporter, restart: bool, engine: Engine | None) -> Context:
        return self._context

    def _sending(self) -> contextlib.AbstractContextManager[None]:
        """The set's results are at the run's URL, if it has one."""
        return sending(self._run.job.out, self.context.reporter, leave=(ACTIVATIONS,))

    def reselect(self) -> Outcome:
        """Select, evaluate and report the set again; the other sets stay as they are.

        Raises:
            InputError: rows go to one set only, so that the selections depend on each other.
        """
        if self._run.job.exclusive or self._run.job.shares:
            raise InputError(
                f"the target sets of {self._run.folder} share the rows out: select from that folder"
            )
        with self._alone(), self._sending():
            if self.context.job.label_column is not None:
                self._check_labels()
            self._do(Select(), Evaluate(), Report(), Manifest())
            IndexSets().run(self._run)
            ManifestSets().run(self._run)
            return self._outcome(self.context, 0.0)


def of_job(job: Job) -> type[Run]:
    """Return the kind of run that a job asks for."""
    return SetsRun if job.target_sets or job.target_set_column else Run

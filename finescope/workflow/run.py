"""The main job: from texts to curated rows with a report, one stage after the other."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.curation.selected import Selection
from finescope.errors import FineScopeError, InputError
from finescope.html.notebook import ROWS as ROWS_SHOWN
from finescope.html.notebook import notebook
from finescope.progress import Reporter, counted, duration
from finescope.storage.files import make_folder, read_json, remove_temporaries, write_text
from finescope.storage.identity import sha256_json
from finescope.storage.lock import FolderLock
from finescope.storage.remote import is_url
from finescope.storage.remote_folder import Remote
from finescope.workflow.context import Context
from finescope.workflow.cost import Estimate, Throughput, estimate
from finescope.workflow.engines.engine import Engine
from finescope.workflow.job import Job
from finescope.workflow.layout import (
    ACTIVATIONS,
    CONFIG,
    CORPUS_CODES,
    MANIFEST,
    MARKS,
    METRICS,
    PLAN,
    REPORT,
    ROWS,
    SCORES,
    SELECTION,
    SET_FOLDERS,
)
from finescope.workflow.ledger import FOLDER as STAGES
from finescope.workflow.marks import write_marks
from finescope.workflow.planned import Plan, read_plan, write_plan
from finescope.workflow.pulse import announce
from finescope.workflow.remoteplan import PLANNED, RemoteShards, fetch_plan, send_plan
from finescope.workflow.rows import open_rows
from finescope.workflow.scored import Scored
from finescope.workflow.sending import sending
from finescope.workflow.share import Share
from finescope.workflow.stage import Stage
from finescope.workflow.stages.activations import CollectActivations
from finescope.workflow.stages.check import Check
from finescope.workflow.stages.embed import Embed
from finescope.workflow.stages.evaluate import Evaluate
from finescope.workflow.stages.manifest import Manifest
from finescope.workflow.stages.report import Averaged, Report
from finescope.workflow.stages.score import Score
from finescope.workflow.stages.select import Select, curated_path
from finescope.workflow.stages.sinks import FindSinks
from finescope.workflow.stages.train import Train
from finescope.workflow.tables import read_rows, read_scores, read_selection

if TYPE_CHECKING:
    from finescope.curation.scoring.fitted import Scoring

_WORDS = {
    "train": "training",
    "embed-corpus": "embedding corpus",
    "embed-targets": "embedding targets",
    "score": "scoring",
}
"""What the stages worth a line are called when they were done before."""


@dataclass
class Outcome:
    """What a run produced."""

    folder: Path
    curated: Path
    selection: Selection
    metrics: dict[str, Any]
    seconds: float
    bad_rows: int = 0
    """Rows of the corpus that were set aside."""
    job: Job | None = None
    """What was asked for."""
    scoring: Callable[[], Scoring] | None = field(default=None, repr=False, compare=False)
    """Gives what scored the rows."""

    @cached_property
    def scored(self) -> Scored:
        """The scores of all rows."""
        shared = self.folder.parent.parent / ROWS if self.folder.parent.name == SET_FOLDERS else None
        of_rows = read_rows(shared) if shared is not None and shared.exists() else None
        return read_scores(self.folder / SCORES, of_rows, self.scoring)

    def lines(self) -> list[str]:
        """Return in words what was written."""
        return [f"{len(self.selection):,} rows in {self.curated}", *self.remarks()]

    def remarks(self) -> list[str]:
        """Return in words what is to be known of the corpus, whatever the targets."""
        if not self.bad_rows:
            return []
        return [f"set aside, because they can't be embedded: {counted(self.bad_rows, 'row')}"]

    def _repr_html_(self) -> str:
        """Return the best of the selected rows and where all of them lie, for notebooks."""
        said = [f"rows: {self.curated}", f"why: {self.folder / REPORT}", *self.remarks()]
        columns: dict[str, Any] = {}
        try:
            columns = self._best(ROWS_SHOWN)
        except FineScopeError as error:  # files were moved since
            said.append(str(error))
        return notebook(
            f"{counted(len(self.selection), 'row')} selected of {self.metrics['rows']:,} "
            f"for {counted(self.metrics['targets'], 'target')}",
            columns,
            said=said,
            caption="The best of them",
            more=len(self.selection) - ROWS_SHOWN,
        )

    def _best(self, count: int) -> dict[str, Any]:
        """Return the columns of the best rows that are shown, with their texts where the job is known.

        Raises:
            InputError, StoreError: a file of the run isn't there any more.
        """
        best = self.selection.indices[:count]
        picked = self.scored.at(best)
        found = {
            "rank": range(1, len(best) + 1),
            "id": picked.ids,
            "score": picked.table.score,
            "nearest target": picked.names_of(picked.table.nearest_target),
            "its cosine": picked.table.nearest_similarity,
        }
        if self.job is not None and len(best):
            curated = open_rows(self.job, str(self.curated), id_column="none", lenient=True)
            texts = [row.content for row in itertools.islice(curated.rows(records=False), len(best))]
            if len(texts) == len(best):
                found["text"] = texts
        return found


class Run:
    """One curation run in one folder. Stages finished there with the same inputs are not redone."""

    def __init__(
        self,
        job: Job,
        reporter: Reporter | None = None,
        *,
        restart: bool = False,
        engine: Engine | None = None,
    ):
        """Prepare a run; nothing is read or written yet.

        Args:
            job: what is asked for.
            reporter: told what is going on; by default prints it.
            restart: throw away expensive results of other inputs.
            engine: where the shards of a stage are worked on; by default this process.

        Raises:
            InputError: the job names no targets or no corpus, or they aren't there.
        """
        self.context = self._opened(job, Reporter() if reporter is None else reporter, restart, engine)
        self._held = False

    def _opened(self, job: Job, reporter: Reporter, restart: bool, engine: Engine | None) -> Context:
        return Context(job, reporter, restart=restart, engine=engine)

    def curate(self) -> Outcome:
        """Do every stage that is not done yet, and write the report."""
        start = time.monotonic()
        with self._alone(), self._sending():
            self.prepare_scores()
            outcome = self.finish()
        outcome.seconds = time.monotonic() - start
        return outcome

    def plan(self) -> Plan:
        """Do all that one process must do before others share the rest, and write the plan of the corpus.

        Rows are read once, and the autoencoder is trained unless one is given.

        Where the results belong at a URL, it lies there for tasks anywhere.

        Raises:
            StoreError: the URL can't be written to.
        """
        context = self.context
        remote = Remote(context.job.out)
        remote.try_writing()
        with self._alone():
            path = self._write_plan()
            write_text(context.folder / CONFIG, context.job.to_yaml())
            self._do(*self._before_codes())
            embedding = Embed("corpus")
            found, decisive = read_plan(path, context.corpus), embedding.decisive(context)
            if embedding.begin(context, decisive):
                announce(context.folder / CORPUS_CODES, found.shards)
            send_plan(remote, [stage.name for stage in self._before_codes()], sha256_json(dict(decisive)))
            return found

    def _write_plan(self) -> Path:
        """Read the rows once, and write the plan of them that isn't there yet."""
        context, path = self.context, self.context.folder / PLAN
        self._do(Check())
        if not path.exists():
            shards, refused = context.plan("corpus"), asdict(context.refused["corpus"])
            write_marks(context.folder / MARKS, context.corpus)
            write_plan(path, context.corpus, shards, context.sample.per_token, refused)
        return path

    def estimate(
        self, workers: int = 1, *, flops: float | None = None, tokens_per_second: float | None = None
    ) -> Estimate:
        """Plan the corpus, and return what the run will cost; nothing is trained.

        Args:
            workers: how many embed at a time.
            flops: operations a second that a worker sustains.
            tokens_per_second: that a worker reads; without either, this machine is measured.
        """
        from finescope.workflow.workload import measured, of_run

        with self._alone():
            self._write_plan()
            load = of_run(self.context)
            if flops is None and tokens_per_second is None:
                rates = measured(self.context, load, workers)
            else:
                rates = Throughput.given(load, workers, flops=flops, tokens_per_second=tokens_per_second)
            return estimate(load, rates)

    def share(self, share: Share) -> int:
        """Embed a share of the planned corpus, beside other processes; return how many shards were made.

        Raises:
            InputError: there is no plan, or the autoencoder isn't trained.
            StoreError: another run holds the folder alone.
        """
        context = self.context
        remote = Remote(context.job.out)
        fetch_plan(remote)
        if remote and remote.read(MANIFEST) is not None:
            return 0  # all shares were done, and merged
        if not (context.folder / PLAN).exists():
            raise InputError(
                f"{context.folder} holds no {PLAN}; `finescope plan` with the same job writes it"
            )
        if context.job.sae_path is None and not context.ledger.facts("train"):
            raise InputError(
                f"the autoencoder in {context.folder} isn't trained yet; `finescope plan` does that before a "
                "corpus is shared"
            )
        with FolderLock(context.folder, shared=True):
            return Embed("corpus").share(context, share.of(context.plan("corpus")), RemoteShards(remote))

    def prepare_scores(self) -> None:
        """Do everything up to the scores."""
        self._do(Check(), *self._before_codes(), Embed("corpus"))
        self._prepare_targets()

    def _before_codes(self) -> tuple[Stage, ...]:
        ours = self.context.job.sae_path is None
        if ours and is_url(self.context.job.out) and self._planned_elsewhere():
            return ()
        return (CollectActivations(), FindSinks(), Train()) if ours else (FindSinks(),)

    def _planned_elsewhere(self) -> bool:
        """Whether all of that was done on another machine, where the activations have stayed."""
        context = self.context
        planned = (context.folder / PLANNED).exists() and not (context.folder / ACTIVATIONS).exists()
        return planned and bool(context.ledger.facts("train"))

    def _prepare_targets(self) -> None:
        self._do(Embed("targets"), Score())

    def finish(self, averaged: Averaged | None = None) -> Outcome:
        """Select, evaluate and report from the saved scores and codes: seconds, and no model.

        Args:
            averaged: methods averaged over several topics, for the report.
        """
        start = time.monotonic()
        self._do(Select(), Evaluate(), Report(averaged), Manifest())
        return self._outcome(self.context, time.monotonic() - start)

    def _outcome(self, context: Context, seconds: float) -> Outcome:
        folder = context.folder
        return Outcome(
            folder,
            curated_path(context),
            read_selection(folder / SELECTION),
            read_json(folder / METRICS),
            seconds,
            len(context.ledger.facts("embed-corpus").get("bad_rows") or ()),
            context.job,
            lambda: context.scoring,
        )

    def reselect(self) -> Outcome:
        """Score again if the recipe has changed, then select, evaluate, report. No model is touched."""
        with self._alone(), self._sending():
            if self.context.job.label_column is not None:
                self._check_labels()
            self._score_again()
            return self.finish()

    def _check_labels(self) -> None:
        """Say what is wrong with the labels before anything is written."""
        _ = self.context.labels

    def _score_again(self) -> None:
        self._do(Score())

    def _sending(self) -> contextlib.AbstractContextManager[None]:
        """What the SAE learnt from stays on this machine."""
        return sending(self.context.job.out, self.context.reporter, leave=(ACTIVATIONS,))

    def _do(self, *stages: Stage, of: Context | None = None) -> None:
        with self._alone():
            for stage in stages:
                done = stage.run(self.context if of is None else of)
                if not done and stage.name in _WORDS:
                    self.context.reporter.say(f"{_WORDS[stage.name]}: done before")
                elif done and stage.name == "score":
                    seconds = self.context.ledger.facts("score")["seconds"]
                    self.context.reporter.say(f"scoring: {duration(seconds)}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: of two runs in it, one would write into what the other reads.

        Raises:
            StoreError: another run holds it, or it can't be written to.
        """
        if self._held:
            yield
            return
        make_folder(self.context.folder)
        with FolderLock(self.context.home):
            for folder in (self.context.folder, self.context.folder / STAGES):
                remove_temporaries(folder)
            self._held = True
            try:
                yield
            finally:
                self._held = False

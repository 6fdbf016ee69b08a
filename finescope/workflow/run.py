"""The main job: from texts to curated rows with a report, one stage after the other."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.corpus import Corpus
from finescope.curation.exclusion import is_target
from finescope.curation.scoring.scorers import CorpusScorer
from finescope.curation.selection import Selection
from finescope.errors import InputError
from finescope.progress import Reporter, counted, duration
from finescope.storage.files import read_json
from finescope.workflow import stages
from finescope.workflow.job import Job
from finescope.workflow.layout import ACTIVATIONS, CORPUS_CODES, MANIFEST, SAE, SCORES, TARGET_CODES
from finescope.workflow.ledger import Ledger
from finescope.workflow.preview import preview
from finescope.workflow.stages import evaluate as evaluation
from finescope.workflow.stages.report import write_run_report
from finescope.workflow.stages.select import evaluate_run, select_rows, write_manifest
from finescope.workflow.tables import (
    ScoredRows,
    prepare,
    read_scores,
    score_stores,
    write_scores,
)

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.codes import SparseCodes
    from finescope.curation.compare import MethodResult
    from finescope.embeddings.store import CodeStore
    from finescope.sae import SparseAutoencoder


@dataclass
class Outcome:
    """What a run produced."""

    folder: Path
    curated: Path
    scored: ScoredRows
    selection: Selection
    metrics: dict[str, Any]
    seconds: float


class Run:
    """One curation run in one folder. Stages finished there with the same inputs are not redone."""

    def __init__(self, job: Job, reporter: Reporter | None = None, *, restart: bool = False):
        """Prepare a run; nothing is read or written yet.

        Raises:
            InputError: the job names no model, targets or corpus.
        """
        for name in ("targets", "corpus"):
            if not getattr(job, name):
                raise InputError(f"no {name} given; name a file with --{name}")
        self.job = job
        self.reporter = Reporter() if reporter is None else reporter
        self.out = job.folder
        self.ledger = Ledger(self.out, restart=restart)
        self.restart = restart
        self.corpus = stages.open_job_corpus(job)
        self.targets = stages.open_job_targets(job)
        self._tap: ActivationTap | None = None
        self.averaged: tuple[list[str], list[MethodResult]] | None = None
        """Methods averaged over several target topics, for the report of the demonstration."""
        self._sae: SparseAutoencoder | None = None
        self._hashes: dict[str, Any] = {}
        self._prepared: tuple[str, CorpusScorer, SparseCodes] | None = None

    # ------------------------------------------------------------------ all of it

    def curate(self) -> Outcome:
        """Do every stage that is not done yet, and write the report."""
        start = time.monotonic()
        self.prepare_scores()
        outcome = self.finish()
        outcome.seconds = time.monotonic() - start
        return outcome

    def prepare_scores(self) -> None:
        """Do everything up to the scores."""
        self.check()
        self.embed()
        self.score()

    def finish(self) -> Outcome:
        """Select, evaluate and report from the saved scores and codes: seconds, and no model."""
        start = time.monotonic()
        scored = read_scores(self.out / SCORES)
        selection, curated = select_rows(self, scored)
        metrics, labels = evaluate_run(self, scored, selection)
        write_run_report(self, scored, selection, metrics, labels)
        write_manifest(self, selection, curated)
        return Outcome(self.out, curated, scored, selection, metrics, time.monotonic() - start)

    def reselect(self) -> Outcome:
        """Score again if the recipe has changed, then select, evaluate, report. No model is touched."""
        self.score()
        return self.finish()

    def check(self) -> None:
        """Read all inputs once, before anything expensive, and say what will be done.

        Raises:
            InputError: anything wrong with the rows, named with file and line.
        """
        say = self.reporter.say
        with self.reporter.task("reading", self.corpus.len_hint, "rows") as task:
            found = self.corpus.scan()
            task.update(found.rows)
        wanted = self.targets.scan()
        if found.empty:
            say(
                f"without text, so not scored: {counted(found.empty, 'row')}, the first at "
                f"{found.first_empty}"
            )
        if self.job.label_column is not None:
            evaluation.read_labels(self.corpus, self.targets, self.job.label_column, self.job.target_labels)
        say(
            f"{found.rows:,} rows of {self.corpus.name} against {wanted.rows} targets of "
            f"{self.targets.name}, "
            f"everything into {self.out}"
        )
        if not self.ledger.facts("embed-corpus") and not self.reporter.quiet:
            say(preview(self))

    # ------------------------------------------------------------------ stages

    @property
    def tap(self) -> ActivationTap:
        """The model, loaded when first needed."""
        if self._tap is None:
            if not self.job.model:
                raise InputError("no model given; name a folder or a Hugging Face id with --model")
            self._tap = stages.open_tap(self.job)
        return self._tap

    def train(self) -> SparseAutoencoder:
        """Return the job's SAE: loaded where one is given, else trained on the corpus."""
        if self._sae is None:
            self._sae = self._train()
        return self._sae

    def _train(self) -> SparseAutoencoder:
        job = self.job
        if job.sae_path is not None:
            return stages.load_sae(job.sae_path, self.tap.layer, job.device, self.tap.width)
        inputs = {
            "corpus": self.fingerprint("corpus"),
            "tap": self.tap.fingerprint(),
            "train_tokens": job.train_tokens,
            "seed": job.seed,
            "sae": job.sae,
            "training": {name: value for name, value in job.training.items() if name != "num_epochs"},
            "num_epochs": job.training.get("num_epochs"),
        }

        def work() -> dict[str, Any]:
            store = stages.collect_activations(
                self.tap,
                self.corpus,
                self.out / ACTIVATIONS,
                max_tokens=self._max_tokens(),
                seed=job.seed,
                reporter=self.reporter,
                overwrite=self.restart and not self.ledger.key("train"),
            )
            plan = stages.plan_for(job, store.num_tokens, store.width)
            sae = stages.train(store, plan, self.out / SAE, reporter=self.reporter)
            log = stages.training_log(self.out / SAE)
            last = log[-1] if log else {}
            return {
                "tokens": store.num_tokens,
                "latents": sae.num_latents,
                "k": sae.cfg.k,
                "steps": plan.steps,
                "training": plan.training.to_dict(),
                **{name: last.get(name) for name in ("fvu", "l0", "dead_fraction")},
            }

        def discard() -> None:
            shutil.rmtree(self.out / ACTIVATIONS, ignore_errors=True)
            shutil.rmtree(self.out / SAE, ignore_errors=True)

        _, done = self.ledger.run(
            "train", inputs, work, outputs=[f"{SAE}/sae.safetensors"], expensive=True, discard=discard
        )
        if not done:
            self.reporter.say("training: done before")
        return stages.load_sae(self.out / SAE, None, job.device, self.tap.width)

    def embed(self) -> None:
        """Embed corpus and targets into stores of document codes."""
        job = self.job
        shared = {
            "tap": self.tap.fingerprint(),
            "sae": self._sae_identity(),
            "pooling": job.recipe().pooling,
            "top_k_activations": job.top_k_activations,
        }
        for name, rows, folder in (
            ("corpus", self.corpus, CORPUS_CODES),
            ("targets", self.targets, TARGET_CODES),
        ):

            def work(name: str = name, rows: Corpus = rows, folder: str = folder) -> dict[str, Any]:
                store = stages.embed(
                    self.train(),
                    self.tap,
                    rows,
                    self.out / folder,
                    name=f"embedding {name}",
                    top_k=job.top_k_activations,
                    pooling=job.recipe().pooling,
                    reporter=self.reporter,
                )
                return {"rows": len(store), "pooling": job.recipe().pooling}

            _, done = self.ledger.run(
                f"embed-{name}",
                {**shared, "rows": self.fingerprint(name)},
                work,
                outputs=[folder],
                expensive=name == "corpus",
                discard=lambda folder=folder: shutil.rmtree(self.out / folder, ignore_errors=True),  # type: ignore[misc]
            )
            if not done:
                self.reporter.say(f"embedding {name}: done before")

    def score(self) -> ScoredRows:
        """Score all corpus rows from the saved codes."""
        job = self.job
        recipe = job.recipe()
        inputs = {
            "corpus": self.ledger.key("embed-corpus"),
            "targets": self.ledger.key("embed-targets"),
            "weights": recipe.weights,
            "scorer": recipe.scorer,
            "pooling": recipe.pooling,
            "top_m": job.top_m,
        }

        def work() -> None:
            prepared, targets = self.prepared()
            corpus, wanted = self.store(CORPUS_CODES), self.store(TARGET_CODES)
            marked = is_target(
                corpus.ids(),
                wanted.ids() if self._has_ids(self.targets) else (),
                (row.content for row in self.corpus.rows(records=False)),
                [row.content for row in self.targets.rows(records=False)],
            )
            scored = score_stores(
                corpus,
                wanted,
                recipe,
                top_m=job.top_m,
                is_target=marked,
                prepared=prepared,
                target_codes=targets,
            )
            write_scores(self.out / SCORES, scored)

        facts, done = self.ledger.run("score", inputs, work, outputs=[SCORES])
        self.reporter.say(f"scoring: {duration(facts['seconds'])}" if done else "scoring: done before")
        return read_scores(self.out / SCORES)

    # ------------------------------------------------------------------ parts

    def prepared(self) -> tuple[CorpusScorer, SparseCodes]:
        """Return the corpus ready for scoring with the job's recipe, and the targets' codes."""
        recipe = self.job.recipe()
        name = f"{recipe.pooling}/{recipe.weights}"
        if self._prepared is None or self._prepared[0] != name:
            stores = self.store(CORPUS_CODES), self.store(TARGET_CODES)
            self._prepared = (name, *prepare(*stores, recipe))
        return self._prepared[1], self._prepared[2]

    def store(self, name: str) -> CodeStore:
        """Open the codes of the corpus or of the targets, by the folder's name."""
        from finescope.embeddings.store import CodeStore

        return CodeStore(self.out / name)

    def _max_tokens(self) -> int | None:
        """The limit on training tokens, or None where the corpus can't reach it (which saves a pass)."""
        found = self.corpus.scan() if self.corpus.stats is None else self.corpus.stats
        return None if found.characters < self.job.train_tokens else self.job.train_tokens

    def fingerprint(self, name: str) -> dict[str, Any]:
        """Return name, size and hash of the files of ``corpus`` or ``targets``; read once."""
        if name not in self._hashes:
            self._hashes[name] = (self.corpus if name == "corpus" else self.targets).fingerprint()
        return dict(self._hashes[name])

    def _sae_identity(self) -> Any:
        from finescope.storage.files import sha256_tensors

        sae = self.train()
        return sha256_tensors(sae.state_dict(), sample=4096)

    def _has_ids(self, rows: Corpus) -> bool:
        """Whether ids were given: generated ones must not make rows look like targets."""
        return any(self.job.id_column in row.record for row in rows.rows())


def open_run(folder: Path, reporter: Reporter | None = None, changes: dict[str, Any] | None = None) -> Run:
    """Open the finished run in ``folder``, with some of the job's values changed.

    Raises:
        InputError: there is no finished run.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished run ({MANIFEST} is missing); give the --out of `finescope curate`"
        )
    configuration = read_json(path).get("configuration")
    if not isinstance(configuration, dict):
        raise InputError(
            f"{folder} is the folder of a single stage, not of a run; give the --out of `finescope curate`"
        )
    configuration["out"] = str(folder)
    return Run(Job.from_dict({**configuration, **(changes or {})}), reporter)

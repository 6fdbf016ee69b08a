"""What the stages of one run share: the job, its rows, the model, and what earlier stages have written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from finescope.corpus import Corpus, CorpusStats
from finescope.corpus.badrows import BadRow, check_bad
from finescope.corpus.plan import Planner, Shard, located
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.storage.identity import sampled_files
from finescope.workflow.engines.engine import Engine
from finescope.workflow.engines.local import Local
from finescope.workflow.head import Head
from finescope.workflow.job import Job
from finescope.workflow.labels import LabelCount, Labels, read_labels, stored_labels, target_labels
from finescope.workflow.layout import CODES, CORPUS_CODES, MARKS, PLAN, SAE, SCORER, SCORES, SINKS_BESIDE
from finescope.workflow.learned import read_learned
from finescope.workflow.ledger import Ledger
from finescope.workflow.marks import read_marks
from finescope.workflow.opening import (
    TAP_OPTIONS,
    Given,
    chat_template,
    load_sae,
    open_given,
    open_tap,
    place_of_sae,
)
from finescope.workflow.planned import read_plan
from finescope.workflow.refused import Refused
from finescope.workflow.rows import open_job_corpus, open_job_targets

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.activations.rendering import Renderer
    from finescope.corpus.row import Row
    from finescope.curation.scoring.evidence import Evidence, Spaces
    from finescope.curation.scoring.fitted import Scoring
    from finescope.embeddings.store import CodeStore
    from finescope.sae import Autoencoder
    from finescope.storage.coded import CodedStrings
    from finescope.workflow.probe import Sample, Speed
    from finescope.workflow.scored import Scored

_Made = TypeVar("_Made")
_SEEN_ROWS = 1024
MAX_COMPARED = 300_000
"""Texts of larger corpora aren't read for the sake of a comparison."""


class Context:
    """One run in one folder, as its stages see it. They change nothing of it.

    Whatever is costly is loaded when first asked for, so that a stage with nothing to do costs nothing.

    Attributes:
        job: what was asked for.
        reporter: where to say what is going on.
        restart: whether expensive results of other inputs may be thrown away.
        folder: where everything is written.
        engine: where the shards of a stage are worked on.
        ledger: notes about finished stages.
        corpus, targets: the rows.
        refused: by "corpus" and "targets", the conversations that the first pass found refused.
    """

    set_name = ""
    """The target set that it is about, where there are several."""
    _needs: tuple[str, ...] = ("targets", "corpus")

    def __init__(self, job: Job, reporter: Reporter, *, restart: bool = False, engine: Engine | None = None):
        """Open the rows; nothing is read or written yet.

        Raises:
            InputError: the job names no targets or no corpus, or they aren't there.
        """
        for name in self._needs:
            if not getattr(job, name):
                raise InputError(f"no {name} given; name a file with --{name}")
        self.job, self.reporter, self.restart = job, reporter, restart
        self.engine: Engine = Local(reporter.say) if engine is None else engine
        self.folder = job.folder
        self.ledger = Ledger(self.folder)
        self.refused: dict[str, Refused] = {}
        self._labels: dict[str, LabelCount] = {}
        self._plans: dict[str, list[Shard]] = {}
        self._head: Head | None = None
        self._kept: dict[Path, tuple[Any, Any]] = {}
        self.corpus = self._open_corpus()
        self.targets = self._open_targets()

    def _open_corpus(self) -> Corpus:
        corpus = open_job_corpus(self.job)
        read_marks(self.folder / MARKS, corpus)
        return corpus

    def _open_targets(self) -> Corpus:
        return open_job_targets(self.job)

    @property
    def home(self) -> Path:
        """The folder of what doesn't depend on the targets: activations, SAE, codes of the corpus."""
        return self.folder

    def rows(self, name: str) -> Corpus:
        """Return the rows of "corpus" or of "targets"."""
        return self.corpus if name == "corpus" else self.targets

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Name, size and hash of the files of "corpus" and "targets", from the pass that reads them."""
        for name in ("corpus", "targets"):
            self.plan(name)
        return {name: self.rows(name).fingerprint() for name in ("corpus", "targets")}

    def first_pass(self, name: str) -> Iterator[Row]:
        """Yield the rows of "corpus" or of "targets", trying whatever could fail with them later.

        Conversations that the chat template refuses are counted in ``refused``.

        Raises:
            InputError: anything wrong with the rows, named with file and line.
        """
        output = self.output_ending if name == "corpus" else None
        refused = self.refused[name] = Refused()
        labels = LabelCount(self.job.label_column or "")
        self._labels[name] = labels
        columns = [] if self.job.label_column is None else [self.job.label_column]
        bad: list[BadRow] = []
        head = Head()
        for number, row in enumerate(self.rows(name).rows(columns=columns, output=output)):
            head.see(row)
            labels.see(row)
            if row.messages is not None and self.job.model:
                try:
                    refused.see(row, self.renderer)
                except InputError as error:
                    if name != "corpus" or not self.job.max_bad_rows:
                        raise
                    bad = check_bad(
                        [*bad, BadRow(number, row.place, row.id, str(error.__cause__))], self.job.max_bad_rows
                    )
            yield row
        if name == "corpus":
            self._head = head

    @property
    def output_ending(self) -> str:
        """The ending of the curated rows' file."""
        return self.corpus.suffix if self.job.format is None else f".{self.job.format}"

    @cached_property
    def renderer(self) -> Renderer:
        """What conversations are turned into text by."""
        from finescope.activations.models import load_tokenizer
        from finescope.activations.rendering import Renderer

        tokenizer = load_tokenizer(self.job.model)
        return Renderer(tokenizer, chat_template(self.job), self.job.refused_chats)

    def plan(self, name: str, seen: Callable[[int], None] | None = None) -> list[Shard]:
        """Return the shards of "corpus" or of "targets", planned by the first pass over it.

        Args:
            name: of the rows.
            seen: called now and then with the number of rows read, if they have to be.

        Raises:
            InputError: as ``first_pass``.
        """
        if name == "corpus" and name not in self._plans:
            self._take_plan()
        if name not in self._plans:
            planner = Planner()
            for count, row in enumerate(self.first_pass(name), start=1):
                planner.add(row)
                if seen is not None and count % _SEEN_ROWS == 0:
                    seen(count)
            planner.close()
            self._plans[name] = located(self.rows(name), planner.shards)
        return self._plans[name]

    def _take_plan(self) -> None:
        """Take the shards of the corpus from their file, where ``finescope plan`` has written one.

        Raises:
            InputError: it is the plan of other rows.
        """
        path = self.folder / PLAN
        if self.restart:
            path.unlink(missing_ok=True)
        if path.exists():
            found = read_plan(path, self.corpus)
            self._plans["corpus"] = found.shards
            self.refused["corpus"] = Refused(**found.refused)

    def stats(self, name: str) -> CorpusStats:
        """Return what the first pass over "corpus" or "targets" counted."""
        self.plan(name)
        found = self.rows(name).stats
        if found is None:
            raise RuntimeError("a full pass ended without counts")
        return found

    @cached_property
    def tap_identity(self) -> dict[str, Any]:
        """What decides the activations: the model's files, which aren't loaded, and the job's options."""
        from finescope.activations.identity import model_files

        options = {name: getattr(self.job, name) for name in TAP_OPTIONS}
        files = model_files(self.job.model) if self.job.model else None
        if files is None:
            _ = self.tap  # brings a model from the hub here, or says what is wrong
            files = model_files(self.job.model)
        return {
            "files": files or self.tap.fingerprint(),
            "chat_template": chat_template(self.job),
            "rendering": self.renderer.fingerprint() if self._has_chats else None,
            **options,
        }

    @property
    def _has_chats(self) -> bool:
        return any(self.stats(name).conversations for name in ("corpus", "targets"))

    @cached_property
    def sae_identity(self) -> dict[str, Any]:
        """What tells the job's SAE from another: its weights, or the files of one that was given."""
        job = self.job
        if job.sae_path is None:
            return dict(self.ledger.facts("train")["identity"])
        files = {
            name: digest
            for name, digest in sampled_files(self.sae_place).items()
            if not name.endswith(SINKS_BESIDE)  # what we may write there ourselves
        }
        return {"files": files, "hookpoint": job.sae_path.partition("#")[2], "facts": job.sae_facts}

    @cached_property
    def sae_place(self) -> Path:
        """Folder or file of the SAE that the job names."""
        return place_of_sae(self.job, lambda: self.tap.layer)

    @cached_property
    def tap(self) -> ActivationTap:
        """The model, at the job's layer.

        Raises:
            InputError: the job names no model, or it can't be loaded.
        """
        if not self.job.model:
            raise InputError("no model given; name a folder or a Hugging Face id with --model")
        return open_tap(self.job, self.reporter) if self.given is None else self.given.tap

    @cached_property
    def corpus_tap(self) -> ActivationTap:
        """The model as it reads the corpus, some of whose rows may be set aside; targets may not."""
        return self.tap.setting_aside(self.job.max_bad_rows)

    @cached_property
    def sample(self) -> Sample:
        """The first rows of the corpus, with their tokens counted; those that the first pass has kept."""
        from finescope.workflow.probe import Sample

        columns = [] if self.job.label_column is None else [self.job.label_column]
        rows = self.corpus.rows(columns=columns) if self._head is None else self._head.rows
        return Sample.of(self.corpus_tap, rows)

    @cached_property
    def speed(self) -> Speed:
        """How fast this machine reads some of the first rows."""
        from finescope.workflow.probe import Speed

        return Speed.of(self.corpus_tap, self.sample.probe, self.job.device)

    @cached_property
    def given(self) -> Given | None:
        """The SAE that the job names, and the model where that was trained; None if it names none.

        Raises:
            InputError: as ``open_given``.
        """
        return None if self.job.sae_path is None else open_given(self.job, self.reporter)

    @cached_property
    def sae(self) -> Autoencoder:
        """The job's SAE: the one given, else the one that was trained.

        Raises:
            InputError: there is none, or it is of another width than the layer.
        """
        if self.given is not None:
            return self.given.sae
        return load_sae(self.folder / SAE, self.job.device, self.tap.width)

    @cached_property
    def labels(self) -> Labels | None:
        """The labels of the corpus rows, from beside the codes; None if the job names no column of labels.

        Those of a column that wasn't named when the rows were embedded are read from the rows.

        Raises:
            InputError: as ``target_labels``.
            StoreError: rows that are read aren't those that were embedded.
        """
        column = self.job.label_column
        if column is None:
            return None
        (names, count), (_, seeds) = (self._labels_of(name, column) for name in ("corpus", "targets"))
        wanted = target_labels(count, seeds, self.corpus, self.targets, self.job.target_labels)
        return Labels(column, names, wanted)

    def _labels_of(self, name: str, column: str) -> tuple[CodedStrings, LabelCount]:
        store = self.store(CODES[name])
        return stored_labels(store, column) or read_labels(self.rows(name), column, store.known(name))

    def check_sets(self) -> None:
        """Try what the targets say of their sets, where there are several.

        Raises:
            InputError: naming the target, or what is wrong with a set's name or share.
        """

    def check_labels(self) -> None:
        """Try the column of labels on what the first pass has seen; a plan's was tried when it was made.

        Raises:
            InputError: as ``target_labels``.
        """
        if self.job.label_column is not None and self._labels.keys() >= {"corpus", "targets"}:
            counts = self._labels["corpus"], self._labels["targets"]
            target_labels(*counts, self.corpus, self.targets, self.job.target_labels)

    @property
    def scoring(self) -> Scoring:
        """The job's recipe with what it learned when the corpus was last scored.

        Raises:
            StoreError: the corpus hasn't been scored, or the file is damaged or was changed.
        """
        return self._made_of(self.folder / SCORER, self._open_scoring)

    def _open_scoring(self, path: Path) -> Scoring:
        from finescope.curation.scoring.fitted import Scoring

        state, _ = read_learned(path.parent, self.ledger, self.set_name)
        return Scoring(self._scored_spaces, self.seeds, self.job.recipe(), seed=self.job.seed, state=state)

    @property
    def _scored_spaces(self) -> Evidence | Spaces:
        """What scores are made of: what is known of the corpus rows, or what several sets share of it."""
        return self.evidence

    @cached_property
    def evidence(self) -> Evidence:
        """What is known of the corpus rows."""
        return self._evidence("corpus")

    @cached_property
    def seeds(self) -> Evidence:
        """What is known of the targets."""
        return self._evidence("targets")

    def _evidence(self, name: str) -> Evidence:
        """What stands beside the codes; codes that were made without words get them from the texts."""
        from finescope.embeddings.words import CountedTexts
        from finescope.workflow.tables import evidence_of

        store, rows = self.store(CODES[name]), self.rows(name)
        if store.words() is not None or not self._looks_at_words:
            return evidence_of(store)
        self.reporter.say(f"{store.directory} holds no words: reading the texts of {rows.name} for them")
        same = store.known(name).same(rows.rows(records=False))
        return evidence_of(store, CountedTexts.of(row.content for row in same))

    @property
    def _looks_at_words(self) -> bool:
        """Whether the recipe does, or a table of methods for whose sake texts are worth reading."""
        from finescope.curation.scoring.sums import parse_scorer

        compared = self.job.label_column is not None and len(self.store(CORPUS_CODES)) <= MAX_COMPARED
        return compared or "texts" in parse_scorer(self.job.recipe().scorer).needs

    def scored(self) -> Scored:
        """Return the scores in the folder, read anew when they have been written anew.

        Raises:
            StoreError: the corpus hasn't been scored, or the file is damaged.
        """
        from finescope.workflow.tables import read_scores

        return self._made_of(self.folder / SCORES, read_scores)

    def _made_of(self, path: Path, make: Callable[[Path], _Made]) -> _Made:
        """Return what is made of a file, made anew when a stage has written the file anew.

        Raises:
            StoreError: as what makes it, which is asked for it where there is no file, too.
        """
        if not path.exists():
            return make(path)
        found = path.stat()
        stamp = found.st_mtime_ns, found.st_size, found.st_ino
        if path not in self._kept or self._kept[path][0] != stamp:
            self._kept[path] = stamp, make(path)
        made: _Made = self._kept[path][1]
        return made

    def store(self, name: str) -> CodeStore:
        """Open the codes of the corpus or of the targets, by the folder's name."""
        from finescope.embeddings.store import CodeStore

        return CodeStore(self.folder / name)


def open_model(job: Job) -> tuple[ActivationTap, Autoencoder]:
    """Open the model and the autoencoder of a job, quietly: the one that it names, or the one trained for it.

    Raises:
        InputError: as ``open_given``.
    """
    reporter = Reporter(quiet=True)
    if job.sae_path is not None:
        given = open_given(job, reporter)
        return given.tap, given.sae
    tap = open_tap(job, reporter)
    return tap, load_sae(job.folder / SAE, job.device, tap.width)

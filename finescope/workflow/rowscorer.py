"""Rows that a finished run has never seen, scored by what it learned of its corpus and targets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finescope.activations.batches import DTYPES
from finescope.corpus.content import ContentReader
from finescope.corpus.row import Row
from finescope.curation.scoring.evidence import Evidence
from finescope.curation.scoring.fitted import Scoring
from finescope.embeddings.embedder import sae_fingerprint
from finescope.embeddings.inmemory import RowEmbedder
from finescope.embeddings.store import CodeStore
from finescope.errors import InputError, StoreError
from finescope.html.notebook import ROWS, notebook
from finescope.progress import counted
from finescope.storage.identity import differences
from finescope.workflow.context import open_model
from finescope.workflow.finished import finished_job
from finescope.workflow.layout import CORPUS_CODES, SCORER, SET_FOLDERS, TARGET_CODES
from finescope.workflow.learned import REMEDY, read_learned
from finescope.workflow.ledger import Ledger
from finescope.workflow.opening import text_template
from finescope.workflow.tables import evidence_of

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.sae import Autoencoder

_TAKEN = ("model", "sae_path", "device", "batch_tokens")
"""What of a job may be otherwise where rows are scored."""


@dataclass(frozen=True)
class RowScores:
    """The scores of n rows, in their order.

    Attributes:
        score: float64 [n]; larger is nearer to the targets. 0 for a row that is not valid.
        nearest_target: the id of the target with the largest cosine; None for a row that is not valid.
        nearest_similarity: float64 [n], that cosine.
        tokens: int64 [n]; 0 where there was no text.
        valid: bool [n]; False for rows without any latent of positive weight, which are never selected.
    """

    score: NDArray[np.float64]
    nearest_target: list[str | None]
    nearest_similarity: NDArray[np.float64]
    tokens: NDArray[np.int64]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.score.size)

    def _repr_html_(self) -> str:
        """Return the first rows, for notebooks."""
        shown = slice(0, ROWS)
        without = len(self) - int(np.count_nonzero(self.valid))
        scores, similarity = (
            np.where(self.valid, values, np.nan)[shown] for values in (self.score, self.nearest_similarity)
        )
        return notebook(
            f"Scores of {counted(len(self), 'row')}",
            {
                "row": np.arange(len(self))[shown],
                "score": scores,
                "nearest target": self.nearest_target[shown],
                "its cosine": similarity,
                "tokens": self.tokens[shown],
            },
            said=[f"without a code, and so without a score: {counted(without, 'row')}"] if without else [],
            caption="The first rows, in the order in which they were given; larger is nearer to the targets",
            more=max(0, len(self) - ROWS),
        )


class RowScorer:
    """Scores any rows by a finished run, as the rows of its corpus: one of those scores what it has there.

    Neither the corpus nor the targets are read again: what was learned of them is kept with the run. A score
    doesn't depend on the rows around it; it rests on the model's activations, whose last bits go by the
    number of threads (``torch.set_num_threads``, ``OMP_NUM_THREADS``) and by the kind of processor.

    Attributes:
        scorer: name of the scorer, as the report has it.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        model: str | None = None,
        sae: str | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Load model, autoencoder and what the run has learned.

        Args:
            run: ``--out`` of ``finescope curate``, a folder or a URL; of a run with several target sets, that
                of a set.
            model: where the model lies, if elsewhere than it did for the run.
            sae: where the autoencoder lies, if the run was given one and it lies elsewhere now.
            device: where both run; by default where they ran.
            batch_tokens: tokens per forward pass; by default the run's.

        Raises:
            InputError: there is no finished run, its model or autoencoder can't be loaded or aren't those
                that its codes were made with, or its scorer draws lots.
            StoreError: files of the run are missing or damaged.
        """
        given = dict(zip(_TAKEN, (model, sae, device, batch_tokens), strict=True))
        changes = {name: value for name, value in given.items() if value is not None}
        job, set_name = finished_job(run, changes)
        if sae is not None and finished_job(run)[0].sae_path is None:
            raise InputError(
                f"the run in {run} has trained its own autoencoder, which lies in it; leave sae out"
            )
        own = job.folder / SET_FOLDERS / set_name if set_name else job.folder
        codes, targets = CodeStore(job.folder / CORPUS_CODES), CodeStore(own / TARGET_CODES)
        ledger = Ledger(job.folder)
        ledger = Ledger(own, above=ledger) if set_name else ledger
        learned = read_learned(own, ledger, set_name)
        self._scoring = _scoring(codes, targets, job.recipe(), learned, own / SCORER)
        self.scorer = self._scoring.scorer.name
        self._targets = targets.ids()
        self._content = ContentReader(job.text_column, text_template(job))
        origin = codes.fingerprint()["origin"]
        tap, autoencoder = open_model(job)
        tap = tap.rounding_to(origin["tap"]["activation_dtype"])
        _check(job.folder, origin, tap, autoencoder)
        self._embed = RowEmbedder(
            autoencoder,
            tap,
            top_k=origin["top_k"],
            pooling=origin["pooling"],
            dtype=DTYPES[origin["dtype"]],
            max_norm=origin["max_norm"],
        )
        self._pooling = str(origin["pooling"])

    def columns(self, names: Sequence[str]) -> list[str]:
        """Return which of some columns are read for the text or conversation of a row; all for a template.

        Raises:
            InputError: none of them.
        """
        wanted = self._content.wanted(names)
        if wanted == []:
            raise InputError(self._content.refusal(names))
        return list(names) if wanted is None else [name for name in names if name in _tops(wanted)]

    def score(self, rows: Iterable[str | Mapping[str, Any] | Row], *, full_rows: bool = False) -> RowScores:
        """Score rows; there may be any number of them, which are held in memory together.

        Args:
            rows: texts; or rows as the run's corpus had them, of which text or conversation is read by the
                run's own options.
            full_rows: they come from a table, where nulls stand for what isn't there.

        Raises:
            InputError: a row without the columns that are read, NaN activations, or a conversation that the
                chat template refuses, where that stopped the run; the row is named by its number, from 0.
            StoreError: a code that the dtype of the run's codes can't hold.
        """
        read = [self._row(number, row, full_rows) for number, row in enumerate(rows)]
        if not read:
            none, empty = np.zeros(0), np.zeros(0, np.int64)
            return RowScores(none, [], none, empty, np.zeros(0, np.bool_))
        found = self._embed(read)
        table = self._scoring.score_others(
            Evidence(found.codes, self._pooling, found.words, found.dense, found.tokens)
        )
        nearest = [self._targets[at] if at >= 0 else None for at in table.nearest_target.tolist()]
        return RowScores(table.score, nearest, table.nearest_similarity, found.tokens, table.valid)

    def _row(self, number: int, row: str | Mapping[str, Any] | Row, full_rows: bool) -> Row:
        if isinstance(row, Row):
            return row
        place = f"row {number}"
        if isinstance(row, str):
            return Row(place, row, place=place)
        said = self._content.read(row, place, full_rows=full_rows)
        if said is None:
            raise InputError(f"{place}: {self._content.refusal(list(row))}")
        return Row(place, said.text, said.messages, place=place, tools=said.tools)


def _tops(names: Iterable[str]) -> set[str]:
    """The columns that hold what dotted names reach into, and those names themselves."""
    return {*names, *(name.partition(".")[0] for name in names)}


def score_texts(
    run: str | os.PathLike[str] | RowScorer, rows: Sequence[str | Mapping[str, Any]], **options: Any
) -> RowScores:
    """Score texts, or rows, by a finished run; who has many calls makes one ``RowScorer`` for all of them.

    Args:
        run: a folder or a URL, or what has been opened already.
        rows: as ``RowScorer.score``.
        options: of ``RowScorer``.

    Raises:
        InputError, StoreError: as ``RowScorer`` and its ``score``.
    """
    return (run if isinstance(run, RowScorer) else RowScorer(run, **options)).score(rows)


def _scoring(
    codes: CodeStore, targets: CodeStore, recipe: Any, learned: tuple[Any, Any], path: Path
) -> Scoring:
    """The recipe with what it has ``learned``, which lies at ``path``.

    Raises:
        InputError: a scorer that draws lots.
        StoreError: what was fitted is of another recipe.
    """
    state, notes = learned
    try:
        scoring = Scoring(evidence_of(codes), evidence_of(targets), recipe, state=state)
        scoring.check_others()
    except ValueError as error:
        raise InputError(f"{codes.directory}: {error}") from None
    if notes.get("scorer") != scoring.scorer.name:
        raise StoreError(
            f"{path} is of scorer {notes.get('scorer')}, and the run of {scoring.scorer.name}; {REMEDY}"
        )
    return scoring


def _check(folder: Path, origin: Mapping[str, Any], tap: ActivationTap, sae: Autoencoder) -> None:
    """Refuse a model or an autoencoder that isn't the run's.

    Raises:
        InputError: it isn't; says what differs.
    """
    for name, now in (("tap", tap.fingerprint()), ("sae", sae_fingerprint(sae))):
        # A model's configuration isn't compared: other versions of its library write others.
        made = {key: value for key, value in origin[name].items() if key != "config"}
        now.pop("config", None)
        changed = differences(made, now, name)
        if changed:
            raise InputError(
                f"the codes in {folder} were made otherwise: {changed[0]}; give the model and the "
                "autoencoder of that run"
            )

"""A run with several target sets, as its stages see it: what the sets share, and each of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.corpus import Corpus, copy_rows
from finescope.curation.shares import parse_shares, unequal_shares
from finescope.errors import InputError
from finescope.storage.files import make_folder
from finescope.workflow.context import Context
from finescope.workflow.labels import target_labels
from finescope.workflow.layout import CORPUS_CODES, ROWS, SCORER, SCORES, SET_FOLDERS
from finescope.workflow.learned import read_learned
from finescope.workflow.ledger import Ledger
from finescope.workflow.rows import open_rows
from finescope.workflow.setnames import check_set_name, named_files

if TYPE_CHECKING:
    from finescope.activations import ActivationTap
    from finescope.activations.rendering import Renderer
    from finescope.corpus.plan import Shard
    from finescope.curation.scoring.evidence import Evidence, Spaces
    from finescope.embeddings.store import CodeStore
    from finescope.sae import Autoencoder
    from finescope.storage.coded import CodedStrings
    from finescope.workflow.labels import LabelCount
    from finescope.workflow.opening import Given
    from finescope.workflow.saved import SavedTable
    from finescope.workflow.scored import Scored


class SetsContext(Context):
    """What the target sets of a run share. Its targets are those of all sets."""

    _needs = ("corpus",)

    def _open_targets(self) -> Corpus:
        if not self.job.target_sets:
            return super()._open_targets()
        # Two sets may call their rows alike: here they are only read, to find what is wrong with them.
        return open_rows(
            self.job,
            list(named_files(self.job.target_sets).values()),
            empty="error",
            lenient=True,
            id_column=None,
        )

    @cached_property
    def sets(self) -> dict[str, SetContext]:
        """The target sets by name, in their order.

        Raises:
            InputError: a target says of no set that it belongs to it, what it says can't be a set's name, or
                shares are of other sets.
        """
        places = named_files(self.job.target_sets) if self.job.target_sets else self._parted()
        shares = parse_shares(self.job.shares)
        if shares and shares.keys() != places.keys():
            raise InputError(unequal_shares(shares, places))
        return {name: SetContext(self, name, place) for name, place in places.items()}

    def check_sets(self) -> None:
        """See the base."""
        for each in self.sets.values():
            each.plan("targets")

    def check_labels(self) -> None:
        """See the base: each set is measured by the labels of its own targets."""
        if self.job.label_column is not None and "corpus" in self._labels:
            for each in self.sets.values():
                each.plan("targets")
                seeds = each._labels["targets"]
                target_labels(
                    self._labels["corpus"], seeds, self.corpus, each.targets, self.job.target_labels
                )

    def _parted(self) -> dict[str, str]:
        """Write the targets of each set into a file of their own, as they came."""
        column = str(self.job.target_set_column)
        rows: dict[str, list[int]] = {}
        for number, row in enumerate(self.targets.rows(columns=[column])):
            value = row.record.get(column)
            if value is None or str(value) == "":
                raise InputError(f"{row.place}: the target has no {column!r}, which says of what set it is")
            check_set_name(str(value))
            rows.setdefault(str(value), []).append(number)
        places = {}
        for name, numbers in rows.items():
            place = self.folder / SET_FOLDERS / name / f"targets{self.targets.suffix}"
            make_folder(place.parent)
            copy_rows(place, self.targets, numbers)
            places[name] = str(place)
        return places

    @property
    def spaces(self) -> Spaces:
        """The spaces of the corpus, with what was learned of them when it was last scored."""
        return self._made_of(next(iter(self.sets.values())).folder / SCORER, self._open_spaces)

    def _open_spaces(self, path: Path) -> Spaces:
        from finescope.curation.scoring.evidence import Spaces

        state, _ = read_learned(path.parent, self.ledger, next(iter(self.sets)))
        return Spaces(self.evidence, state)

    @functools.cache  # noqa: B019
    def corpus_labels(self, column: str) -> tuple[CodedStrings, LabelCount]:
        """Return the labels of the corpus rows and their counts; see ``Context.labels``."""
        return self._labels_of("corpus", column)

    def label_names(self) -> CodedStrings | None:
        """Return the labels of the corpus rows; None if the job names no column of labels."""
        column = self.job.label_column
        return None if column is None else self.corpus_labels(column)[0]

    @property
    def row_table(self) -> SavedTable:
        """What is true of the rows whatever the set."""
        from finescope.workflow.tables import read_rows

        return self._made_of(self.folder / ROWS, read_rows)

    def scored(self) -> Scored:
        """Refuse: there is one table a set."""
        raise InputError(
            f"{self.folder} holds the target sets {', '.join(self.sets)}: name the folder of one, such as "
            f"{next(iter(self.sets.values())).folder}"
        )


class SetContext(Context):
    """One target set of a run. What doesn't depend on the targets it has from the run."""

    def __init__(self, run: SetsContext, name: str, targets: str, changes: Mapping[str, Any] | None = None):
        """Open the targets; nothing is read or written yet.

        Args:
            run: with all sets.
            name: of the set.
            targets: its file.
            changes: values of the job that are other than the run's.

        Raises:
            InputError: there are no targets.
        """
        self.run, self.set_name = run, name
        folder = run.folder / SET_FOLDERS / name
        alone: dict[str, Any] = {
            "target_sets": [],
            "target_set_column": None,
            "exclusive": False,
            "shares": [],
        }
        job = dataclasses.replace(
            run.job, **{**alone, "targets": targets, "out": str(folder), **(changes or {})}
        )
        super().__init__(job, run.reporter, restart=run.restart, engine=run.engine)
        self.ledger = Ledger(folder, above=run.ledger)

    def _open_corpus(self) -> Corpus:
        return self.run.corpus

    @property
    def home(self) -> Path:
        """The folder of the run."""
        return self.run.folder

    def plan(self, name: str, seen: Any = None) -> list[Shard]:
        """Return the shards of "corpus" or of "targets"."""
        return self.run.plan(name, seen) if name == "corpus" else super().plan(name, seen)

    @property
    def renderer(self) -> Renderer:
        """The run's."""
        return self.run.renderer

    @property
    def tap_identity(self) -> dict[str, Any]:
        """The run's."""
        return self.run.tap_identity

    @property
    def sae_identity(self) -> dict[str, Any]:
        """The run's."""
        return self.run.sae_identity

    @property
    def tap(self) -> ActivationTap:
        """The run's."""
        return self.run.tap

    @property
    def given(self) -> Given | None:
        """The run's."""
        return self.run.given

    @property
    def sae(self) -> Autoencoder:
        """The run's."""
        return self.run.sae

    @property
    def evidence(self) -> Evidence:
        """The run's."""
        return self.run.evidence

    @property
    def _scored_spaces(self) -> Spaces:
        return self.run.spaces

    def scored(self) -> Scored:
        """Return the scores of all rows.

        Raises:
            StoreError: the corpus hasn't been scored, or a file is damaged.
        """
        from finescope.workflow.tables import read_scores

        return read_scores(self.folder / SCORES, self.run.row_table, lambda: self.scoring)

    def store(self, name: str) -> CodeStore:
        """Open the codes of the corpus or of the targets, by the folder's name."""
        return self.run.store(name) if name == CORPUS_CODES else super().store(name)

    def _labels_of(self, name: str, column: str) -> tuple[CodedStrings, LabelCount]:
        if name != "corpus":
            return super()._labels_of(name, column)
        return self.run.corpus_labels(column)

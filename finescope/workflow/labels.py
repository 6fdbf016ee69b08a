"""Known labels of the corpus rows, and which of them are the target domain: for evaluation only."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from finescope.errors import InputError
from finescope.storage.coded import CodedStrings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.corpus import Corpus
    from finescope.corpus.known import KnownRows
    from finescope.corpus.row import Row
    from finescope.embeddings.store import CodeStore

_LISTED = 64
"""Rows whose columns are listed where the column of the labels is missing."""


@dataclass
class Labels:
    """Labels of the corpus rows and which of them are the target domain.

    Attributes:
        column: where they come from.
        names: N labels; "" for rows without one. As many as there are, few of them are in memory.
        targets: the labels that count as the target domain.
    """

    column: str
    names: CodedStrings
    targets: list[str]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """bool [N], rows of the target domain."""
        return self.names.are(self.targets)

    def relevant_in(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which of so many rows, from one on, are of the target domain, bool [count]."""
        return self.names.are(self.targets, first, count)


@dataclass
class LabelCount:
    """How often each label occurs, counted as the rows come by."""

    column: str
    found: bool = False
    """Whether any row has the column."""
    counts: Counter[str] = field(default_factory=Counter)

    def see(self, row: Row) -> str:
        """Take the next row; return its label, "" where it has none."""
        self.found = self.found or self.column in row.record
        name = label_of(row, self.column)
        self.counts[name] += 1
        return name


def label_of(row: Row, column: str) -> str:
    """Return the label of a row as text; "" where it has none."""
    value = row.record.get(column)
    return "" if value is None else str(value)


def read_labels(rows: Corpus, column: str, known: KnownRows) -> tuple[CodedStrings, LabelCount]:
    """Read the labels of all rows, and count them.

    Raises:
        StoreError: they aren't the ``known`` rows.
    """
    count = LabelCount(column)
    names = (count.see(row) for row in known.same(rows.rows(columns=[column])))
    return CodedStrings.of(names, len(known.ids)), count


def stored_labels(store: CodeStore, column: str) -> tuple[CodedStrings, LabelCount] | None:
    """Return the labels kept beside the codes, and their counts; None if they are of another column."""
    kept = store.coded_labels(column)
    if kept is None:
        return None
    counts = Counter(dict(zip(kept.names, kept.counts().tolist(), strict=True)))
    return kept, LabelCount(column, found=True, counts=counts)


def target_labels(
    count: LabelCount, targets: LabelCount, corpus: Corpus, target_rows: Corpus, asked: Sequence[str]
) -> list[str]:
    """Return the labels of the target domain: those asked for, else those of the targets.

    Raises:
        InputError: no row has the column, the targets have no label and none was asked for, or no corpus row
            carries a target label.
    """
    if not count.found:
        raise InputError(
            f"{corpus.name} has no column {count.column!r} to take labels from; there are "
            f"{', '.join(_columns(corpus))}"
        )
    wanted = [str(label) for label in asked] or sorted(filter(None, targets.counts))
    if not wanted:
        raise InputError(
            f"the targets ({target_rows.name}) have no column {count.column!r}; name the target domain's "
            "labels with --target-label"
        )
    missing = [label for label in wanted if label not in count.counts]
    if len(missing) == len(wanted):
        known = Counter({name: number for name, number in count.counts.items() if name})
        common = ", ".join(name for name, _ in known.most_common(8))
        raise InputError(
            f"no row of {corpus.name} has the label {missing[0]!r} in column {count.column!r}; the most "
            f"frequent are {common}"
        )
    return wanted


def _columns(rows: Corpus) -> list[str]:
    return sorted({name for row in itertools.islice(rows.rows(), _LISTED) for name in row.record})

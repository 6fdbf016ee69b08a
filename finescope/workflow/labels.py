"""Known labels of the corpus rows, and which of them are the target domain: for evaluation only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finescope.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.corpus import Corpus


@dataclass
class Labels:
    """Labels of the corpus rows and which of them are the target domain.

    Attributes:
        column: where they come from.
        names: N labels; "" for rows without one.
        targets: the labels that count as the target domain.
    """

    column: str
    names: list[str]
    targets: list[str]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """bool [N], rows of the target domain."""
        wanted = set(self.targets)
        return np.fromiter((name in wanted for name in self.names), np.bool_, len(self.names))


def read_labels(corpus: Corpus, targets: Corpus, column: str, target_labels: Sequence[str]) -> Labels:
    """Read the labels of all corpus rows, and those of the targets unless they are given.

    Raises:
        InputError: no row has the column, the targets have no label and none was given, or no corpus row
            carries a target label.
    """
    names: list[str] = []
    there = False
    for row in corpus.rows(columns=[column]):
        there = there or column in row.record
        value = row.record.get(column)
        names.append("" if value is None else str(value))
    if not there:
        columns = next(corpus.rows()).record
        raise InputError(
            f"{corpus.name} has no column {column!r} to take labels from; its first row has "
            f"{', '.join(sorted(columns))}"
        )
    wanted = [str(label) for label in target_labels]
    if not wanted:
        found = (row.record.get(column) for row in targets.rows(columns=[column]))
        wanted = sorted({str(label) for label in found if label is not None})
        if not wanted:
            raise InputError(
                f"the targets ({targets.name}) have no column {column!r}; name the target domain's labels "
                "with --target-label"
            )
    known = set(names)
    missing = [label for label in wanted if label not in known]
    if len(missing) == len(wanted):
        common = ", ".join(name for name, _ in Counter(filter(None, names)).most_common(8))
        raise InputError(
            f"no row of {corpus.name} has the label {missing[0]!r} in column {column!r}; the most frequent "
            f"are {common}"
        )
    return Labels(column, names, wanted)

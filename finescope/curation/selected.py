"""What a selection is: the selected rows, and what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import IntArray
from finescope.curation.limits import CODE, REASONS
from finescope.html.notebook import ROWS, notebook
from finescope.progress import counted


class Reasons:
    """What became of N rows, found a block at a time whenever it is asked for, so that it needs no memory.

    ``np.asarray`` gives it for all rows, uint8 [N].

    Attributes:
        counts: int64, rows by position in ``REASONS``.
    """

    def __init__(self, counts: IntArray, blocks: Callable[[], Iterator[NDArray[np.uint8]]]):
        """Take the counts, and what gives the reasons of all rows in their order."""
        self.counts, self._blocks = counts, blocks

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the reasons of blocks of rows, in their order."""
        return self._blocks()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return np.concatenate([np.zeros(0, np.uint8), *self]).astype(dtype or np.uint8, copy=False)


@dataclass
class Selection:
    """Selected rows and what became of the others.

    Attributes:
        indices: int64 [R], selected rows, best first.
        reason: uint8 [N], position in ``REASONS`` for every row; or what gives it.
        resembles: for rows left out as near-duplicate or not diverse, the selected row they resemble.
        tokens: tokens of the selected rows, when token counts were given.
        config: the limits as a dictionary.
        unfilled: which labels had too few rows for their quotas, in words.
    """

    indices: IntArray
    reason: NDArray[np.uint8] | Reasons
    resembles: dict[int, int] = field(default_factory=dict)
    tokens: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    unfilled: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.indices.size)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are for each reason; every reason is listed."""
        if isinstance(self.reason, Reasons):
            found = self.reason.counts
        else:
            found = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(found[code]) for name, code in CODE.items()}

    def reasons(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the reasons of all rows in their order, so many at a time where they are held."""
        if isinstance(self.reason, Reasons):
            yield from self.reason
            return
        for low in range(0, len(self.reason) or 1, rows):
            yield self.reason[low : low + rows]

    def dropped(self) -> str:
        """Return in words what became of the rows that aren't selected: ``880 beyond limit, 3 target``."""
        return ", ".join(
            f"{count:,} {name.replace('_', ' ')}"
            for name, count in self.counts.items()
            if count and name != "selected"
        )

    def _repr_html_(self) -> str:
        """Return the best of the selected rows, for notebooks."""
        rows = self.indices[:ROWS]
        said = [] if self.tokens is None else [f"{counted(self.tokens, 'token')}"]
        said += [f"not selected: {words}" for words in [self.dropped()] if words]
        columns: dict[str, Any] = {"rank": np.arange(1, rows.size + 1), "row": rows}
        if self.resembles:
            alike = Counter(self.resembles.values())
            columns["left out because they resemble it"] = [alike[row] for row in rows.tolist()]
        return notebook(
            f"{counted(len(self), 'row')} selected of {len(self.reason):,}",
            columns,
            said=[*said, *self.unfilled],
            caption="The best of them; rows are counted from 0",
            more=len(self) - rows.size,
        )

"""Scores as a pass over the codes has found them, with what the store of codes says of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import IntArray
from finescope.workflow.scored import CRC32, ID, OF_TARGETS, ROWS, TYPES, Block, Unheld, holds

if TYPE_CHECKING:
    from finescope.curation.scoring.fitted import Scores, Scoring
    from finescope.embeddings.store import CodeStore

_KEPT = {ID: "id", "tokens": "n_tokens", CRC32: "text_crc32"}
"""What columns are called in the tables of a store."""


class FreshScores(Unheld):
    """The rows of a store with their scores.

    Attributes:
        target_rows: int64, ascending, the rows that are targets themselves.
    """

    def __init__(
        self,
        store: CodeStore,
        scores: Scores,
        target_ids: list[str],
        target_rows: IntArray,
        settings: dict[str, Any],
    ):
        """Put together scores and the store of the codes that were scored, both of N rows."""
        self._store, self._scores = store, scores
        self.target_ids, self.target_rows, self.settings = target_ids, target_rows, settings

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        return self._scores.scorer

    @property
    def has_crc32(self) -> bool:
        """Whether checksums of the texts are known."""
        return self._store.has_checksums

    @property
    def has_nearest(self) -> bool:
        """Whether the pass has found the nearest targets."""
        return self._scores.has_nearest

    @property
    def scoring(self) -> Scoring:
        """What made the scores."""
        return self._scores.scoring

    def blocks(self, *names: str, among: IntArray | None = None) -> Iterator[tuple[int, Block]]:
        """Yield (number of the first row, columns of those names)."""
        names = tuple(name for name in names if name in self.columns)
        kept = {name: _KEPT[name] for name in names if name in _KEPT}
        told: Iterator[Any] | None = self._store.table_blocks(list(kept.values()), ROWS) if kept else None
        for low in range(0, len(self), ROWS):
            rows = slice(low, min(low + ROWS, len(self)))
            table = None if told is None else next(told)
            if not holds(among, low, low + ROWS):
                continue
            found = {name: _values(table, name, column) for name, column in kept.items()}
            if "is_target" in names:
                found["is_target"] = np.zeros(rows.stop - low, np.bool_)
                first, last = np.searchsorted(self.target_rows, [low, rows.stop])
                found["is_target"][self.target_rows[first:last] - low] = True
            if {"valid", *OF_TARGETS} & set(names):
                scores = self._scores[rows]
                found |= {
                    "score": scores.score,
                    "nearest_target_index": scores.nearest_target,
                    "nearest_similarity": scores.nearest_similarity,
                    "valid": scores.valid,
                }
            yield low, {name: found[name] for name in names}


def _values(table: Any, name: str, column: str) -> Any:
    values = table.column(column).combine_chunks()
    return values if name == ID else values.fill_null(0).to_numpy().astype(TYPES[name], copy=False)

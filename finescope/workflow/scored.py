"""The rows of a corpus with their scores, read a block at a time: however many there are, one is held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from finescope.corpus.known import KnownRows
from finescope.curation.limits import RowBlock, SelectionConfig
from finescope.curation.scoring.fitted import nearest_of_each
from finescope.curation.scoring.presets import Preset
from finescope.curation.scoring.table import NOBODY, ScoreTable
from finescope.storage.strings import Strings

if TYPE_CHECKING:
    from finescope.curation.blocks import FloatArray, IntArray
    from finescope.curation.scoring.fitted import Scoring

ROWS = 1 << 20
"""Rows of a block, and of a group of rows in the files."""
ID, CRC32 = "id", "text_crc32"
OF_ROWS = {ID: str, "tokens": np.int64, "valid": np.bool_, "is_target": np.bool_}
"""Columns of what doesn't depend on the targets, and their types."""
OF_TARGETS = {"score": np.float64, "nearest_target_index": np.int64, "nearest_similarity": np.float64}
NEAREST = ("nearest_target_index", "nearest_similarity")
"""Columns that a table may lack: what they would hold of a row is then found when it is looked at."""
TYPES: dict[str, Any] = {**OF_ROWS, **OF_TARGETS, CRC32: np.uint32}

Block = dict[str, Any]
"""Columns of some rows by name: NumPy arrays; that of the ids a pyarrow array of strings."""
_Value = TypeVar("_Value")


class Scored(ABC):
    """N rows with their scores by Q targets, and what identifies them.

    Attributes:
        target_ids: Q ids, to which ``nearest_target_index`` points.
        settings: how the scores were made.
        table: scores of the N rows.
        ids: N ids.
        tokens: int64 [N], tokens per row.
        is_target: bool [N], rows that are targets themselves.
        crc32: uint32 [N], ``text_crc32`` of the texts that were scored; None where that isn't known.
    """

    target_ids: list[str]
    settings: dict[str, Any]
    if TYPE_CHECKING:

        @property
        def table(self) -> ScoreTable: ...
        @property
        def ids(self) -> Sequence[str]: ...
        @property
        def tokens(self) -> NDArray[np.int64]: ...
        @property
        def is_target(self) -> NDArray[np.bool_]: ...
        @property
        def crc32(self) -> Sequence[int] | NDArray[np.uint32] | None: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def scorer(self) -> str:
        """Name of the scorer."""

    @property
    @abstractmethod
    def has_crc32(self) -> bool:
        """Whether checksums of the texts are known: those of codes without texts are not."""

    @property
    @abstractmethod
    def has_nearest(self) -> bool:
        """Whether the nearest target of every row is kept."""

    @abstractmethod
    def nearest(self, rows: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the nearest target of some rows, int64 [R] row numbers, and its cosine; as ``ScoreTable``.

        Raises:
            StoreError: it isn't kept, and there is nothing to find it by.
        """

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns that there are: those of ``TYPES``."""
        missing = {*(() if self.has_crc32 else (CRC32,)), *(() if self.has_nearest else NEAREST)}
        return [name for name in TYPES if name not in missing]

    @abstractmethod
    def blocks(self, *names: str, among: IntArray | None = None) -> Iterator[tuple[int, Block]]:
        """Yield (number of the first row, columns of those names that there are), in the order of the rows.

        Args:
            names: of ``TYPES``.
            among: int64, ascending; blocks that hold none of these rows are passed over.
        """

    @property
    def targets_in_corpus(self) -> dict[str, int]:
        """How many rows are targets themselves, by reason: see ``TargetRows``."""
        return dict(self.settings.get("targets") or {"same_id": int(self.is_target.sum())})

    @property
    def known(self) -> KnownRows:
        """What the rows must be when they are read again."""
        return KnownRows(self.ids, self.crc32)

    def names_of(self, targets: IntArray) -> list[str | None]:
        """Return the ids of nearest targets, as ``nearest`` numbers them; None for rows without a code."""
        return [self.target_ids[at] if at >= 0 else None for at in targets.tolist()]

    @property
    def recipe(self) -> Preset:
        """How the scores were made."""
        made = self.settings
        return Preset(
            made["preset"], made["pooling"], made["weights"], made["scorer"], "rank", "", made["top_m"]
        )

    def row_blocks(self, limits: SelectionConfig) -> Iterator[RowBlock]:
        """Yield all rows as those limits of a selection look at them."""
        for first, block in self.blocks("tokens", "valid", "is_target", "score"):
            rows = np.arange(first, first + len(block["score"]))
            nearest = NOBODY if limits.min_similarity is None else self.nearest(rows)
            table = ScoreTable(block["score"], *nearest, block["valid"], self.scorer)
            yield RowBlock(first, table, block["tokens"], block["is_target"])

    def table_for(self, limits: SelectionConfig) -> ScoreTable:
        """Return the scores of all rows, with their nearest targets only if those limits look at them."""
        if limits.min_similarity is not None:
            return self.table
        parts = [(block["score"], block["valid"]) for _, block in self.blocks("score", "valid")]
        score, valid = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ScoreTable(score, *NOBODY, valid, self.scorer)

    def valid_blocks(self) -> Iterator[NDArray[np.bool_]]:
        """Yield which rows are valid, in order."""
        for _, block in self.blocks("valid"):
            yield block["valid"]

    def at(self, rows: IntArray, known: Block | None = None) -> ScoredRows:
        """Return some rows, in the order asked for, held in memory.

        Args:
            rows: int64 [R], row numbers.
            known: columns of them that needn't be read.
        """
        rows, known = np.asarray(rows, np.int64), known or {}
        found = self.columns_at(rows, [name for name in self.columns if name not in known]) | known
        if not self.has_nearest and not set(NEAREST) <= set(known):
            found |= dict(zip(NEAREST, self.nearest(rows), strict=True))
        return ScoredRows.of(found, self)

    def columns_at(self, rows: IntArray, names: Sequence[str]) -> Block:
        """Return columns of some rows, int64 [R], in the order asked for."""
        import pyarrow as pa

        order = np.argsort(rows, kind="stable")
        wanted, parts = rows[order], {name: [_empty(name)] for name in names}
        for first, block in self.blocks(*names, among=wanted):
            count = len(next(iter(block.values())))
            low, high = np.searchsorted(wanted, [first, first + count])
            places = wanted[low:high] - first
            for name, values in block.items():
                parts[name].append(values.take(pa.array(places)) if name == ID else values[places])
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return {
            name: pa.chunked_array(values).take(pa.array(place))
            if name == ID
            else np.concatenate(values)[place]
            for name, values in parts.items()
        }

    def lowest(self, rows: IntArray) -> float | None:
        """Return the lowest score of some rows, int64 [R]; None where there are none."""
        found, wanted = list[float](), np.sort(rows)
        for first, block in self.blocks("score", among=wanted):
            low, high = np.searchsorted(wanted, [first, first + len(block["score"])])
            if high > low:
                found.append(float(block["score"][wanted[low:high] - first].min()))
        return min(found, default=None)

    def known_at(self, rows: IntArray, picked: ScoredRows | None = None) -> KnownRows:
        """Return what some rows must be when they are read again.

        Args:
            rows: int64 [R].
            picked: what ``at`` returned for them, if it was asked.
        """
        picked = self.at(rows) if picked is None else picked
        crc32: _Of[int] | None = None
        if picked.crc32 is not None:
            crc32 = _Of(len(self), rows, picked.crc32)
        return KnownRows(_Of(len(self), rows, picked.ids), crc32)


def at_each(scored: Mapping[str, Scored], rows: Mapping[str, IntArray]) -> dict[str, ScoredRows]:
    """Return some rows of every target set, as ``Scored.at``; what the sets share is read once.

    Args:
        scored: by set, of the same corpus.
        rows: by set, int64 [R] row numbers.
    """
    import pyarrow as pa

    first = next(iter(scored.values()))
    every = np.unique(np.concatenate(list(rows.values())))
    shared = first.columns_at(every, [name for name in first.columns if name not in OF_TARGETS])
    scorings = {
        name: each.scoring
        for name, each in scored.items()
        if name in rows and isinstance(each, Unheld) and not each.has_nearest
    }
    nearest = nearest_of_each(scorings, {name: rows[name] for name in scorings})
    found = {}
    for name, wanted in rows.items():
        place = np.searchsorted(every, wanted)
        known = {
            column: values.take(pa.array(place)) if column == ID else values[place]
            for column, values in shared.items()
        }
        known |= dict(zip(NEAREST, nearest.get(name, ()), strict=False))
        found[name] = scored[name].at(wanted, known)
    return found


def known_each(count: int, picked: Mapping[str, ScoredRows], rows: Mapping[str, IntArray]) -> KnownRows:
    """Return what the rows must be, of ``count``, that ``at_each`` has picked, when they are read again."""
    every = np.concatenate(list(rows.values()))
    crc32 = [found.crc32 for found in picked.values() if found.crc32 is not None]
    return KnownRows(
        _Of(count, every, [one for found in picked.values() for one in found.ids]),
        _Of(count, every, np.concatenate(crc32)) if len(crc32) == len(picked) else None,
    )


class _Of(Sequence[_Value], Generic[_Value]):
    """N values, of which some are known."""

    def __init__(self, count: int, rows: IntArray, values: Any):
        self._count, self._values = count, values
        self._place = dict(zip(rows.tolist(), range(len(rows)), strict=True))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> _Value: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[_Value]: ...
    def __getitem__(self, row: int | slice) -> _Value | Sequence[_Value]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(self._count))]
        found: _Value = self._values[self._place[row]]
        return found


@dataclass
class ScoredRows(Scored):
    """Rows with their scores that are held in memory."""

    table: ScoreTable
    ids: Sequence[str]
    target_ids: list[str]
    tokens: NDArray[np.int64]
    is_target: NDArray[np.bool_]
    settings: dict[str, Any]
    crc32: Sequence[int] | NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        return self.table.scorer

    @property
    def has_crc32(self) -> bool:
        """Whether checksums of the texts are known."""
        return self.crc32 is not None

    @property
    def has_nearest(self) -> bool:
        """Whether the nearest targets are there."""
        return self.table.nearest_target.size == len(self)

    def nearest(self, rows: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the nearest target of some rows, and its cosine."""
        return self.table.nearest_target[rows], self.table.nearest_similarity[rows]

    def blocks(self, *names: str, among: IntArray | None = None) -> Iterator[tuple[int, Block]]:
        """Yield (number of the first row, columns of those names); of no rows one block."""
        every = {
            ID: as_column(self.ids),
            "tokens": self.tokens,
            "valid": self.table.valid,
            "is_target": self.is_target,
            "score": self.table.score,
            "nearest_target_index": self.table.nearest_target,
            "nearest_similarity": self.table.nearest_similarity,
            CRC32: self.crc32,
        }
        for low in range(0, len(self) or 1, ROWS):
            part = slice(low, low + ROWS)
            if holds(among, low, low + ROWS):
                yield low, {name: every[name][part] for name in names if name in self.columns}

    @classmethod
    def of(cls, columns: Block, like: Scored) -> ScoredRows:
        """Return rows with those columns; targets and settings are those of others."""
        score, nearest, similarity = (columns[name] for name in OF_TARGETS)
        return cls(
            ScoreTable(score, nearest, similarity, columns["valid"], like.scorer),
            Strings(columns[ID]),
            like.target_ids,
            columns["tokens"],
            columns["is_target"],
            like.settings,
            columns.get(CRC32),
        )


class Unheld(Scored):
    """Rows with their scores that lie elsewhere; what is asked for of all rows is read then, and kept."""

    @cached_property
    def table(self) -> ScoreTable:
        """The scores of all rows."""
        if self.has_nearest:
            nearest = self.every(NEAREST[0]), self.every(NEAREST[1])
        else:
            nearest = self.scoring.nearest(np.arange(len(self)))
        return ScoreTable(self.every("score"), *nearest, self.every("valid"), self.scorer)

    def nearest(self, rows: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the nearest target of some rows, and its cosine."""
        if self.has_nearest:
            return self.table.nearest_target[rows], self.table.nearest_similarity[rows]
        return self.scoring.nearest(rows)

    @property
    @abstractmethod
    def scoring(self) -> Scoring:
        """What made the scores: it finds the nearest targets where they aren't kept.

        Raises:
            StoreError: that isn't known.
        """

    @cached_property
    def ids(self) -> Strings:
        """N ids."""
        import pyarrow as pa

        return Strings(pa.chunked_array([_empty(ID), *(block[ID] for _, block in self.blocks(ID))]))

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """int64 [N], tokens per row."""
        return self.every("tokens")

    @cached_property
    def is_target(self) -> NDArray[np.bool_]:
        """bool [N], rows that are targets themselves."""
        return self.every("is_target")

    @cached_property
    def crc32(self) -> NDArray[np.uint32] | None:
        """uint32 [N], ``text_crc32`` of the texts that were scored; None where that isn't known."""
        return self.every(CRC32) if self.has_crc32 else None

    def every(self, name: str) -> NDArray[Any]:
        """Return a column of all rows."""
        found, at = np.empty(len(self), TYPES[name]), 0
        for _, block in self.blocks(name):
            found[at : at + len(block[name])] = block[name]
            at += len(block[name])
        return found


def holds(among: IntArray | None, low: int, high: int) -> bool:
    """Return whether any of some rows, int64, ascending, stands in low … high-1; of None all do."""
    return among is None or bool(np.diff(np.searchsorted(among, [low, high]))[0])


def as_column(values: Sequence[str]) -> Any:
    """Return strings as a pyarrow column."""
    import pyarrow as pa

    return values.column if isinstance(values, Strings) else pa.array(values, pa.string())


def _empty(name: str) -> Any:
    import pyarrow as pa

    return pa.array([], pa.string()) if name == ID else np.empty(0, TYPES[name])

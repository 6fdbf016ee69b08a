"""Tables of scores in Parquet files, read a group of rows at a time."""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import IntArray
from finescope.errors import StoreError
from finescope.storage.files import PathLike
from finescope.storage.remote import downloaded, is_url
from finescope.workflow.scored import CRC32, ID, NEAREST, OF_ROWS, OF_TARGETS, TYPES, Block, Unheld, holds

if TYPE_CHECKING:
    from finescope.curation.scoring.fitted import Scoring

_REMEDY = "run `finescope score`, or curate again"


class SavedTable:
    """A Parquet table of ours, of which nothing is held but what its footer says.

    Attributes:
        columns: their names.
        notes: what stands in its header.
    """

    def __init__(self, path: PathLike, columns: Sequence[str], what: str, remedy: str = _REMEDY):
        """Look at the footer. A table at a URL is copied to this machine, as long as this object lives.

        Args:
            path: the file.
            columns: which it must have.
            what: it must be, for messages.
            remedy: how to have it again, for messages.

        Raises:
            StoreError: the file is missing, damaged, or not such a table.
        """
        self._path: PathLike = path
        self._name, self._remedy = path, remedy
        if is_url(path):
            place = contextlib.ExitStack()
            self._path = place.enter_context(downloaded(str(path)))
            weakref.finalize(self, place.close)
        with self._opened() as file:
            self._rows = int(file.metadata.num_rows)
            schema = file.schema_arrow
        self.columns: list[str] = schema.names
        raw = (schema.metadata or {}).get(b"finescope")
        if raw is None:
            raise StoreError(f"{path} is not {what}; {remedy}")
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise StoreError(
                f"{path} is not {what} by itself: it has no column {missing[0]!r}. The tables of several "
                "target sets leave that to another file; give their folder"
            )
        self.notes: dict[str, Any] = json.loads(raw)
        self._last: tuple[tuple[int, tuple[str, ...]], Block] | None = None

    def __len__(self) -> int:
        return self._rows

    def groups(self, names: Sequence[str], among: IntArray | None = None) -> Iterator[tuple[int, Any]]:
        """Yield (number of the first row, pyarrow table of those columns), group by group.

        Args:
            names: of the columns.
            among: int64, ascending; groups that hold none of these rows are passed over.

        Raises:
            StoreError: the file is missing or damaged.
        """
        with self._opened() as file:
            for first, number in self._places(file, among):
                yield first, file.read_row_group(number, names)

    def blocks(self, names: Sequence[str], among: IntArray | None = None) -> Iterator[tuple[int, Block]]:
        """Yield as ``groups``, by name NumPy's arrays.

        The last of them are held for whoever asks for the same next, as one target set after the other does
        of what all share; ids aren't, which are large.
        """
        with self._opened() as file:
            for first, number in self._places(file, among):
                asked = number, tuple(names)
                if self._last is not None and self._last[0] == asked:
                    yield first, self._last[1]
                    continue
                found = _columns(file.read_row_group(number, names))
                self._last = None if ID in names else (asked, found)
                yield first, found

    @staticmethod
    def _places(file: Any, among: IntArray | None) -> Iterator[tuple[int, int]]:
        first = 0
        for number in range(file.num_row_groups):
            last = first + file.metadata.row_group(number).num_rows
            if holds(among, first, last):
                yield first, number
            first = last

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path) as file:
                yield file
        except FileNotFoundError:
            raise StoreError(f"{self._name} does not exist; {self._remedy}") from None
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{self._name} is truncated or not a Parquet file ({error}); {self._remedy}"
            ) from error


class SavedScores(Unheld):
    """What ``write_scores`` wrote of N rows."""

    def __init__(
        self, path: PathLike, rows: SavedTable | None = None, scoring: Callable[[], Scoring] | None = None
    ):
        """Open the file.

        Args:
            path: the file.
            rows: what ``write_rows`` wrote, where the file was written without it.
            scoring: gives what made the scores; it finds the nearest targets where they aren't kept.

        Raises:
            StoreError: the file is missing, damaged, not a table of scores, or one of other rows.
        """
        wanted = ["score"] if rows is not None else [*OF_ROWS, *OF_TARGETS]
        self._path, self._scoring = path, scoring
        self._scores = SavedTable(path, wanted, "a table of scores")
        self._of_rows = self._scores if rows is None else rows
        if len(self._scores) != len(self._of_rows):
            raise StoreError(
                f"{path} has the scores of {len(self._scores):,} rows, not of {len(self._of_rows):,}"
            )
        notes = self._scores.notes
        self.target_ids, self.settings = notes["target_ids"], notes["settings"]
        self._scorer = str(notes["scorer"])

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def scorer(self) -> str:
        """Name of the scorer."""
        return self._scorer

    @property
    def has_crc32(self) -> bool:
        """Whether checksums of the texts are known."""
        return CRC32 in self._of_rows.columns

    @property
    def has_nearest(self) -> bool:
        """Whether the nearest targets are kept: a run with several target sets finds them when asked."""
        return set(NEAREST) <= set(self._scores.columns)

    @property
    def scoring(self) -> Scoring:
        """What made the scores.

        Raises:
            StoreError: the file alone doesn't tell.
        """
        if self._scoring is None:
            raise StoreError(f"{self._path} keeps no nearest targets: ask the run whose scores they are")
        return self._scoring()

    def blocks(self, *names: str, among: IntArray | None = None) -> Iterator[tuple[int, Block]]:
        """Yield (number of the first row, columns of those names)."""
        of_targets = [name for name in names if name in OF_TARGETS]
        of_rows = [name for name in names if name in self.columns and name not in OF_TARGETS]
        if self._of_rows is self._scores or not of_rows:
            for first, table in self._scores.groups([*of_targets, *of_rows], among):
                yield first, _columns(table)
        elif not of_targets:
            yield from self._of_rows.blocks(of_rows, among)
        else:
            both = (self._scores.groups(of_targets, among), self._of_rows.blocks(of_rows, among))
            for (first, table), (_, other) in zip(*both, strict=True):
                yield first, {**_columns(table), **other}


def _columns(table: Any) -> Block:
    return {
        name: table.column(name).combine_chunks()
        if name == ID
        else np.asarray(table.column(name).to_numpy(zero_copy_only=False)).astype(TYPES[name], copy=False)
        for name in table.column_names
    }

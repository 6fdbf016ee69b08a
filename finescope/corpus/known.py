"""What rows are known by once they have been read, to tell later that they are still the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finescope.errors import StoreError

if TYPE_CHECKING:
    from finescope.corpus.row import Row


def text_crc32(text: str) -> int:
    """Return the CRC-32 of a text's UTF-8 bytes: another text has another one, but for one case in 2³²."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class KnownRows:
    """N rows as they were when they were read.

    Attributes:
        ids: N ids.
        crc32: uint32 [N], ``text_crc32`` of their texts; None where that wasn't kept, and isn't compared.
        name: what they are, for messages: "corpus" or "targets".
    """

    ids: Sequence[str]
    crc32: NDArray[np.uint32] | Sequence[int] | None = None
    name: str = "corpus"

    def refuse_changed(self, number: int, row: Row) -> None:
        """Refuse a row that isn't row ``number`` any more.

        Raises:
            StoreError: it has another id or another text; names the row and says what to do.
        """
        if number >= len(self.ids):
            raise self._changed(f"{row.place}: the scores are of only {len(self.ids):,} rows")
        if row.id != self.ids[number]:
            raise self._changed(
                f"{row.place}: the row's id is {row.id!r}, but the scores have {self.ids[number]!r} there"
            )
        if self.crc32 is not None and text_crc32(row.content) != self.crc32[number]:
            raise self._changed(f"{row.place}: row {row.id!r} has another text than the scores are of")

    def same(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield all rows, the first of which is row 0.

        Raises:
            StoreError: as ``refuse_changed``, or rows are missing at the end.
        """
        number = -1
        for number, row in enumerate(rows):
            self.refuse_changed(number, row)
            yield row
        if number + 1 < len(self.ids):
            raise self._changed(f"there are {number + 1:,} rows, but the scores are of {len(self.ids):,}")

    def _changed(self, what: str) -> StoreError:
        whole = (
            "the corpus has changed since it was"
            if self.name == "corpus"
            else (f"the {self.name} have changed since they were")
        )
        return StoreError(
            f"{what}; {whole} scored: embed and score again (`finescope curate` does both), or put the old "
            "rows back"
        )

"""Rows that can't be embedded, and that are set aside so that the others can be: which, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from finescope.errors import InputError
from finescope.progress import counted

_SHOWN = 8


@dataclass(frozen=True, order=True)
class BadRow:
    """A row that is set aside.

    Attributes:
        row: its number in the corpus, from 0.
        place: where it stands.
        id: its id.
        reason: why it can't be embedded.
    """

    row: int
    place: str
    id: str
    reason: str

    @classmethod
    def from_plain(cls, values: Iterable[Any]) -> BadRow:
        """Return what ``plain`` has taken apart."""
        row, place, name, reason = values
        return cls(int(row), str(place), str(name), str(reason))

    def plain(self) -> list[Any]:
        """Return plain values for a manifest."""
        return list(astuple(self))

    def __str__(self) -> str:
        return f"row {self.row} ({self.place or self.id}): {self.reason}"


def check_bad(rows: Iterable[BadRow], limit: int) -> list[BadRow]:
    """Return rows that are set aside, in their order, each once.

    Args:
        rows: those found so far.
        limit: how many there may be.

    Raises:
        InputError: there are more; names them.
    """
    found = sorted({row.row: row for row in rows}.values())
    if len(found) > limit:
        shown = ";\n".join(map(str, found[:_SHOWN]))
        more = f";\nand {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
        raise InputError(
            f"{len(found):,} rows can't be embedded, and --max-bad-rows allows {limit:,}:\n{shown}{more}"
        )
    return found


def said_of(rows: Iterable[BadRow]) -> str:
    """Return in words which rows are set aside; an empty string of none."""
    found = list(rows)
    if not found:
        return ""
    more = f" and {len(found) - 1:,} more" if found[1:] else ""
    return f"set aside, because they can't be embedded: {counted(len(found), 'row')}: {found[0]}{more}"

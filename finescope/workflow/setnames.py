"""Names of target sets: how they are written in a job, and what can't be one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finescope.errors import InputError

MIXTURE = "mixture"
"""Name of the file with the rows of all sets."""
ROWS = "rows"
"""Name of the table of what is true of a row whatever the set."""
_ALLOWED = (
    f"letters, digits, and . or - after the first; {MIXTURE!r} and {ROWS!r} are files of all sets together"
)
WRITTEN = f"texts of the form NAME=FILE, where a NAME has {_ALLOWED}"
"""How sets are written in a job."""


def is_set_name(name: str) -> bool:
    """Return whether a text can be the name of a set, and of its files."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None and name not in (MIXTURE, ROWS)


def check_set_name(name: str) -> None:
    """Refuse what can't be the name of a set, and of its files.

    Raises:
        InputError: it can't.
    """
    if not is_set_name(name):
        raise InputError(f"{name!r} can't be the name of a target set: {_ALLOWED}")


def is_named_file(text: str) -> bool:
    """Return whether a text is of the form NAME=FILE."""
    name, _, place = text.partition("=")
    return is_set_name(name) and bool(place)


def named_files(texts: Sequence[str]) -> dict[str, str]:
    """Return the files of sets that are written as NAME=FILE, by name.

    Raises:
        InputError: a name that can't be a set's, or that comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, place = text.partition("=")
        check_set_name(name)
        if name in found:
            raise InputError(f"two target sets are called {name}")
        found[name] = place
    return found

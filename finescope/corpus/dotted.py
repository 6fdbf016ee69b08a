"""Dotted names of columns: ``a.b`` reaches into the object in column ``a``, ``a.0`` into a list there."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from finescope.errors import InputError


class Cell(NamedTuple):
    """What a name leads to in a row."""

    value: Any
    beside: Mapping[str, Any]
    """The object that holds it under its last key: the row itself for a name without a dot."""


def cell(record: Mapping[str, Any], name: str, place: str = "") -> Cell | None:
    """Return what a name leads to in a row; None if that isn't there.

    A column called exactly so goes before all others. Else keys may hold dots themselves: ``a.b.c`` is ``c``
    in the object ``b`` of column ``a``, or ``b.c`` in column ``a``, or ``c`` in column ``a.b``.

    Args:
        record: the row.
        name: of a column, dotted or not.
        place: of the row, for messages.

    Raises:
        InputError: the name leads to two places; names them.
    """
    if name in record:
        return Cell(record[name], record)
    if "." not in name:
        return None
    found = list(itertools.islice(_ways(record, name), 2))
    if len(found) > 1:
        ways = " or ".join(" in ".join(map(repr, reversed(keys))) for keys, _ in found)
        raise InputError(
            f"{place and place + ': '}column {name!r} can be {ways}; rename one of the two, or give the text "
            "with --text-template, where {{ row['a']['b.c'] }} says which key is meant"
        )
    return found[0][1] if found else None


def lookup(record: Mapping[str, Any], name: str, default: Any = None, place: str = "") -> Any:
    """Return a column's value, or ``default`` if there is none; ``a.b`` reaches into the object in column
    ``a``, ``a.0`` into a list there.

    Raises:
        InputError: the name leads to two places; see ``cell``.
    """
    found = cell(record, name, place)
    return default if found is None else found.value


def prefixes(name: str) -> list[str]:
    """Return the names of the columns that may hold what a name leads to, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def held(name: str, names: Collection[str]) -> bool:
    """Return whether one of some columns may hold what a name leads to."""
    return any(prefix in names for prefix in prefixes(name))


def holders(names: Sequence[str]) -> set[str]:
    """Return the names of all columns that may hold what some names lead to."""
    return {prefix for name in names for prefix in prefixes(name)}


def leaves(schema: Any, names: Sequence[str]) -> list[str]:
    """Return the parts of a schema's columns that hold what some names lead to, dotted.

    They end where something else than objects begins: of a list there is no element to be read alone.
    """
    return list(
        dict.fromkeys(
            prefix + _within(schema.field(prefix).type, name[len(prefix) + 1 :])
            for name in names
            for prefix in prefixes(name)
            if prefix in schema.names
        )
    )


def _within(kind: Any, rest: str) -> str:
    from pyarrow import types

    if rest and types.is_struct(kind):
        for key in prefixes(rest):
            if kind.get_field_index(key) >= 0:
                return f".{key}{_within(kind.field(key).type, rest[len(key) + 1 :])}"
    return ""


def _ways(value: Any, name: str) -> Iterator[tuple[tuple[str, ...], Cell]]:
    if isinstance(value, Mapping):
        for key in prefixes(name):
            if key in value:
                yield from _ways_on(key, value[key], name[len(key) + 1 :], value)
    elif isinstance(value, list):
        key, _, rest = name.partition(".")
        if key.isascii() and key.isdigit() and int(key) < len(value):
            yield from _ways_on(key, value[int(key)], rest, {})


def _ways_on(
    key: str, value: Any, rest: str, beside: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Cell]]:
    if not rest:
        yield (key,), Cell(value, beside)
        return
    for keys, found in _ways(value, rest):
        yield (key, *keys), found

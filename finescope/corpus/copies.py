"""The same rows in two formats: an export beside its original, which would count twice."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from finescope.corpus.content import ContentReader
from finescope.corpus.source import Source
from finescope.errors import InputError

_HEAD = 20
"""Rows of a file that are compared."""
_MOST = 256
"""Files that are compared with all of other formats; of more, those of one name in one folder are."""


def refuse_copies(sources: Sequence[Source], content: ContentReader) -> list[str]:
    """Refuse files that begin with the rows of a file in another format, or packed otherwise.

    Returns:
        what is to be said of files of one name that hold other rows.

    Raises:
        InputError: naming both.
    """
    kinds = [_ending(source) for source in sources]
    if len(set(kinds)) < 2:
        return []
    places = [_place(source) for source in sources]
    heads: dict[int, list[str]] = {}
    remarks = []
    for one, other in _pairs(places):
        named = places[one] == places[other]
        if kinds[one] == kinds[other]:
            continue
        for at in (one, other):
            if at not in heads:
                heads[at] = _head(sources[at], content)
        rows = min(len(heads[one]), len(heads[other]))
        same = heads[one][:rows] == heads[other][:rows] and any(heads[one][:rows])
        names = f"{sources[one].name} and {sources[other].name}"
        if same and (named or rows > 1):
            raise InputError(
                f"{names} begin with the same rows, which would count twice: one seems to be made from the "
                "other. Move one away, or name those to read: a file, a pattern, or several with more "
                "than one --corpus"
            )
        if named and rows:
            remarks.append(f"{names} differ, so both are read")
    return remarks


def _pairs(places: Sequence[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """Yield which files are compared, by number."""
    groups: dict[Any, list[int]] = {}
    for at, place in enumerate(places):
        groups.setdefault(place if len(places) > _MOST else None, []).append(at)
    for group in groups.values():
        yield from itertools.combinations(group, 2)


def _ending(source: Source) -> str:
    """Return what a name has behind the source's own, in one form: ``.jsonl.gz``."""
    name = source.files[0].name if source.files else ""
    return name[len(source.stem) :].lower() if name.startswith(source.stem) else posixpath.splitext(name)[1]


def _place(source: Source) -> tuple[str, str]:
    return (posixpath.dirname(source.files[0].path) if source.files else "", source.stem)


def _head(source: Source, content: ContentReader) -> list[str]:
    """Return the first texts, whatever white space is in them; none if they can't be read."""
    try:
        return [
            " ".join(said.plain.split())
            for _, place, record in itertools.islice(source.records(None), _HEAD)
            if (said := content.read(record, place, full_rows=source.full_rows)) is not None
        ]
    except InputError:
        return []  # said with its place when all is read

"""Telling two sets of plain values apart in words: why finished work doesn't fit what is asked for now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

_SHOWN = 40


class Difference(NamedTuple):
    """One value that differs: its dotted name, and both values as text, cut where they are long."""

    name: str
    old: str
    new: str


def differences(old: Any, new: Any, name: str = "") -> list[Difference]:
    """Return what differs between two nested plain values, the second taken as JSON would give it back.

    Args:
        old: as read from a file.
        new: as it would be written.
        name: dotted name of the two, put before the names inside.
    """
    return _differences(old, json.loads(json.dumps(new, default=str)), name)


def _differences(old: Any, new: Any, name: str) -> list[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(f"{name}.{key}" if name else key, key) for key in sorted({*old, *new})]
        return [found for full, key in pairs for found in _differences(old.get(key), new.get(key), full)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        both = enumerate(zip(old, new, strict=True))
        return [found for number, pair in both for found in _differences(*pair, f"{name}[{number}]")]
    return [] if old == new else [Difference(name, _short(old), _short(new))]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:16]}…"

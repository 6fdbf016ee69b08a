"""What renders all templates, and what they have in common."""

from __future__ import annotations

import functools
from typing import Any

from finescope.html.plain import plain


@functools.cache
def environment(package: str) -> Any:
    """Return a Jinja environment for the folder ``templates`` of a package.

    It escapes whatever comes from data, replaces the characters that ``plain`` names, and knows the filters
    ``decimal`` and ``short``. A name that a template isn't given is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=lambda value: plain(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(decimal=decimal, short=short)
    return found


def decimal(value: Any, digits: int = 3, sign: str = "") -> str:
    """Return a number in words for a reader: thousands apart, a true minus sign; a dash for None."""
    if value is None:
        return "–"
    shown = f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign},.{digits}f}"
    return shown.replace("-", "−")


def short(text: str, length: int) -> str:
    """Return a text on one line, cut at its end."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length].rstrip()}…"

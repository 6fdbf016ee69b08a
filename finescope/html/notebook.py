"""A result as a notebook shows it: a few words and a table of the first rows.

Nothing runs in it and nothing is fetched. Notebooks take style sheets out of what they don't trust, so all it
says of its looks stands at the elements; colours are those around it, in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finescope.html.engine import decimal, environment, short

ROWS = 10
"""Rows that are shown."""
TEXT = 240
"""Characters of a text that are shown."""


def notebook(
    title: str,
    columns: Mapping[str, Iterable[Any]],
    *,
    said: Sequence[str] = (),
    caption: str = "",
    more: int = 0,
    digits: int = 4,
) -> str:
    """Return HTML for ``_repr_html_``. Texts are escaped, and shortened to ``TEXT`` characters.

    Args:
        title: what it is, in a few words.
        columns: by heading the cells, those of the first as names of the rows. Whole numbers are shown as
            they are; None and NaN are a dash.
        said: what else is to be known, a line each.
        caption: what the rows are; without columns nothing is shown of it.
        more: how many rows there are beside those of the columns.
        digits: of numbers with a fraction, behind the point.
    """
    cells = {name: [_cell(value, digits) for value in column] for name, column in columns.items()}
    rows = list(zip(*cells.values(), strict=True))
    template = environment("finescope.html").get_template("notebook.html.j2")
    return str(
        template.render(
            title=title,
            said=said,
            caption=caption,
            head=list(cells),
            rows=[[shown for shown, _ in row] for row in rows],
            numbers=[all(number for _, number in column) for column in cells.values()],
            more=more,
        )
    )


def _cell(value: Any, digits: int) -> tuple[str, bool]:
    """What is shown of a value, and whether it may stand in a column of numbers."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–", True
    if isinstance(value, float):
        return decimal(value, digits), True
    if isinstance(value, int):
        return str(value), True
    return short(str(value), TEXT), False

"""The page above the pages of several target sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import finescope
from finescope.report.page import asset, environment


@dataclass(frozen=True)
class SetLine:
    """What the page says of one target set.

    Attributes:
        name: of the set.
        page: where its own page is, from this one.
        metrics: as its ``metrics.json`` has them.
        tokens: of the selected rows; None where they aren't known.
        shared: by other set, how many rows are selected in both.
        short: how many rows were asked for, where there are fewer; else None.
    """

    name: str
    page: str
    metrics: Mapping[str, Any]
    tokens: int | None
    shared: Mapping[str, int]
    short: int | None = None


def render_sets(
    title: str, subtitle: str, lines: Sequence[SetLine], mixture: str | None, settings: Mapping[str, Any]
) -> str:
    """Return the page as a string; as closed to the outside as ``page.render`` makes it, and without scripts.

    Args:
        title, subtitle: head of the page.
        lines: the sets.
        mixture: name of the file of all sets' rows, if there is one.
        settings: of the run.
    """
    from markupsafe import Markup

    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return str(
        environment().get_template("sets.html.j2").render(
            title=title,
            subtitle=subtitle,
            sets=lines,
            labelled=any("labels" in line.metrics for line in lines),
            mixture=mixture,
            settings=settings,
            version=finescope.__version__,
            policy=Markup(policy),
            style=Markup(asset("style.css")),
        )
    )  # fmt: skip

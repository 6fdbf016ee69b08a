"""One look for every figure: colours that stay apart in print and for colour-blind readers.

A figure is drawn inside ``styled``, on a ``canvas``, and then written as PNG or turned into SVG. It never
touches pyplot's global state, so that plotting from a library leaves no window behind.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

INK = "#1f2933"
MUTED = "#7b8794"
EDGE = "#9aa5b1"
GRID = "#e4e7eb"
PAGE = "#ffffff"
CORPUS = "#b8c2cc"
SELECTED = "#0f766e"
TARGET = "#c2410c"
OTHERS = ("#486581", "#829ab1", "#9fb3c8", "#627d98", "#bcccdc")

HALF, WHOLE = 5.2, 10.4
"""Widths of figures in inches: two of the first stand side by side in the page, one of the second alone."""

_SETTINGS = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": PAGE,
    "axes.facecolor": "none",
    "axes.edgecolor": EDGE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "mathtext.default": "regular",
    "text.parse_math": False,  # corpus labels may hold a dollar sign
    "svg.fonttype": "none",  # words stay words: they can be searched, read aloud, and set in any script
    "svg.hashsalt": "finescope",  # the same bytes on every run
}
_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function draw in the package's look."""

    @functools.wraps(draw)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _look():
            return draw(*args, **kwargs)

    return inside


def canvas(title: str, height: float = 3.6, width: float = HALF) -> tuple[Any, Any]:
    """Return an empty matplotlib figure of so many inches with a title, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.1 / width, ha="left")
    return figure, figure.add_subplot()


def write_png(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        StoreError: the file can't be written.
    """
    from finescope.storage.files import atomic_path

    with atomic_path(path) as temporary, _look():
        _lay_out(figure)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def as_svg(figure: Any) -> str:
    """Return a figure as an SVG document, on no ground of its own."""
    buffer = io.StringIO()
    with _look():
        _lay_out(figure)
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    return buffer.getvalue()


def _lay_out(figure: Any) -> None:
    """Fit the parts of a figure into it, once: every format would do so again, by drawing it once more."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def shorten(text: str, length: int) -> str:
    """Return ``text`` on one line, cut in the middle to at most ``length`` characters."""
    text = "".join(character if character.isprintable() else " " for character in text)
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def on_lines(name: str, length: int) -> str:
    """Return a method's name on lines of at most ``length`` characters, broken behind + and before @."""
    lines = [""]
    for part in re.split(r"(?<=\+)|(?= @ )", name):
        if lines[-1] and len(lines[-1] + part) > length:
            lines.append("")
        lines[-1] += part if lines[-1] else part.lstrip()
    return "\n".join(shorten(line, length) for line in lines)


@contextmanager
def _look() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # Labels may hold characters that the bundled font lacks; a box in their place is good enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield

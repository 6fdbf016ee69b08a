"""One look for every figure: colours that stay apart in print and for colour-blind readers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK = "#1f2933"
MUTED = "#7b8794"
GRID = "#e4e7eb"
CORPUS = "#b8c2cc"
SELECTED = "#0f766e"
TARGET = "#c2410c"
OTHERS = ("#486581", "#829ab1", "#9fb3c8", "#627d98", "#bcccdc")

_SETTINGS = {
    "figure.dpi": 100,
    "savefig.dpi": 144,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
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
}


@contextmanager
def figure(path: str | Path, width: float = 7.2, height: float = 4.2) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes in the package's look, written to ``path`` as PNG when the block ends.

    Nothing is written when the block raises. The figure never touches pyplot's global state, so that plotting
    from a library works in any thread and leaves no window behind.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from finescope.storage.files import atomic_path

    with matplotlib.rc_context(_SETTINGS):
        fig = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        FigureCanvasAgg(fig)
        yield fig, fig.add_subplot()
        with atomic_path(Path(path)) as temporary, warnings.catch_warnings():
            # Labels may hold characters that the bundled font lacks; a box in their place is good enough.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            fig.savefig(temporary, format="png", metadata={"Software": None})


def shorten(text: str, length: int) -> str:
    """Return ``text`` on one line, cut in the middle to at most ``length`` characters."""
    text = "".join(character if character.isprintable() else " " for character in text)
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"

"""Which figures a run has: each as a PNG beside the page, as SVG in it, and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finescope.curation.blocks import Codes, row_access, unit_rows
from finescope.progress import counted
from finescope.report import plots
from finescope.report.look import HALF, as_svg, write_png
from finescope.report.projection import project
from finescope.report.svg import inline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.report.data import RunData

BEST_ROWS = 60
"""Selected rows whose similarity to every target is drawn."""
BEST_TARGETS = 200
"""Targets that are drawn against them."""


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: of its PNG, without the ending.
        caption: the line below it.
        svg: an element for the inside of an HTML page.
        wide: whether it takes the page's whole width.
    """

    name: str
    caption: str
    svg: str
    wide: bool


class Drawn(NamedTuple):
    """A figure as it was drawn, a caption, and what it shows in words."""

    drawing: Any
    caption: str
    words: str


def draw(data: RunData, folder: Path) -> list[Figure]:
    """Write the run's figures as ``folder/*.png`` and return them for the page.

    A PNG of an earlier report that this one doesn't have is removed.

    Raises:
        StoreError: a file can't be written.
    """
    figures: list[Figure] = []
    for name, make in _FIGURES.items():
        path = folder / f"{name}.png"
        drawn = make(data)
        if drawn is None:
            path.unlink(missing_ok=True)
            continue
        write_png(drawn.drawing, path)
        svg = inline(as_svg(drawn.drawing), name, drawn.words)
        figures.append(Figure(name, drawn.caption, svg, drawn.drawing.get_figwidth() > HALF))
    return figures


def target_similarity(
    corpus: Codes, targets: SparseCodes, rows: NDArray[np.int64], weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return the cosine of every target with some rows in the weighted space, float64 [Q,R].

    Args:
        corpus: N rows over F latents.
        targets: Q rows.
        rows: int64 [R], row numbers.
        weights: float64 [F], weights of the latents; None for none.
    """
    best = unit_rows(row_access(corpus).take(rows), weights)
    return np.asarray((unit_rows(targets, weights) @ best.T).toarray())


def _methods(data: RunData) -> Drawn | None:
    lines = (data.measured.metrics.get("labels") or {}).get("methods")
    if not lines:
        return None
    values = [line["metrics"]["average_precision"] for line in lines]
    names = [line["name"] for line in lines]
    drawing = plots.method_dots(
        names,
        [value["value"] or 0.0 for value in values],
        [None if v["low"] == v["high"] else (v["low"], v["high"]) for v in values],
        highlight=data.about.method,
    )
    said = "; ".join(f"{name} {value['value'] or 0.0:.3f}" for name, value in zip(names, values, strict=True))
    return Drawn(
        drawing, "Average precision of every method, with intervals.", f"Average precision by method: {said}."
    )


def _scores(data: RunData) -> Drawn:
    scores = data.scores
    said = f"Histogram of the scores of {scores.rows:,} rows"
    if scores.span is not None:
        said += f", from {scores.span[0]:.3g} to {scores.span[1]:.3g}"
    if scores.cut is not None:
        said += f"; the selection cuts at {scores.cut:.3g}, which {scores.above:,} rows reach"
    return Drawn(
        plots.score_histogram(scores),
        "How many rows have which score (targets left out), and where the selection cuts.",
        f"{said}.",
    )


def _labels(data: RunData) -> Drawn | None:
    labelled = data.measured.metrics.get("labels")
    if not labelled:
        return None
    distribution = labelled["distribution"]
    counts = {name: int(entry["count"]) for name, entry in distribution.items()}
    totals = {name: round(entry["corpus_share"] * data.count) for name, entry in distribution.items()}
    drawing = plots.domain_bars(counts, totals, target=labelled["target_labels"])
    most = sorted(counts, key=lambda name: (-counts[name], name))[:5]
    said = "; ".join(
        f"{name} {counts[name] / max(1, len(data.selected)):.1%} of the selection and "
        f"{distribution[name]['corpus_share']:.1%} of the corpus"
        for name in most
    )
    return Drawn(
        drawing, "Labels of the selected rows beside those of the corpus.", f"Shares of labels: {said}."
    )


def _map(data: RunData) -> Drawn:
    points = project(data.corpus, data.targets, data.selected, weights=data.weights)
    drawing = plots.scatter(points.corpus, points.selected, points.targets)
    held = "" if points.share is None else f", which hold {points.share:.1%} of the variance"
    caption = (
        f"Principal components of the weighted codes{held}. Two components show little of a high-dimensional "
        "space: selected rows need not form an island here."
    )
    words = (
        f"Scatter plot of {len(points.corpus):,} corpus rows, {len(points.selected):,} selected rows and "
        f"{len(points.targets):,} targets on two principal components{held}."
    )
    return Drawn(drawing, caption, words)


def _similarity(data: RunData) -> Drawn | None:
    best = data.selected[:BEST_ROWS]
    targets = data.targets[:BEST_TARGETS]
    if not len(best) or not len(targets):
        return None
    cosines = target_similarity(data.corpus, targets, best, data.weights)
    drawing = plots.similarity_heatmap(
        cosines, list(data.target_ids[: len(targets)]), [data.ids[row] for row in best.tolist()]
    )
    left = len(data.targets) - len(targets)
    caption = "Cosine of every target with the best selected rows."
    if left:
        caption = f"{caption[:-1]}; {counted(left, 'target')} beyond the first {len(targets):,} left out."
    words = (
        f"Heat map of cosines: {counted(len(targets), 'target')} by {counted(len(best), 'selected row')}, "
        f"from {cosines.min():.3f} to {cosines.max():.3f}, {cosines.mean():.3f} on average."
    )
    return Drawn(drawing, caption, words)


def _training(data: RunData) -> Drawn | None:
    steps = [record for record in data.measured.training if record.get("event") == "step"]
    if len(steps) < 2:
        return None
    drawing = plots.training_curve(
        [record["step"] for record in steps],
        {
            "FVU": [record["fvu"] for record in steps],
            "dead latents": [record["dead_fraction"] for record in steps],
        },
    )
    first, last = steps[0], steps[-1]
    return Drawn(
        drawing,
        "Share of the activations' variance that the autoencoder leaves unexplained (FVU), and of its "
        "latents that have stopped firing.",
        f"Over {last['step']:,} steps of training the unexplained variance went from {first['fvu']:.3f} to "
        f"{last['fvu']:.3f}, and the share of dead latents from {first['dead_fraction']:.1%} to "
        f"{last['dead_fraction']:.1%}.",
    )


_FIGURES: dict[str, Callable[[RunData], Drawn | None]] = {
    "methods": _methods,
    "scores": _scores,
    "labels": _labels,
    "pca": _map,
    "training": _training,
    "similarity": _similarity,
}

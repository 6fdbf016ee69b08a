"""Drawing the figures of a curation run: plain arrays in, a matplotlib figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.report.look import (
    CORPUS,
    INK,
    OTHERS,
    PAGE,
    SELECTED,
    TARGET,
    WHOLE,
    canvas,
    on_lines,
    shorten,
    styled,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.report.histogram import ScoreHistogram

_LAYERS = 8


@styled
def scatter(corpus: NDArray[np.float64], selected: NDArray[np.float64], targets: NDArray[np.float64]) -> Any:
    """Plot corpus rows, selected rows and targets as points of a plane.

    Args:
        corpus: [n,2] points of corpus rows that were not selected.
        selected: [r,2] points of selected rows.
        targets: [q,2] points of targets.
    """
    figure, ax = canvas("Documents by their codes", 4.2)
    _dots(ax, corpus, 2.6, CORPUS, "corpus")
    _dots(ax, selected, 4.0, SELECTED, "selected")
    ax.scatter(
        *targets.T, s=42, color=TARGET, marker="X", edgecolors=PAGE, linewidths=0.7, label="targets",
        rasterized=len(targets) > 600, zorder=3,
    )  # fmt: skip
    ax.set(
        xlabel="first principal component",
        ylabel="second principal component",
        xticks=[],
        yticks=[],
    )
    figure.legend(loc="outside lower center", ncols=3, markerscale=1.3, handletextpad=0.2)
    return figure


@styled
def similarity_heatmap(
    similarity: NDArray[np.float64], target_names: Sequence[str], row_names: Sequence[str]
) -> Any:
    """Plot the cosine similarities of targets and selected rows: the more similar, the stronger the colour.

    Args:
        similarity: [Q,S] cosine similarities in [-1, 1].
        target_names: Q names, shown when there are at most 40.
        row_names: S names, shown when there are at most 40.
    """
    rows, columns = similarity.shape
    height = float(np.clip(1.6 + 0.16 * rows, 3.2, 6.5))
    figure, ax = canvas("Similarity of targets and selected rows", height, WHOLE)
    low = min(0.0, float(np.nanmin(similarity, initial=0.0)))
    high = max(float(np.nanmax(similarity, initial=0.0)), low + 1e-6)
    image = ax.imshow(
        similarity, aspect="auto", cmap=_sequential(), vmin=low, vmax=high, interpolation="nearest"
    )
    ax.set(xlabel=f"selected rows, best first ({columns})", ylabel=f"targets ({rows})")
    _name_ticks(ax.yaxis, target_names, 26, 0)
    _name_ticks(ax.xaxis, row_names, 18, 90)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("cosine similarity")
    return figure


@styled
def score_histogram(scores: ScoreHistogram, *, positive_name: str = "target domain") -> Any:
    """Plot how many rows have which score, and where the selection cuts.

    Args:
        scores: the counts.
        positive_name: legend of the rows that are known to belong to the target domain.
    """
    figure, ax = canvas("Scores")
    if scores.positive is None:
        ax.stairs(scores.others, scores.edges, fill=True, color=CORPUS, label="all rows")
    else:
        for counts, colour, name, alpha in (
            (scores.others, CORPUS, "other rows", 1.0),
            (scores.positive, SELECTED, positive_name, 0.8),
        ):
            ax.stairs(
                counts, scores.edges, fill=True, color=colour,
                alpha=alpha, label=f"{name} ({int(counts.sum()):,})",
            )  # fmt: skip
    if scores.span is not None:
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.8)
    ax.set(xlabel="score", ylabel="rows (log scale)")
    cut = scores.cut
    if cut is not None and np.isfinite(cut):
        ax.axvline(
            cut, color=TARGET, linewidth=1.3, label=f"cut at {cut:.3g}: {scores.above:,} rows at or above"
        )
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def domain_bars(
    selected: Mapping[str, int], corpus: Mapping[str, int], *, target: Sequence[str] = (), limit: int = 12
) -> Any:
    """Plot each label's share of the selection beside its share of the corpus.

    Args:
        selected: rows per label in the selection.
        corpus: rows per label in the corpus.
        target: labels of the target domain, drawn in its colour.
        limit: labels shown; the rest is summed into one bar.
    """
    total_selected, total_corpus = max(sum(selected.values()), 1), max(sum(corpus.values()), 1)
    order = sorted(corpus, key=lambda name: (-selected.get(name, 0), -corpus[name], name))
    names, rest = order[:limit], order[limit:]
    share = [selected.get(name, 0) / total_selected for name in names]
    base = [corpus[name] / total_corpus for name in names]
    colours = [SELECTED if name in target else OTHERS[0] for name in names]
    if rest:
        names = [*names, f"{len(rest)} other labels"]
        share.append(sum(selected.get(name, 0) for name in rest) / total_selected)
        base.append(sum(corpus[name] for name in rest) / total_corpus)
        colours.append(OTHERS[1])
    place = np.arange(len(names))
    figure, ax = canvas("Labels in the selection and in the corpus", 1.6 + 0.34 * len(names))
    ax.barh(place - 0.17, share, height=0.42, color=colours, label="selection")
    ax.barh(place + 0.24, base, height=0.2, color=CORPUS, label="corpus")
    for at, value in zip(place, share, strict=True):
        if value:
            ax.text(value + 0.008, at - 0.17, f"{value:.1%}", va="center", fontsize=8, color=INK)
    ax.set(xlabel="share of rows")
    ax.set_yticks(place, [shorten(name, 24) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, min(1.12, max([*share, *base, 0.05]) * 1.15))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.xaxis.grid(True)
    figure.legend(
        *_legend_patches([(colours[0], "selection"), (CORPUS, "corpus")]), loc="outside lower center", ncols=2
    )
    return figure


@styled
def method_dots(
    methods: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    highlight: str | None = None,
    metric: str = "average precision",
) -> Any:
    """Plot one number per method with its interval, best on top.

    Args:
        methods: names.
        values: the metric of each method.
        intervals: low and high end of each method's interval, or None.
        highlight: the method that made the selection.
        metric: name of the number, for the axis.
    """
    order = sorted(range(len(methods)), key=lambda i: (-values[i], i))
    figure, ax = canvas(f"{metric[:1].upper()}{metric[1:]} by method", 1.2 + 0.3 * len(methods))
    for at, i in enumerate(order):
        colour = SELECTED if methods[i] == highlight else OTHERS[0]
        interval = intervals[i]
        high = values[i]
        if interval is not None:
            ax.plot(interval, (at, at), color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
            high = max(high, interval[1])
        ax.plot(values[i], at, "o", color=colour, markersize=6.5)
        ax.annotate(
            f"{values[i]:.3f}", (high, at), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=colour,
        )  # fmt: skip
    ax.set_yticks(range(len(order)), [on_lines(methods[i], 26) for i in order])
    for label, i in zip(ax.get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if methods[i] == highlight else "normal")
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    top = max([*values, *(interval[1] for interval in intervals if interval is not None), 0.05])
    ax.set_xlim(0, min(1.2, top * 1.2))
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1])
    ax.set(xlabel=metric)
    ax.xaxis.grid(True)
    return figure


@styled
def training_curve(steps: Sequence[float], series: Mapping[str, Sequence[float]]) -> Any:
    """Plot quantities of the SAE's training (all in [0, 1] when it goes well) against the step.

    Args:
        steps: step numbers.
        series: values by name, each as long as ``steps``.
    """
    figure, ax = canvas("Training of the autoencoder", 3.2)
    for (name, values), colour in zip(series.items(), (SELECTED, TARGET, *OTHERS), strict=False):
        ax.plot(steps, values, color=colour, linewidth=1.6, label=name)
        if len(values) and np.isfinite(values[-1]):
            ax.annotate(
                f"{name} {values[-1]:.3f}", (steps[-1], values[-1]), xytext=(5, 0),
                textcoords="offset points", va="center", fontsize=8.5, color=colour, annotation_clip=False,
            )  # fmt: skip
    ax.set(xlabel="step")
    finite = [value for values in series.values() for value in values if np.isfinite(value)]
    ax.set_ylim(0, float(np.clip(max(finite, default=1.0) * 1.08, 0.05, 1.5)))
    ax.yaxis.grid(True)
    return figure


def _dots(ax: Any, points: NDArray[np.float64], size: float, colour: str, label: str) -> None:
    """Plot points as lines of next to no length, whose round ends are the dots.

    So an SVG has a few paths for them, however many they are, and they keep to the page's colours. There is
    more than one, so that it gets darker where points lie over each other.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    length = 1e-6 * (float(np.ptp(points[:, 0])) or 1.0) if len(points) else 0.0
    for layer in range(min(_LAYERS, len(points))):
        ends = np.repeat(points[layer::_LAYERS], 2, axis=0)
        ends[1::2, 0] += length
        path = Path(ends, np.resize([Path.MOVETO, Path.LINETO], len(ends)))
        path.should_simplify = False  # it would drop such lines, as would snapping to pixels
        look = {"edgecolor": colour, "linewidth": size, "capstyle": "round", "alpha": 0.7}
        ax.add_patch(PathPatch(path, fill=False, snap=False, zorder=2, **look))
    ax.update_datalim(points)
    ax.add_line(Line2D([], [], linestyle="none", marker="o", markersize=size, color=colour, label=label))
    ax.autoscale_view()


def _sequential() -> Any:
    """From nothing to the colour of selected rows, so that it reads on light and on dark ground."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("finescope", [to_rgba(SELECTED, 0.0), to_rgba(SELECTED, 1.0)])


def _name_ticks(axis: Any, names: Sequence[str], length: int, rotation: int) -> None:
    if 0 < len(names) <= 40:
        axis.set_ticks(
            range(len(names)), [shorten(name, length) for name in names], rotation=rotation, fontsize=7
        )
    else:
        axis.set_ticks([])
    axis.set_tick_params(length=0)


def _legend_patches(entries: Sequence[tuple[str, str]]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    return [Patch(color=colour) for colour, _ in entries], [name for _, name in entries]


__all__ = [
    "domain_bars",
    "method_dots",
    "scatter",
    "score_histogram",
    "similarity_heatmap",
    "training_curve",
]

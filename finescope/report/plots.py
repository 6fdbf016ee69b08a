"""The figures of a curation run. Every function takes plain arrays and writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.report.look import CORPUS, INK, OTHERS, SELECTED, TARGET, figure, shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes

_MAX_POINTS = 5000


def pca_scatter(
    path: str | Path,
    corpus: SparseCodes,
    targets: SparseCodes,
    selected: NDArray[np.int64],
    *,
    weights: NDArray[np.float64] | None = None,
    seed: int = 42,
) -> None:
    """Plot corpus, selected rows and targets on the two main principal components of their codes.

    Args:
        path: PNG to write.
        corpus: codes of the N corpus rows over F latents.
        targets: codes of the Q targets over the same F latents.
        selected: int64 row numbers of the selected rows.
        weights: [F] latent weights used for scoring; None for none.
        seed: of the sample that is drawn when N is larger than 5000, and of the solver.
    """
    from scipy import sparse
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    generator = np.random.default_rng(seed)
    sample = np.setdiff1d(np.arange(len(corpus)), selected)
    if len(sample) > _MAX_POINTS:
        sample = np.sort(generator.choice(sample, _MAX_POINTS, replace=False))
    chosen = np.asarray(selected[:_MAX_POINTS], dtype=np.int64)
    parts = [
        corpus[sample].to_scipy() if len(sample) else None,
        corpus[chosen].to_scipy() if len(chosen) else None,
        targets.to_scipy() if len(targets) else None,
    ]
    sizes = [0 if part is None else part.shape[0] for part in parts]
    stacked = sparse.vstack([part for part in parts if part is not None]).tocsr().astype(np.float64)
    if weights is not None:
        stacked = stacked @ sparse.diags(np.asarray(weights, dtype=np.float64))
    stacked = normalize(stacked).tocsr()
    used = np.unique(stacked.indices)  # latents that fire nowhere add columns of zeros
    stacked = stacked[:, used]
    if min(stacked.shape) > 2 and stacked.nnz:
        points = PCA(n_components=2, svd_solver="arpack", random_state=seed).fit_transform(stacked)
    else:
        points = np.zeros((stacked.shape[0], 2))
        points[:, : stacked.shape[1]] = stacked.toarray()[:, :2]
    ends = np.cumsum(sizes)
    with figure(path, 7.2, 4.8) as (_, ax):
        ax.scatter(
            *points[: ends[0]].T, s=7, color=CORPUS, alpha=0.55, linewidths=0, label="corpus", rasterized=True
        )
        ax.scatter(
            *points[ends[0] : ends[1]].T, s=16, color=SELECTED, alpha=0.85, linewidths=0, label="selected"
        )
        ax.scatter(
            *points[ends[1] :].T,
            s=42,
            color=TARGET,
            marker="X",
            edgecolors="white",
            linewidths=0.7,
            label="targets",
        )
        ax.set(
            title="Documents by their codes",
            xlabel="first principal component",
            ylabel="second principal component",
        )
        ax.set(xticks=[], yticks=[])
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.3, handletextpad=0.2)


def similarity_heatmap(
    path: str | Path,
    similarity: NDArray[np.float64],
    target_names: Sequence[str],
    row_names: Sequence[str],
    *,
    title: str = "Similarity of targets and selected rows",
) -> None:
    """Plot the cosine similarities of targets and selected rows.

    Args:
        path: PNG to write.
        similarity: [Q, S] cosine similarities in [-1, 1].
        target_names: Q names, shown when there are at most 40.
        row_names: S names, shown when there are at most 40.
    """
    rows, columns = similarity.shape
    with figure(path, 7.2, float(np.clip(1.6 + 0.16 * rows, 3.2, 6.5))) as (fig, ax):
        low = min(0.0, float(np.nanmin(similarity, initial=0.0)))
        high = max(float(np.nanmax(similarity, initial=0.0)), low + 1e-6)
        image = ax.imshow(
            similarity, aspect="auto", cmap=_sequential(), vmin=low, vmax=high, interpolation="nearest"
        )
        ax.set(title=title, xlabel=f"selected rows, best first ({columns})", ylabel=f"targets ({rows})")
        _name_ticks(ax.yaxis, target_names, 26, 0)
        _name_ticks(ax.xaxis, row_names, 18, 90)
        ax.spines[:].set_visible(False)
        bar = fig.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("cosine similarity")


def score_histogram(
    path: str | Path,
    scores: NDArray[np.float64],
    cut: float | None,
    *,
    positive: NDArray[np.bool_] | None = None,
    positive_name: str = "target domain",
) -> None:
    """Plot how many rows have which score, and where the selection cuts.

    Args:
        path: PNG to write.
        scores: [N] scores; values that are not finite (rows without a code) are left out.
        cut: lowest score that was selected; None when nothing was.
        positive: bool [N], rows known to belong to the target domain.
        positive_name: legend of those rows.
    """
    finite = np.isfinite(scores)
    values = scores[finite]
    with figure(path) as (fig, ax):
        edges = np.histogram_bin_edges(values, bins=60) if len(values) else np.linspace(0, 1, 61)
        if positive is None:
            ax.hist(values, bins=edges, color=CORPUS, label="all rows")
        else:
            inside = positive[finite]
            ax.hist(values, bins=edges, color=CORPUS, label=f"other rows ({int((~inside).sum()):,})")
            ax.hist(
                values[inside],
                bins=edges,
                color=SELECTED,
                alpha=0.8,
                label=f"{positive_name} ({int(inside.sum()):,})",
            )
        if len(values):
            ax.set_yscale("log")
        ax.set(title="Scores", xlabel="score", ylabel="rows (log scale)")
        if cut is not None and np.isfinite(cut):
            above = int((values >= cut).sum())
            ax.axvline(
                cut, color=TARGET, linewidth=1.3, label=f"cut at {cut:.3g}: {above:,} rows at or above"
            )
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
        fig.legend(loc="outside lower center", ncols=3)


def domain_bars(
    path: str | Path,
    selected: Mapping[str, int],
    corpus: Mapping[str, int],
    *,
    target: Sequence[str] = (),
    limit: int = 12,
) -> None:
    """Plot each label's share of the selection beside its share of the corpus.

    Args:
        path: PNG to write.
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
    with figure(path, 7.2, 1.6 + 0.34 * len(names)) as (fig, ax):
        ax.barh(place - 0.17, share, height=0.42, color=colours, label="selection")
        ax.barh(place + 0.24, base, height=0.2, color=CORPUS, label="corpus")
        for at, value in zip(place, share, strict=True):
            if value:
                ax.text(value + 0.008, at - 0.17, f"{value:.1%}", va="center", fontsize=8, color=INK)
        ax.set(title="Labels in the selection and in the corpus", xlabel="share of rows")
        ax.set_yticks(place, [shorten(name, 32) for name in names])
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        ax.set_xlim(0, min(1.12, max([*share, *base, 0.05]) * 1.15))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.xaxis.grid(True)
        fig.legend(
            *_legend_patches([(colours[0], "selection"), (CORPUS, "corpus")]),
            loc="outside lower center",
            ncols=2,
        )


def method_dots(
    path: str | Path,
    methods: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    highlight: str | None = None,
    metric: str = "average precision",
) -> None:
    """Plot one number per method with its interval, best on top.

    Args:
        path: PNG to write.
        methods: names.
        values: the metric of each method.
        intervals: low and high end of each method's interval, or None.
        highlight: the method that made the selection.
        metric: name of the number, for the axis.
    """
    order = sorted(range(len(methods)), key=lambda i: (-values[i], i))
    with figure(path, 7.2, 1.2 + 0.36 * len(methods)) as (_, ax):
        for at, i in enumerate(order):
            colour = SELECTED if methods[i] == highlight else OTHERS[0]
            interval = intervals[i]
            high = values[i]
            if interval is not None:
                ax.plot(interval, (at, at), color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
                high = max(high, interval[1])
            ax.plot(values[i], at, "o", color=colour, markersize=6.5)
            ax.text(high + 0.012, at, f"{values[i]:.3f}", va="center", fontsize=8.5, color=colour)
        ax.set_yticks(range(len(order)), [shorten(methods[i], 34) for i in order])
        for label, i in zip(ax.get_yticklabels(), order, strict=True):
            label.set_fontweight("bold" if methods[i] == highlight else "normal")
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
        top = max([*values, *(interval[1] for interval in intervals if interval is not None), 0.05])
        ax.set_xlim(0, min(1.1, top * 1.14))
        ax.set(title=f"{metric[:1].upper()}{metric[1:]} by method", xlabel=metric)
        ax.xaxis.grid(True)


def training_curve(path: str | Path, steps: Sequence[float], series: Mapping[str, Sequence[float]]) -> None:
    """Plot quantities of the SAE's training (all in [0, 1] when it goes well) against the step.

    Args:
        path: PNG to write.
        steps: step numbers.
        series: values by name, each as long as ``steps``.
    """
    colours = (SELECTED, TARGET, *OTHERS)
    with figure(path, 7.2, 3.4) as (_, ax):
        for (name, values), colour in zip(series.items(), colours, strict=False):
            ax.plot(steps, values, color=colour, linewidth=1.6, label=name)
            if len(values) and np.isfinite(values[-1]):
                ax.annotate(
                    f"{name} {values[-1]:.3f}",
                    (steps[-1], values[-1]),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=colour,
                    annotation_clip=False,
                )
        ax.set(title="Training of the autoencoder", xlabel="step", ylabel="")
        finite = [v for values in series.values() for v in values if np.isfinite(v)]
        ax.set_ylim(0, float(np.clip(max(finite, default=1.0) * 1.08, 0.05, 1.5)))
        ax.yaxis.grid(True)


def _sequential() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(
        "finescope", ["#ffffff", "#cde5e2", "#5fb0a8", SELECTED, "#083b38"]
    )


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
    "pca_scatter",
    "score_histogram",
    "similarity_heatmap",
    "training_curve",
]

"""A plot can be written and still be blank or wrong: these tests look at the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from finescope.codes import SparseCodes
from finescope.report import plots
from finescope.report.histogram import ScoreHistogram
from finescope.report.look import CORPUS, SELECTED, TARGET, canvas, on_lines, shorten, styled, write_png
from finescope.report.projection import MOST_POINTS, project


class Broken(Artist):
    def draw(self, renderer: Any) -> None:
        raise RuntimeError("half way")


def pixels_of(path: Path, colour: str, tolerance: float = 0.02) -> int:
    image = imread(path)[..., :3]
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=-1) < tolerance).sum())


def codes(rows: int, seed: int) -> SparseCodes:
    dense = torch.rand(rows, 40, generator=torch.Generator().manual_seed(seed))
    return SparseCodes.from_dense(dense * (dense > 0.8))


def scatter(corpus: SparseCodes, targets: SparseCodes, selected: Any, weights: Any = None) -> Any:
    points = project(corpus, targets, np.asarray(selected, np.int64), weights=weights)
    return plots.scatter(points.corpus, points.selected, points.targets)


def test_scatter_shows_all_three_kinds(tmp_path: Path) -> None:
    path, again = tmp_path / "pca.png", tmp_path / "again.png"
    for name in (path, again):
        write_png(scatter(codes(2000, 1), codes(5, 2), range(20), np.ones(40)), name)
    assert pixels_of(path, TARGET) > 50
    assert pixels_of(path, SELECTED, 0.2) > 50
    assert pixels_of(path, CORPUS, 0.1) > 5000
    assert path.read_bytes() == again.read_bytes()


def test_scatter_survives_degenerate_codes(tmp_path: Path) -> None:
    empty = SparseCodes.from_dense(torch.zeros(3, 40))
    write_png(scatter(empty, empty[:1], [0]), tmp_path / "a.png")
    write_png(scatter(codes(1, 1), codes(1, 2), []), tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_projection_is_that_of_principal_components() -> None:
    """Against a dense decomposition of the same points."""
    corpus, targets, weights = codes(120, 1), codes(6, 2), np.linspace(0.0, 2.0, 40)
    selected = np.array([7, 3, 119, 0])
    points = project(corpus, targets, selected, weights=weights)
    others = [row for row in range(120) if row not in selected.tolist()]
    dense = torch.cat([corpus.to_dense()[others], corpus.to_dense()[selected], targets.to_dense()])
    unit = dense.double().numpy() * weights
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    found = np.concatenate([points.corpus, points.selected, points.targets])
    for column in (0, 1):  # the sign of a component is nobody's choice
        sign = np.sign(found[:, column] @ expected[:, column])
        np.testing.assert_allclose(sign * found[:, column], expected[:, column], atol=1e-9)
    assert points.share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    assert [len(part) for part in (points.corpus, points.selected, points.targets)] == [116, 4, 6]


def test_a_projection_samples_rows_that_are_not_selected() -> None:
    total = MOST_POINTS + 700
    taken: list[int] = []

    class Counting(SparseCodes):
        def __getitem__(self, rows: Any) -> SparseCodes:
            taken.extend(np.asarray(rows).tolist())
            return super().__getitem__(rows)

    base = SparseCodes.from_dense(torch.rand(total, 6) + 0.1)
    corpus = Counting(base.indptr, base.indices, base.values, 6)
    selected = np.arange(600, 0, -2)
    points = project(corpus, base[:3], selected)
    others, chosen = taken[:MOST_POINTS], taken[MOST_POINTS:]
    assert chosen == selected.tolist()
    assert not set(others) & set(chosen)
    assert others == sorted(set(others))
    assert len(points.corpus) == MOST_POINTS
    assert {0, 1, 3, 5} & set(others)


def test_heatmap_is_darker_where_more_similar(tmp_path: Path) -> None:
    similarity = np.zeros((4, 30))
    similarity[:, :15] = 1.0
    write_png(plots.similarity_heatmap(similarity, ["t"] * 4, ["r"] * 30), tmp_path / "h.png")
    image = imread(tmp_path / "h.png")[..., :3].mean(axis=-1)
    middle = image[image.shape[0] // 2]
    width = len(middle)
    assert middle[width * 3 // 10] < 0.4
    assert middle[width * 6 // 10] > 0.9


def counted(scores: Any, cut: float | None, positive: Any = None, size: int = 1000) -> ScoreHistogram:
    """Count scores, so many at a time."""

    def blocks() -> Iterator[Any]:
        for low in range(0, len(scores), size):
            part = slice(low, low + size)
            yield scores[part], None if positive is None else positive[part]

    return ScoreHistogram.of(blocks, cut, labelled=positive is not None)


@pytest.mark.parametrize("size", [1, 7, 300, 400])
def test_rows_are_counted_block_by_block_as_all_at_once(size: int) -> None:
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(size=300), np.nan, np.inf]
    positive, cut = rng.random(302) < 0.4, float(scores[17])
    found, finite = counted(scores, cut, positive, size), scores[:300]
    edges = np.histogram_bin_edges(finite, bins=60)
    np.testing.assert_array_equal(found.edges, edges)
    np.testing.assert_array_equal(found.positive, np.histogram(finite[positive[:300]], edges)[0])
    np.testing.assert_array_equal(found.others, np.histogram(finite[~positive[:300]], edges)[0])
    assert (found.span, found.above) == ((finite.min(), finite.max()), (finite >= cut).sum())
    assert found.rows == 300


def test_histogram_draws_the_cut_and_the_labelled_rows(tmp_path: Path) -> None:
    scores = np.r_[np.linspace(0, 1, 300), np.nan]
    for name, drawing in {
        "plain": counted(scores, 0.8),
        "none": counted(scores, None),
        "labels": counted(scores, 0.8, np.r_[scores[:-1] > 0.7, False]),
        "empty": counted(np.array([np.nan]), None),
    }.items():
        write_png(plots.score_histogram(drawing), tmp_path / f"{name}.png")
    assert pixels_of(tmp_path / "plain.png", TARGET) > 200
    assert pixels_of(tmp_path / "none.png", TARGET) == 0
    assert pixels_of(tmp_path / "plain.png", CORPUS) > 10_000
    assert pixels_of(tmp_path / "labels.png", CORPUS) < pixels_of(tmp_path / "plain.png", CORPUS)


def test_bars_are_as_long_as_their_shares(tmp_path: Path) -> None:
    corpus = {"stem": 100, "arts": 100, "$x_1$": 50}
    for count in (10, 90):
        drawing = plots.domain_bars({"stem": count, "arts": 100 - count}, corpus, target=["stem"])
        write_png(drawing, tmp_path / f"{count}.png")
    few, many = (pixels_of(tmp_path / f"{count}.png", SELECTED) for count in (10, 90))
    assert many > 4 * few > 0


def test_methods_highlight_the_chosen_one(tmp_path: Path) -> None:
    names, values = ["default", "random"], [0.7, 0.01]
    intervals = [(0.6, 0.8), None]
    write_png(plots.method_dots(names, values, intervals, highlight="default"), tmp_path / "a.png")
    write_png(plots.method_dots(names, values, intervals), tmp_path / "b.png")
    assert pixels_of(tmp_path / "a.png", SELECTED) > 50
    assert pixels_of(tmp_path / "b.png", SELECTED) == 0


def test_training_curve(tmp_path: Path) -> None:
    drawing = plots.training_curve([1, 2, 3], {"FVU": [0.9, 0.4, 0.2], "dead": [0.0, np.nan, 0.1]})
    write_png(drawing, tmp_path / "t.png")
    assert pixels_of(tmp_path / "t.png", SELECTED) > 200


def test_nothing_is_written_when_drawing_fails(tmp_path: Path) -> None:
    drawing, ax = canvas("Half")
    ax.add_artist(Broken())
    with pytest.raises(RuntimeError, match="half way"):
        write_png(drawing, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_labels_outside_the_font_do_not_warn(tmp_path: Path) -> None:
    write_png(plots.domain_bars({"領域": 3}, {"領域": 5, "a": 2}), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_drawing_leaves_the_callers_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)

    @styled
    def fails() -> None:
        assert matplotlib.rcParams["text.parse_math"] is False
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fails()
    plots.training_curve([1, 2], {"FVU": [0.9, 0.4]})
    assert dict(matplotlib.rcParams) == before


def test_names_of_sums_break_at_their_terms() -> None:
    assert on_lines("tfidf", 26) == "tfidf"
    assert on_lines("ridge+tfidf", 26) == "ridge+tfidf"
    assert on_lines("ridge+tfidf+2*dense-whitened", 26) == "ridge+tfidf+\n2*dense-whitened"
    assert on_lines("contrast+tfidf @ strategy=coverage", 26) == "contrast+tfidf\n@ strategy=coverage"
    assert on_lines("x" * 30, 7) == "xxxx…xx"


def test_shorten() -> None:
    assert shorten("abc", 5) == "abc"
    assert shorten("abcdefghij", 7) == "abcd…ij"
    assert shorten("a\nb", 5) == "a b"

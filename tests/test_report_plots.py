"""A plot can be written and still be blank or wrong: these tests look at the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from finescope.codes import SparseCodes
from finescope.report import plots
from finescope.report.look import CORPUS, SELECTED, TARGET, figure, shorten


def pixels_of(path: Path, colour: str, tolerance: float = 0.02) -> int:
    image = imread(path)[..., :3]
    return int((np.abs(image - np.array(to_rgb(colour))).max(axis=-1) < tolerance).sum())


def codes(rows: int, seed: int) -> SparseCodes:
    dense = torch.rand(rows, 40, generator=torch.Generator().manual_seed(seed))
    return SparseCodes.from_dense(dense * (dense > 0.8))


def test_scatter_shows_all_three_kinds(tmp_path: Path) -> None:
    path = tmp_path / "pca.png"
    plots.pca_scatter(path, codes(200, 1), codes(5, 2), np.arange(20), weights=np.ones(40))
    assert pixels_of(path, TARGET) > 50
    assert pixels_of(path, SELECTED, 0.2) > 50
    again = tmp_path / "again.png"
    plots.pca_scatter(again, codes(200, 1), codes(5, 2), np.arange(20), weights=np.ones(40))
    assert path.read_bytes() == again.read_bytes()


def test_scatter_survives_degenerate_codes(tmp_path: Path) -> None:
    empty = SparseCodes.from_dense(torch.zeros(3, 40))
    plots.pca_scatter(tmp_path / "a.png", empty, empty[:1], np.array([0]))
    plots.pca_scatter(tmp_path / "b.png", codes(1, 1), codes(1, 2), np.zeros(0, np.int64))
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_heatmap_is_darker_where_more_similar(tmp_path: Path) -> None:
    similarity = np.zeros((4, 30))
    similarity[:, :15] = 1.0
    plots.similarity_heatmap(tmp_path / "h.png", similarity, ["t"] * 4, ["r"] * 30)
    image = imread(tmp_path / "h.png")[..., :3].mean(axis=-1)
    middle = image[image.shape[0] // 2]
    width = len(middle)
    assert middle[width * 3 // 10] < 0.4
    assert middle[width * 6 // 10] > 0.9


def test_histogram_draws_the_cut_and_the_labelled_rows(tmp_path: Path) -> None:
    scores = np.r_[np.linspace(0, 1, 300), np.nan]
    plots.score_histogram(tmp_path / "plain.png", scores, 0.8)
    plots.score_histogram(tmp_path / "none.png", scores, None)
    plots.score_histogram(tmp_path / "labels.png", scores, 0.8, positive=np.r_[scores[:-1] > 0.7, False])
    assert pixels_of(tmp_path / "plain.png", TARGET) > 200
    assert pixels_of(tmp_path / "none.png", TARGET) == 0
    assert pixels_of(tmp_path / "plain.png", CORPUS) > 10_000
    assert pixels_of(tmp_path / "labels.png", CORPUS) < pixels_of(tmp_path / "plain.png", CORPUS)
    plots.score_histogram(tmp_path / "empty.png", np.array([np.nan]), None)


def test_bars_are_as_long_as_their_shares(tmp_path: Path) -> None:
    corpus = {"stem": 100, "arts": 100, "$x_1$": 50}
    for count in (10, 90):
        plots.domain_bars(
            tmp_path / f"{count}.png", {"stem": count, "arts": 100 - count}, corpus, target=["stem"]
        )
    few, many = (pixels_of(tmp_path / f"{count}.png", SELECTED) for count in (10, 90))
    assert many > 4 * few > 0


def test_methods_highlight_the_chosen_one(tmp_path: Path) -> None:
    names, values = ["default", "random"], [0.7, 0.01]
    intervals = [(0.6, 0.8), None]
    plots.method_dots(tmp_path / "a.png", names, values, intervals, highlight="default")
    plots.method_dots(tmp_path / "b.png", names, values, intervals)
    assert pixels_of(tmp_path / "a.png", SELECTED) > 50
    assert pixels_of(tmp_path / "b.png", SELECTED) == 0


def test_training_curve(tmp_path: Path) -> None:
    plots.training_curve(tmp_path / "t.png", [1, 2, 3], {"FVU": [0.9, 0.4, 0.2], "dead": [0.0, np.nan, 0.1]})
    assert pixels_of(tmp_path / "t.png", SELECTED) > 200


def test_nothing_is_written_when_drawing_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), figure(tmp_path / "x.png"):
        raise RuntimeError("half way")
    assert list(tmp_path.iterdir()) == []


def test_labels_outside_the_font_do_not_warn(tmp_path: Path) -> None:
    plots.domain_bars(tmp_path / "x.png", {"領域": 3}, {"領域": 5, "a": 2})
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_shorten() -> None:
    assert shorten("abc", 5) == "abc"
    assert shorten("abcdefghij", 7) == "abcd…ij"
    assert shorten("a\nb", 5) == "a b"

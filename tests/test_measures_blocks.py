"""What is measured of all scores is counted block by block, and is what one gets from all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.curation import ScoreTable, length_bias, orderstats
from finescope.curation.orderstats import quantiles
from finescope.report.explain import BACKGROUND_ROWS, background_rows
from finescope.workflow.scored import ScoredRows
from finescope.workflow.stages import evaluate
from finescope.workflow.stages.evaluate import SHARES, base_metrics, length_bias_of


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=True), min_size=1, max_size=60),
    st.integers(1, 60),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_quantiles_are_those_of_numpy(numbers: list[float], size: int, ties: bool) -> None:
    values = np.array(numbers)
    values = np.round(values, 0) if ties else values

    def blocks() -> Iterator[Any]:
        for low in range(0, len(values), size):
            yield values[low : low + size]

    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as change:
        expected = np.quantile(values, SHARES)
        found = quantiles(blocks, SHARES)
        change.setattr(orderstats, "MOST_HELD", 0)
        counted = quantiles(blocks, SHARES)
    np.testing.assert_array_equal(found, expected)
    assert found.tobytes() == counted.tobytes()


def test_quantiles_of_nothing_and_of_what_is_no_number() -> None:
    for values in (np.zeros(0), np.array([1.0, np.nan])):
        assert np.isnan(quantiles(lambda values=values: [values], (0.0, 0.5))).all()


@pytest.fixture(params=[1 << 20, 13, 200])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ScoredRows:
    monkeypatch.setattr("finescope.workflow.scored.ROWS", request.param)
    rng = np.random.default_rng(0)
    valid = rng.random(200) < 0.9
    score = np.where(valid, rng.integers(0, 40, 200) / 7, 0.0)
    table = ScoreTable(score, np.zeros(200, np.int64), score, valid, "contrast")
    ids = [f"row {row}" for row in range(200)]
    return ScoredRows(
        table, ids, ["t"], rng.integers(1, 30, 200), rng.random(200) < 0.05, {"targets": {"same_id": 3}}
    )


def test_metrics_are_those_of_all_rows_at_once(rows: ScoredRows) -> None:
    table, selected = rows.table, rows.table.ranking()[:17]
    found = base_metrics(rows, selected)
    finite = table.score[table.valid]
    assert list(found["score_quantiles"]) == ["0", "0.01", "0.1", "0.5", "0.9", "0.99", "1"]
    np.testing.assert_array_equal(list(found["score_quantiles"].values()), np.quantile(finite, SHARES))
    assert found["rows_without_code"] == (~table.valid).sum() > 0
    assert found["targets_in_corpus"] == rows.is_target.sum() > 0
    assert found["lowest_selected_score"] == table.score[selected].min()
    assert base_metrics(rows, selected[:0])["lowest_selected_score"] is None


def test_length_bias_is_that_of_all_rows_and_of_a_sample_of_more(
    rows: ScoredRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected = rows.table.ranking()[:17]
    whole = length_bias(rows.table.score, rows.tokens, selected)
    assert length_bias_of(rows, selected) == whole
    assert length_bias_of(rows, selected[:0]) == length_bias(rows.table.score, rows.tokens, selected[:0])
    monkeypatch.setattr(evaluate, "MOST_RANKED", 150)
    sampled = length_bias_of(rows, selected)
    assert sampled["mean_length_ratio"] == whole["mean_length_ratio"]
    assert sampled["spearman"] != whole["spearman"]
    assert sampled["spearman"] == pytest.approx(whole["spearman"], abs=0.2)
    assert sampled == length_bias_of(rows, selected)


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_the_sample_that_stands_for_the_corpus_is_drawn_as_of_all_rows_at_once(size: int) -> None:
    valid = np.random.default_rng(1).random(3 * BACKGROUND_ROWS) < 0.7

    def blocks() -> Iterator[Any]:
        for low in range(0, len(valid), size):
            yield valid[low : low + size]

    drawn = np.random.default_rng(5).choice(np.flatnonzero(valid), BACKGROUND_ROWS, replace=False)
    np.testing.assert_array_equal(background_rows(blocks, seed=5), np.sort(drawn))
    few = background_rows(lambda: [valid[:50], valid[50:90]], seed=5)
    np.testing.assert_array_equal(few, np.flatnonzero(valid[:90]))

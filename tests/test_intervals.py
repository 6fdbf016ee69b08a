"""An interval surrounds the number that it stands beside, and holds the truth as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from finescope import SparseCodes
from finescope.curation import (
    Evidence,
    bootstrap_interval,
    compare_methods,
    jackknife,
    jackknife_interval,
    percentile_interval,
)
from finescope.curation.intervals import leave_out

LATENTS = 60
METHODS = ("default", "max", "mean", "centroid", "top_m_mean")
SPLITS = [(5, 9, [4] * 5), (10, 4, [7, 7, 8, 8]), (1, 9, []), (7, 1, [])]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def average_precision(score, relevant):
    places = np.flatnonzero(relevant[np.argsort(-score, kind="stable")])
    return float(np.mean(np.arange(1, places.size + 1) / (places + 1)))


def domain(rng, rows):
    """Rows that have some of six latents more than others have."""
    own = np.zeros(LATENTS)
    own[:6] = 0.5
    return unit(np.abs(rng.normal(size=(rows, LATENTS))) + own * rng.random((rows, LATENTS)) * 2)


@pytest.mark.parametrize(("scorer", "count"), [("contrast", 8), ("contrast", 20), ("max", 20)])
def test_average_precision_of_other_targets_is_inside_as_often_as_said(scorer, count):
    rng = np.random.default_rng(7)
    corpus = np.vstack([domain(rng, 60), unit(np.abs(rng.normal(size=(540, LATENTS))))])
    relevant, mean, source = np.arange(600) < 60, corpus.mean(axis=0), domain(rng, 4000)

    def precision(targets):
        cosines = corpus @ targets.T
        score = cosines.max(axis=1) if scorer == "max" else cosines.mean(axis=1) - corpus @ mean
        return average_precision(score, relevant)

    def some():
        return source[rng.choice(len(source), count, replace=False)]

    truth = np.mean([precision(some()) for _ in range(500)])
    inside, of_draws = 0, 0
    for _ in range(150):
        targets = some()
        found = jackknife(lambda rows, held=targets: precision(held[rows]), count)
        inside += found.low <= truth <= found.high
        again = [precision(targets[rng.integers(0, count, count)]) for _ in range(40)]
        of_draws += np.quantile(again, 0.025) <= truth <= np.quantile(again, 0.975)
    assert 0.89 <= inside / 150 <= 0.99
    assert of_draws / 150 < 0.85  # draws with repeats: what the interval was before


def test_of_a_mean_it_is_student_s():
    from scipy import stats

    data = np.random.default_rng(1).gamma(2.0, size=12)
    found = jackknife(lambda rows: float(data[rows].mean()), 12, level=0.9)
    low, high = stats.t.interval(0.9, 11, loc=data.mean(), scale=stats.sem(data))
    assert (found.low, found.value, found.high) == pytest.approx((low, data.mean(), high), rel=1e-12)
    assert jackknife(lambda rows: float(data[rows].mean()), 12, most=0).low == found.value


def test_groups_of_a_mean_give_the_same_spread_on_average():
    rng = np.random.default_rng(2)
    widths = [
        [(one := jackknife(lambda rows, d=data: float(d[rows].mean()), 40, most=most)).high - one.low
         for most in (40, 10)]
        for data in rng.normal(size=(400, 40))
    ]  # fmt: skip
    whole, groups = np.mean(widths, axis=0)
    # Student's quantiles at 39 and 9 degrees of freedom, and the bias of a root of so few squares.
    assert groups / whole == pytest.approx(2.2622 / 2.0227 * 0.9727 / 0.9936, rel=0.03)


@pytest.mark.parametrize(("count", "most", "sizes"), SPLITS)
def test_each_is_left_out_once(count, most, sizes):
    left = leave_out(count, most)
    assert [rows.size for rows in left] == sizes
    assert all((np.diff(rows) > 0).all() for rows in left)
    if left:
        missing = np.concatenate([np.setdiff1d(np.arange(count), rows) for rows in left])
        assert sorted(missing.tolist()) == list(range(count))


def test_bounds_and_what_is_undefined():
    found = jackknife_interval(0.9, [0.5, 0.99, 0.9, math.nan], bounds=(0.0, 1.0))
    assert found.high == 1.0
    assert found.low < 0.5
    assert jackknife_interval(0.4, [0.4, math.nan]) == jackknife_interval(0.4, [])
    assert str(jackknife_interval(0.5, [])) == "0.500 [0.500, 0.500]"
    assert math.isnan(jackknife_interval(math.nan, [0.1, 0.2]).low)
    interval = percentile_interval(1.5, [1.0, 2.0, math.nan])
    assert (interval.low, interval.high) == (pytest.approx(1.025), pytest.approx(1.975))
    for function in (jackknife_interval, percentile_interval):
        with pytest.raises(ValueError, match="level"):
            function(1.0, [1.0, 2.0], level=1.0)


def test_every_method_s_value_is_within_its_interval_and_not_at_its_end():
    rng = np.random.default_rng(5)
    corpus = np.vstack([domain(rng, 60), unit(np.abs(rng.normal(size=(540, LATENTS))))])
    rows, seeds = (
        Evidence(SparseCodes.from_dense(torch.from_numpy(each.astype(np.float32))), "sqrt_mean")
        for each in (corpus, domain(rng, 12))
    )
    relevant = np.arange(600) < 60
    lines = compare_methods(relevant, rows, seeds, methods=METHODS)
    for line in lines:
        assert line.intervals == "jackknife over targets"
        for name, item in line.metrics.items():
            most = np.inf if name.startswith("lift") else 1.0
            assert 0 <= item.low <= item.value <= item.high <= most
        whole = line.metrics["average_precision"]
        assert whole.value - whole.low == pytest.approx(whole.high - whole.value)
        assert whole.low < whole.value
    assert {line.metrics["average_precision"].low for line in lines} == {
        line.metrics["average_precision"].low
        for line in compare_methods(relevant, rows, seeds, methods=METHODS, seed=1)
    }


def test_bootstrap_of_a_mean_is_about_as_wide_as_the_error_of_the_mean():
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap_interval(lambda rows: float(values[rows].mean()), 400, draws=2000, level=0.9)
    error = 1.645 * values.std() / 20
    assert found.value == values.mean()
    assert found.low == pytest.approx(found.value - error, abs=error / 8)
    assert found.high == pytest.approx(found.value + error, abs=error / 8)
    assert bootstrap_interval(lambda rows: float(values[rows].mean()), 400, draws=0).low == found.value

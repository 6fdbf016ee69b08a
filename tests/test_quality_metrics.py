"""Metrics against labels: equal to scikit-learn and to brute force over all orders, defined at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.curation import (
    average_precision,
    base_rate,
    domain_distribution,
    lift_at_k,
    precision_at_k,
    random_average_precision,
    recall_at_k,
)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_average_precision_equals_sklearn(relevant, seed):
    from sklearn.metrics import average_precision_score

    relevant = np.array(relevant)
    ranking = np.random.default_rng(seed).permutation(relevant.size)
    if not relevant.any():
        assert math.isnan(average_precision(ranking, relevant))
        return
    score = np.empty(relevant.size)
    score[ranking] = -np.arange(relevant.size)
    assert average_precision(ranking, relevant) == pytest.approx(average_precision_score(relevant, score))


def test_precision_recall_and_lift():
    relevant = np.array([True, False, True, False, True, False, False, False])
    ranking = np.array([4, 1, 0, 3, 2, 5, 6])  # row 7 is not in the ranking
    assert [precision_at_k(ranking, relevant, k) for k in (1, 2, 5, 99)] == [1.0, 0.5, 0.6, 3 / 7]
    assert [recall_at_k(ranking, relevant, k) for k in (1, 3, 5)] == [1 / 3, 2 / 3, 1.0]
    assert base_rate(ranking, relevant) == 3 / 7
    assert lift_at_k(ranking, relevant, 1) == pytest.approx(7 / 3)
    assert math.isnan(precision_at_k(ranking, relevant, 0))
    assert math.isnan(lift_at_k(ranking, np.zeros(8, bool), 3))
    assert math.isnan(recall_at_k(ranking, np.zeros(8, bool), 3))


@pytest.mark.parametrize(("rows", "relevant"), [(1, 1), (4, 1), (5, 2), (6, 6), (7, 3)])
def test_random_average_precision_is_the_mean_over_all_orders(rows, relevant):
    values = []
    for places in itertools.combinations(range(rows), relevant):
        truth = np.zeros(rows, bool)
        truth[list(places)] = True
        values.append(average_precision(np.arange(rows), truth))
    assert random_average_precision(rows, relevant) == pytest.approx(np.mean(values), abs=1e-12)


def test_random_average_precision_edges():
    assert math.isnan(random_average_precision(5, 0))
    with pytest.raises(ValueError, match="relevant"):
        random_average_precision(3, 4)


def test_domain_distribution_lists_every_label_in_order():
    table = domain_distribution(["a", "b", "b", "c", "a", "b"], np.array([1, 2, 0]))
    assert list(table) == ["b", "a", "c"]
    assert table["b"] == {"count": 2, "share": 2 / 3, "corpus_share": 0.5, "lift": pytest.approx(4 / 3)}
    assert table["c"] == {"count": 0, "share": 0.0, "corpus_share": pytest.approx(1 / 6), "lift": 0.0}
    assert all(line["share"] == 0 for line in domain_distribution(["a", "b"], np.array([], int)).values())

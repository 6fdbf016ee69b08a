"""Places are counted and never sorted out: they must be those of the sorted ranking, ties and all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.curation import average_precision, precision_at_k, rank_rows, recall_at_k
from finescope.curation.ranks import Ranks


def counted(score, relevant, eligible, cuts):
    rows = np.arange(score.size)
    mine = relevant & eligible
    ranks = Ranks(score[mine], rows[mine])
    for block in np.split(rows, cuts):
        others = block[(eligible & ~relevant)[block]]
        ranks.add(score[others], others)
    return ranks


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 60),
    values=st.sampled_from([1, 2, 4, 10**6]),  # few values: the ranking is ties
    share=st.sampled_from([0.1, 0.5, 0.9]),
    broken=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_equal_to_the_sorted_ranking(seed, size, values, share, broken):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, values, size) / values
    if broken:
        score[rng.integers(size)] = math.nan
    relevant, eligible = rng.random(size) < share, rng.random(size) < 0.8
    ranking = rank_rows(score, eligible)
    ranks = counted(score, relevant, eligible, np.sort(rng.integers(0, size + 1, 3)))
    assert ranks.places().tolist() == (np.flatnonzero(relevant[ranking]) + 1).tolist()
    found = ranks.metrics((1, 5, 1000))
    np.testing.assert_equal(found["average_precision"], average_precision(ranking, relevant))
    for k in (1, 5, 1000):
        if relevant[ranking].any():
            precision = precision_at_k(ranking, relevant, k)
            assert found[f"precision@{k}"] == precision
            assert found[f"recall@{k}"] == recall_at_k(ranking, relevant, k)
            assert found[f"lift@{k}"] == pytest.approx(precision / relevant[ranking].mean(), rel=1e-15)
        else:
            assert all(math.isnan(found[f"{name}@{k}"]) for name in ("precision", "recall", "lift"))


@pytest.mark.parametrize("wanted", [3, 4000])  # fewer and more than there are others in a block
def test_many_rows_in_blocks_of_any_size(wanted):
    rng = np.random.default_rng(0)
    score = np.round(rng.normal(size=9000), 2)
    relevant = np.zeros(9000, bool)
    relevant[rng.choice(9000, wanted, replace=False)] = True
    everything = np.ones(9000, bool)
    places = (np.flatnonzero(relevant[rank_rows(score)]) + 1).tolist()
    for cuts in ([], [1, 2, 8000], range(0, 9000, 37)):
        assert counted(score, relevant, everything, list(cuts)).places().tolist() == places

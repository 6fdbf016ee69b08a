"""Tests of paired differences and the compute multiplier.

Fails if: a p-value isn't that of all choices of signs; it differs from scipy's on the same statistic;
p-values of several tests are adjusted otherwise than by Holm; a curve is read off wrongly between its points
or beyond.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from finescope.proof.statistics import holm, mean_interval, sign_flip, tokens_for, wilcoxon


def test_sign_flip_by_hand() -> None:
    assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)  # only +++ and −−− reach 6
    assert sign_flip([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip([5.0]) == 1.0
    assert sign_flip([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        sign_flip([])


@pytest.mark.parametrize("size", [4, 7, 11])
def test_sign_flip_is_scipys(size: int) -> None:
    values = np.random.default_rng(size).normal(0.4, 1.0, size)
    found = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(values.tolist()) == pytest.approx(float(found.pvalue))


def test_sign_flip_of_many_is_near_the_normal_one_and_repeats() -> None:
    values = np.random.default_rng(0).normal(0.25, 1.0, 60).tolist()
    found = sign_flip(values, draws=20_000)
    assert found == sign_flip(values, draws=20_000)
    assert found == pytest.approx(float(stats.ttest_1samp(values, 0.0).pvalue), abs=0.01)
    assert 0 < sign_flip([1.0] * 60, draws=999) == pytest.approx(1 / 1000)


def test_wilcoxon_is_scipys_and_defined_without_differences() -> None:
    values = [0.3, -0.1, 0.5, 0.7, 0.2, 0.9]
    assert wilcoxon(values) == pytest.approx(float(stats.wilcoxon(values).pvalue))
    assert wilcoxon([0.0, 0.0, 0.0]) == 1.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_interval_holds_the_mean() -> None:
    found = mean_interval([0.1, 0.2, 0.3, 0.4])
    assert found.value == pytest.approx(0.25)
    assert 0.1 <= found.low < 0.25 < found.high <= 0.4


def test_multiplier_of_a_known_curve() -> None:
    tokens = [1000, 2000, 4000, 8000]
    losses = [4.0 - 0.1 * math.log2(count / 1000) for count in tokens]
    for count in (1000, 1500, 3000, 8000):
        wanted = 4.0 - 0.1 * math.log2(count / 1000)
        assert tokens_for(wanted, tokens, losses) == pytest.approx(count)
    assert tokens_for(4.5, tokens, losses) == 1000
    assert tokens_for(3.0, tokens, losses) == math.inf
    # A loss that rises again doesn't take back what was reached.
    assert tokens_for(3.85, [1000, 2000, 4000], [4.0, 3.8, 3.9]) == pytest.approx(2**0.75 * 1000)
    # From no tokens on, by tokens themselves: there is no logarithm of 0.
    assert tokens_for(4.2, [0, *tokens], [4.4, *losses]) == pytest.approx(500)
    assert tokens_for(4.5, [0, *tokens], [4.4, *losses]) == 0
    assert tokens_for(3.95, [0, *tokens], [4.4, *losses]) == tokens_for(3.95, tokens, losses)
    for wrong in ([2, 1], [-1, 2], [0, 0]):
        with pytest.raises(ValueError, match="ascending"):
            tokens_for(1.0, wrong, [1.0, 2.0])

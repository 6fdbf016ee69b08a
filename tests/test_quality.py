"""Quality numbers are quoted in reports: each must equal its slow definition and be defined at the edges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import SparseCodes
from finescope.curation import (
    curation_quality,
    latent_coverage,
    length_bias,
    pairwise_diversity,
    spearman,
    target_similarity,
    vendi_score,
)
from support import curation_oracle as oracle


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def diversity_by_loops(dense, weights=None):
    unit = oracle.unit(dense, weights)
    pairs = [unit[i] @ unit[j] for i in range(len(unit)) for j in range(len(unit)) if i != j]
    return 1 - math.fsum(pairs) / len(pairs)


def vendi_by_definition(dense):
    unit = oracle.unit(dense)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return math.exp(-(eigenvalues * np.log(eigenvalues)).sum())


@given(seed=st.integers(0, 1000), rows=st.integers(2, 30), latents=st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_diversity_is_the_mean_over_pairs_of_different_rows(seed, rows, latents):
    dense = oracle.sparse_rows(np.random.default_rng(seed), rows, latents)
    dense[0] = 0
    assert pairwise_diversity(codes(dense)) == pytest.approx(diversity_by_loops(dense), abs=1e-12)


def test_diversity_with_weights_and_at_the_edges():
    dense = oracle.sparse_rows(np.random.default_rng(0), 12, 8, 0.5)
    weights = np.linspace(0, 1, 8)
    assert pairwise_diversity(codes(dense), weights=weights) == pytest.approx(
        diversity_by_loops(dense, weights), abs=1e-12
    )
    assert pairwise_diversity(codes(np.ones((5, 3)))) == pytest.approx(0.0, abs=1e-12)
    assert pairwise_diversity(codes(np.eye(5))) == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(pairwise_diversity(codes(np.eye(1))))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])  # either side of the Gram matrix is the smaller one
def test_vendi_equals_its_definition(shape):
    dense = oracle.sparse_rows(np.random.default_rng(1), *shape, 0.4)
    assert vendi_score(codes(dense)) == pytest.approx(vendi_by_definition(dense), rel=1e-9)


def test_vendi_counts_different_rows_and_samples_large_sets():
    assert vendi_score(codes(np.eye(7))) == pytest.approx(7, rel=1e-9)
    assert vendi_score(codes(np.repeat(np.eye(3), 4, axis=0))) == pytest.approx(3, rel=1e-9)
    assert vendi_score(codes(np.vstack([np.eye(3), np.zeros((2, 3))]))) == pytest.approx(3, rel=1e-9)
    assert math.isnan(vendi_score(codes(np.zeros((2, 3)))))
    large = codes(np.eye(50))
    assert vendi_score(large, max_rows=20) == pytest.approx(20, rel=1e-9)
    mixed = codes(oracle.sparse_rows(np.random.default_rng(3), 60, 30))
    assert vendi_score(mixed, max_rows=20, seed=5) == vendi_score(mixed, max_rows=20, seed=5)
    assert vendi_score(mixed, max_rows=20, seed=5) != vendi_score(mixed, max_rows=20, seed=6)


def test_target_similarity_is_over_all_pairs():
    rng = np.random.default_rng(2)
    targets, chosen = oracle.sparse_rows(rng, 70, 15), oracle.sparse_rows(rng, 11, 15)
    cosines = oracle.unit(targets) @ oracle.unit(chosen).T
    mean, low, high, best = target_similarity(codes(targets), codes(chosen))
    assert (mean, low, high) == pytest.approx((cosines.mean(), cosines.min(), cosines.max()), abs=1e-12)
    np.testing.assert_allclose(best, cosines.max(axis=1), atol=1e-12)
    assert all(math.isnan(value) for value in target_similarity(codes(targets), codes(chosen)[:0])[:3])


def test_latent_coverage_counts_latents_not_entries():
    targets = codes([[1, 1, 0, 0, 0, 0]])
    corpus = codes([[1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]])
    found = latent_coverage(targets, corpus[[0, 1]], corpus)
    assert found == {"latents": 3, "of_corpus": 3 / 4, "of_targets": 1 / 2}


def test_length_bias_sees_a_preference_for_long_rows():
    lengths = np.array([10.0, 20, 30, 40])
    up = length_bias(np.array([0.1, 0.2, 0.5, 0.9]), lengths, np.array([3, 2]))
    assert up == {"spearman": pytest.approx(1.0), "mean_length_ratio": pytest.approx(35 / 25)}
    down = length_bias(np.array([0.9, 0.5, 0.2, 0.1]), lengths, np.array([0]))
    assert down == {"spearman": pytest.approx(-1.0), "mean_length_ratio": pytest.approx(10 / 25)}
    assert length_bias(np.ones(4), lengths, np.array([], int)) == {
        "spearman": None,
        "mean_length_ratio": None,
    }
    with pytest.raises(ValueError, match="4 rows"):
        length_bias(np.ones(4), [1, 2], np.array([0]))


def test_spearman_equals_scipy_with_ties():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 5, 40).astype(float), rng.integers(0, 5, 40).astype(float)
    assert spearman(left, right) == pytest.approx(spearmanr(left, right).statistic, abs=1e-12)
    assert spearman(np.ones(3), np.arange(3.0)) is None
    assert spearman(np.ones(1), np.ones(1)) is None


def test_the_whole_is_json_and_has_the_supplements_keys():
    rng = np.random.default_rng(7)
    targets, corpus = codes(oracle.sparse_rows(rng, 5, 20)), codes(oracle.sparse_rows(rng, 40, 20))
    chosen = np.array([3, 1, 30])
    cosines = oracle.unit(targets.to_dense()) @ oracle.unit(corpus.to_dense()).T
    found = curation_quality(
        targets, corpus, chosen, score=np.arange(40.0), lengths=np.arange(40), coverage_threshold=0.3
    )
    assert found["avg_similarity_to_target"] == pytest.approx(cosines[:, chosen].mean())
    assert found["min_similarity_to_target"] == pytest.approx(cosines[:, chosen].min())
    assert found["max_similarity_to_target"] == pytest.approx(cosines[:, chosen].max())
    assert found["diversity_of_selected"] == pytest.approx(
        diversity_by_loops(corpus.to_dense().numpy()[chosen])
    )
    assert found["num_selected"] == 3
    assert found["target_coverage"] == pytest.approx((cosines[:, chosen].max(axis=1) >= 0.3).mean())
    assert 0 < found["target_coverage"] < 1
    assert found["length_bias"]["spearman"] == pytest.approx(1.0)
    json.dumps(found, allow_nan=False)
    empty = curation_quality(targets, corpus, np.array([], int))
    assert empty["num_selected"] == 0
    assert empty["avg_similarity_to_target"] is None
    json.dumps(empty, allow_nan=False)

"""Scores decide everything downstream: each must equal its written formula, weights folded in or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import InputError, SparseCodes
from finescope.curation import SCORERS, CorpusScorer, document_frequency, idf_weights, score_corpus
from finescope.curation.scoring.base import FOLDS, folds_of
from support import curation_oracle as oracle


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense)))


def problem(seed=0, targets=7, rows=60, latents=40):
    rng = np.random.default_rng(seed)
    return oracle.sparse_rows(rng, targets, latents), oracle.sparse_rows(rng, rows, latents)


def within(scorer):
    """Rounding; what is found by steps ends a little earlier."""
    return 1e-9 if scorer == "ridge" else 1e-13


@pytest.mark.parametrize("weights", ["none", "idf", "given"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_equals_the_formula(scorer, weights):
    targets, corpus = problem()
    vector = {"none": None, "idf": oracle.idf(corpus), "given": np.linspace(0, 2, 40)}[weights]
    table = score_corpus(
        codes(targets), codes(corpus), scorer=scorer, weights=vector if weights == "given" else weights
    )
    score, nearest, similarity = oracle.scores(targets, corpus, scorer, vector, folds=folds_of(codes(corpus)))
    np.testing.assert_allclose(table.score, score, rtol=0, atol=within(scorer))
    np.testing.assert_array_equal(table.nearest_target, nearest)
    np.testing.assert_allclose(table.nearest_similarity, similarity, rtol=0, atol=1e-14)
    assert table.valid.all()
    assert table.scorer == scorer


@given(
    seed=st.integers(0, 10_000),
    targets=st.integers(1, 5),
    rows=st.integers(1, 12),
    latents=st.integers(1, 9),
    m=st.integers(1, 7),
    scorer=st.sampled_from(SCORERS),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_formula_at_small_shapes(seed, targets, rows, latents, m, scorer):
    t, c = problem(seed, targets, rows, latents)
    table = CorpusScorer(codes(c)).score(codes(t), scorer, m=m)
    score, _, similarity = oracle.scores(t, c, scorer, m=min(m, targets), folds=folds_of(codes(c)))
    np.testing.assert_allclose(table.score, score, rtol=0, atol=within(scorer))
    np.testing.assert_allclose(table.nearest_similarity, similarity, rtol=0, atol=1e-13)


def test_more_targets_than_one_panel_of_queries():
    targets, corpus = problem(3, targets=150, rows=20)
    for scorer in ("max", "top_m_mean"):
        table = score_corpus(codes(targets), codes(corpus), scorer=scorer, weights=None, m=5)
        score, nearest, _ = oracle.scores(targets, corpus, scorer, m=5)
        np.testing.assert_allclose(table.score, score, rtol=0, atol=1e-14)
        np.testing.assert_array_equal(table.nearest_target, nearest)


def test_the_first_of_equal_targets_is_the_nearest():
    row = np.array([[0.0, 1.0, 2.0]], np.float32)
    table = score_corpus(codes(np.repeat(row, 130, axis=0)), codes(row * 3), scorer="max", weights=None)
    assert table.nearest_target.tolist() == [0]
    assert table.nearest_similarity.tolist() == [pytest.approx(1.0, abs=1e-15)]
    assert table.nearest_similarity[0] <= 1.0


def test_idf_is_zero_for_a_latent_that_always_fires_and_grows_with_rarity():
    dense = np.zeros((9, 4), np.float32)
    dense[:8, 0] = 1  # in all rows that hold anything
    dense[:4, 1] = 1
    dense[0, 2] = 1
    counts, rows = document_frequency(codes(dense))
    assert (counts.tolist(), rows) == ([8, 4, 1, 0], 8)
    weights = idf_weights(codes(dense))
    assert weights[0] == 0.0
    np.testing.assert_allclose(weights, oracle.idf(dense), rtol=1e-15)
    assert weights[1] < weights[2] < weights[3]


@pytest.mark.parametrize("copies", [1, 5])
def test_documents_that_are_all_alike_can_still_be_scored(copies):
    """Every latent that fires does so everywhere: weights of 0 would make all of them invalid."""
    corpus = np.tile(np.array([[0.5, 0, 2, 0]], np.float32), (copies, 1))
    targets = np.array([[1, 0, 1, 0], [0, 1, 0, 0]], np.float32)
    assert idf_weights(codes(corpus)).tolist() == [1.0] * 4
    table = CorpusScorer(codes(corpus), weights="idf").score(codes(targets), "max")
    assert table.valid.all()
    np.testing.assert_allclose(table.score, 2.5 / np.sqrt(2 * 4.25), rtol=1e-14)


def test_rows_without_latents_and_broken_rows_are_marked_and_leave_the_others_alone():
    targets, corpus = problem(5)
    dirty = corpus.copy()
    dirty[4] = 0
    dirty[9, 3] = np.nan
    dirty[11, 2] = np.inf
    clean = np.delete(corpus, [4, 9, 11], axis=0)
    table = CorpusScorer(codes(dirty)).score(codes(targets), "contrast")
    assert np.flatnonzero(~table.valid).tolist() == [4, 9, 11]
    assert table.score[[4, 9, 11]].tolist() == [0.0, 0.0, 0.0]
    assert table.nearest_target[[4, 9, 11]].tolist() == [-1, -1, -1]
    expected, _, _ = oracle.scores(targets, clean, "contrast")
    np.testing.assert_allclose(np.delete(table.score, [4, 9, 11]), expected, rtol=0, atol=1e-14)
    assert not {4, 9, 11} & set(table.ranking().tolist())


def test_a_target_without_latents_is_left_out_and_keeps_the_numbering():
    targets, corpus = problem(6)
    targets[2] = 0
    for scorer in SCORERS:
        table = CorpusScorer(codes(corpus)).score(codes(targets), scorer)
        score, nearest, _ = oracle.scores(targets, corpus, scorer, folds=folds_of(codes(corpus)))
        np.testing.assert_allclose(table.score, score, rtol=0, atol=within(scorer))
        np.testing.assert_array_equal(table.nearest_target, nearest)


def test_ranking_breaks_ties_by_row():
    corpus = np.eye(4, dtype=np.float32)[[1, 0, 1, 0, 1]]
    table = score_corpus(codes(np.eye(4, dtype=np.float32)[[1]]), codes(corpus), scorer="max", weights=None)
    assert table.ranking().tolist() == [0, 2, 4, 1, 3]


def test_nearest_rows_are_the_best_of_each_target_in_order():
    targets, corpus = problem(8, rows=50)
    corpus[25:] = corpus[:25]  # every row twice: each list is full of ties
    cosines = oracle.unit(targets) @ oracle.unit(corpus).T
    mask = np.arange(50) != 20
    ids, found = CorpusScorer(codes(corpus), block_rows=7).nearest_rows(codes(targets), 12, mask=mask)
    for target in range(7):
        rounded = np.round(cosines[target], 12)
        expected = [row for row in np.lexsort((np.arange(50), -rounded)) if mask[row]][:12]
        assert ids[target].tolist() == expected
        np.testing.assert_allclose(found[target], cosines[target][expected], atol=1e-14)
    ids, found = CorpusScorer(codes(corpus[:3])).nearest_rows(codes(targets), 5)
    assert (ids[:, 3:] == -1).all()
    assert np.isneginf(found[:, 3:]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: (t[:0], c, {}), "no targets"),
        (lambda t, c: (t, c[:0], {}), "no rows"),
        (lambda t, c: (t * 0, c, {}), "no target has a latent"),
        (lambda t, c: (t * np.nan, c, {}), "target 0 holds a NaN"),
        (lambda t, c: (t[:, :5], c, {}), "same SAE"),
        (lambda t, c: (t, c, {"scorer": "best"}), "unknown scorer"),
        (lambda t, c: (t, c, {"weights": "tf"}), "unknown weighting"),
        (lambda t, c: (t, c, {"weights": np.ones(3)}), r"shape \[40\]"),
        (lambda t, c: (t, c, {"weights": -np.ones(40)}), "not negative"),
        (lambda t, c: (t, c, {"m": 0}), "m must be"),
    ],
)
def test_misuse_is_refused_by_name(change, message):
    targets, corpus, options = change(*problem())
    with pytest.raises((ValueError, InputError), match=message):
        score_corpus(codes(targets), codes(corpus), **options)


def signed(seed):
    """Codes of both signs, a target among them that has none in common with any row."""
    rng = np.random.default_rng(seed)
    targets, corpus = problem(seed, rows=30)
    return (each * rng.choice([-1, 1], each.shape).astype(np.float32) for each in (targets, corpus))


def test_jaccard_takes_the_two_signs_of_a_latent_for_two_latents():
    targets, corpus = signed(11)
    found = CorpusScorer(codes(corpus)).score(codes(targets), "jaccard").score
    unit, prototype = oracle.unit(corpus), oracle.unit(targets).mean(axis=0)
    unit, prototype = (np.hstack([np.maximum(each, 0), np.maximum(-each, 0)]) for each in (unit, prototype))
    expected = np.minimum(unit, prototype).sum(axis=1) / np.maximum(unit, prototype).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert ((found >= 0) & (found <= 1)).all()
    same = CorpusScorer(codes(corpus)).score(codes(corpus[4:5]), "jaccard").score
    assert same.argmax() == 4
    assert same[4] == pytest.approx(1.0, abs=1e-15)


def test_ridge_looks_at_a_thousand_rows_the_same_for_all_targets_and_blocks():
    targets, corpus = problem(12, rows=1500, latents=30)
    targets[0] = corpus[3]  # a target that is a row of the corpus, drawn or not
    whole = CorpusScorer(codes(corpus), weights="idf")
    background = whole.background()
    assert background.unit.shape == (1000, 30)
    rows, folds = oracle.unit(corpus, oracle.idf(corpus)), folds_of(codes(corpus))
    directions = oracle.ridge_directions(
        oracle.unit(targets, oracle.idf(corpus)), rows, background.unit.toarray(), folds, background.folds
    )
    found = whole.score(codes(targets), "ridge").score
    np.testing.assert_allclose(found, (rows * directions).sum(axis=1), rtol=0, atol=1e-9)
    small = CorpusScorer(codes(corpus), weights="idf", block_rows=7).score(codes(targets), "ridge").score
    np.testing.assert_array_equal(found, small)


def test_folds_are_even_and_of_what_a_row_holds_alone():
    _, corpus = problem(13, rows=5000, latents=50)
    every = folds_of(codes(corpus))
    assert np.bincount(every, minlength=FOLDS).min() > 400
    np.testing.assert_array_equal(folds_of(codes(corpus[::-1].copy())), every[::-1])
    np.testing.assert_array_equal(folds_of(codes(corpus)[17:19]), every[17:19])
    np.testing.assert_array_equal(folds_of(codes(corpus.astype(np.float64))), every)
    assert folds_of(codes(corpus[:0])).tolist() == []
    assert folds_of(codes(np.zeros((2, 3), np.float32))).tolist() == [0, 0]


@pytest.mark.parametrize("latents", [30, 3000])
def test_ridge_does_not_hold_it_against_a_row_that_it_was_fitted_as_one_of_the_corpus(latents):
    """Rows of the domain score as high within the sample as outside it, and so do the others."""
    rng = np.random.default_rng(2)
    corpus = oracle.sparse_rows(rng, 3000, latents, density=min(0.15, 60 / latents))
    of_domain = np.arange(3000) < 150
    shared = rng.choice(latents, 6, replace=False)
    corpus[np.ix_(of_domain, shared)] += rng.random((150, 6)).astype(np.float32)
    targets, corpus, of_domain = corpus[:20], corpus[20:], of_domain[20:]
    scorer = CorpusScorer(codes(corpus))
    score = scorer.score(codes(targets), "ridge").score
    drawn = np.isin(np.arange(2980), np.random.default_rng(0).choice(2980, 1000, replace=False))
    for rows in (of_domain, ~of_domain):
        inside, outside = score[rows & drawn], score[rows & ~drawn]
        error = np.sqrt(inside.var() / inside.size + outside.var() / outside.size)
        assert abs(inside.mean() - outside.mean()) < 3 * error


def test_ridge_of_a_corpus_that_holds_nothing_but_targets():
    targets = np.eye(3, dtype=np.float32)
    table = CorpusScorer(codes(np.repeat(targets, 2, axis=0))).score(codes(targets), "ridge")
    np.testing.assert_allclose(table.score, 1 / 3, rtol=1e-15)

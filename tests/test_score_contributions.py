"""What is shown of a score must be the score: the addends of a row sum to it, for whatever gave it.

Targets without a latent of positive weight, whose idf is 0 or which are empty, count for nothing: they must
do so in the score and in its addends alike. So must rows that hold nothing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finescope import InputError, SparseCodes
from finescope.curation import SCORERS, CorpusScorer, Evidence, Scoring, repool
from finescope.curation.scoring.base import folds_of
from finescope.report.explain import explain
from support import curation_oracle as oracle

LATENTS = 40


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def problem(rows=80):
    """A corpus all of whose rows hold latent 0, apart from empty ones; two targets weigh nothing by idf."""
    rng = np.random.default_rng(3)
    corpus, targets = oracle.sparse_rows(rng, rows, LATENTS), oracle.sparse_rows(rng, 7, LATENTS)
    corpus[:, 0] = 1.0
    corpus[[5, 17]] = 0.0
    targets[2] = 0.0
    targets[4] = 0.0
    targets[4, 0] = 2.0
    return corpus, targets


def sums(addends):
    return np.asarray(addends.sum(axis=1)).ravel()


@pytest.mark.parametrize("m", [1, 3, 50])
@pytest.mark.parametrize("pooling", ["sqrt_mean", "mean"])
@pytest.mark.parametrize("weights", ["none", "idf", "given"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_addends_sum_to_the_score(scorer, weights, pooling, m):
    corpus, targets = (repool(codes(dense), "sqrt_mean", pooling) for dense in problem())
    vector = np.linspace(0, 2, LATENTS) if weights == "given" else weights
    prepared = CorpusScorer(corpus, weights=vector)
    table = prepared.score(targets, scorer, m=m)
    addends = prepared.contributions(targets, np.arange(80), scorer, m=m)
    assert addends.shape == (80, LATENTS)
    np.testing.assert_allclose(sums(addends), table.score, rtol=0, atol=1e-12)
    assert not table.valid[[5, 17]].any()
    assert addends[[5, 17]].nnz == 0


def jaccard(rows, prototype):
    return np.minimum(rows, prototype) / np.maximum(rows, prototype).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("weights", ["none", "idf"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_addend_is_the_row_s_part_of_the_direction(scorer, weights):
    corpus, targets = problem()
    vector = oracle.idf(corpus) if weights == "idf" else None
    unit, seeds = oracle.unit(corpus, vector), oracle.unit(targets, vector)
    usable = seeds.any(axis=1)
    nearest = seeds[np.argmax(np.where(usable, unit @ seeds.T, -1), axis=1)]
    raw = (targets.astype(np.float64) * (1.0 if vector is None else vector))[usable].mean(axis=0)
    three = np.argsort(-np.where(usable, unit @ seeds.T, -1), axis=1, kind="stable")[:, :3]
    folds = folds_of(codes(corpus))
    direction = {
        "max": nearest,
        "mean": seeds[usable].mean(axis=0),
        "top_m_mean": seeds[three].mean(axis=1),
        "centroid": raw / np.linalg.norm(raw),
        "contrast": seeds[usable].mean(axis=0) - unit[unit.any(axis=1)].mean(axis=0),
        "ridge": oracle.ridge_directions(seeds[usable], unit, unit, folds, folds),
    }
    expected = unit * direction[scorer] if scorer in direction else jaccard(unit, seeds[usable].mean(axis=0))
    addends = CorpusScorer(codes(corpus), weights=vector).contributions(codes(targets), np.arange(80), scorer)
    atol = 1e-9 if scorer == "ridge" else 1e-14
    np.testing.assert_allclose(addends.toarray(), expected, rtol=0, atol=atol)


def test_rows_come_in_the_order_asked_for_and_from_shards_alike():
    corpus, targets = map(codes, problem())

    class Shards:
        def iter_shards(self):
            return iter([corpus[:30], corpus[30:31], corpus[31:]])

    rows = np.array([79, 3, 30, 3])
    found = CorpusScorer(Shards(), weights="idf").contributions(targets, rows, "top_m_mean")
    every = CorpusScorer(corpus, weights="idf").contributions(targets, np.arange(80), "top_m_mean")
    np.testing.assert_array_equal(found.toarray(), every[rows].toarray())
    assert CorpusScorer(corpus).contributions(targets, rows[:0], "max").shape == (0, LATENTS)


def test_broken_rows_and_misuse():
    corpus, targets = problem()
    corpus[9, 3] = np.inf
    prepared = CorpusScorer(codes(corpus))
    addends = prepared.contributions(codes(targets), np.array([9, 10]), "contrast")
    assert sums(addends) == pytest.approx([0.0, prepared.score(codes(targets)).score[10]], abs=1e-14)
    with pytest.raises(ValueError, match="nonsense"):
        prepared.contributions(codes(targets), np.array([0]), "nonsense")
    with pytest.raises(InputError, match="no targets"):
        prepared.contributions(codes(targets[:0]), np.array([0]), "max")


@pytest.mark.parametrize("scorer", SCORERS)
def test_the_report_shows_these_addends(scorer):
    corpus, targets = map(codes, problem())
    scoring = Scoring(Evidence(corpus), Evidence(targets), scorer=scorer)
    table = scoring.score()
    rows = table.ranking()[:9]
    addends = scoring.space.contributions(targets, rows, scorer).toarray()
    for addend, shares in zip(
        addends, explain(scoring, np.flatnonzero(table.valid), rows).shares, strict=True
    ):
        assert [share.value for share in shares] == [addend[share.latent] for share in shares]
        left = np.delete(addend, [share.latent for share in shares])
        assert np.abs(left).max() <= min(abs(share.value) for share in shares)

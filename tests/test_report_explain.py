"""The explanation of a row must be its score taken apart: the latents' shares add up to it, always."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.curation.scoring.scorers import SCORERS, CorpusScorer
from finescope.report.explain import latent_examples, latent_words, score_contributions, strongest


def codes(rows: int, seed: int, latents: int = 60) -> SparseCodes:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, latents, generator=generator)
    return SparseCodes.from_dense(dense * (dense > 0.7))


@pytest.mark.parametrize("weights", [None, "idf"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_contributions_add_up_to_the_score(scorer: str, weights: str | None) -> None:
    corpus, targets = codes(80, 1), codes(7, 2)
    prepared = CorpusScorer(corpus, weights=weights)
    table = prepared.score(targets, scorer, m=3)
    rows = table.ranking()[[0, 5, 79]]
    parts = score_contributions(prepared, targets, rows, scorer, m=3)
    np.testing.assert_allclose(
        np.asarray(parts.sum(axis=1)).ravel(), table.score[rows], rtol=1e-12, atol=1e-15
    )
    given = score_contributions(prepared, targets, rows, scorer, nearest=table.nearest_target[rows], m=3)
    np.testing.assert_array_equal(given.toarray(), parts.toarray())


def test_a_target_without_latents_changes_nothing() -> None:
    corpus, targets = codes(40, 1), codes(4, 2)
    padded = SparseCodes.cat([targets, SparseCodes.from_dense(torch.zeros(1, 60))])
    prepared = CorpusScorer(corpus, weights="idf")
    for scorer in SCORERS:
        table = prepared.score(padded, scorer)
        parts = score_contributions(prepared, padded, np.array([3]), scorer)
        assert parts.sum() == pytest.approx(table.score[3], rel=1e-12)


def test_unknown_scorer() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        score_contributions(CorpusScorer(codes(4, 1)), codes(2, 2), np.array([0]), "nonsense")


def test_strongest_are_by_size_and_without_zeros() -> None:
    from scipy.sparse import csr_matrix

    parts = csr_matrix(np.array([[0.1, -0.5, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]]))
    assert strongest(parts, 2) == [[(1, -0.5), (3, 0.3)], []]


def test_words_of_a_latent_are_those_of_its_rows() -> None:
    dense = torch.zeros(6, 3)
    dense[:3, 0] = torch.tensor([3.0, 2.0, 1.0])
    dense[3:, 1] = 1.0
    dense[:, 2] = 0.5
    texts = ["the cat sat", "the cat ran", "a cat slept", "the dog sat", "one dog ran", "the dog slept"]
    examples = latent_examples(SparseCodes.from_dense(dense), [0, 1], count=3)
    assert examples[0].tolist() == [0, 1, 2]
    assert sorted(examples[1].tolist()) == [3, 4, 5]
    words = latent_words(examples, texts.__getitem__, texts)
    assert words[0].split(", ")[0] == "cat"
    assert words[1].split(", ")[0] == "dog"
    assert latent_examples(SparseCodes.from_dense(dense), []) == {}

"""The explanation of a row is its score taken apart, and a latent's words come from its own rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.curation import Evidence, Scoring
from finescope.report.data import Passage, Share
from finescope.report.explain import BACKGROUND_ROWS, background_rows, explain, strongest
from finescope.report.latents import LatentWords, latent_examples


def codes(rows: int, seed: int, latents: int = 60) -> SparseCodes:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, latents, generator=generator)
    return SparseCodes.from_dense(dense * (dense > 0.7))


def test_strongest_are_by_size_and_without_zeros() -> None:
    from scipy.sparse import csr_matrix

    parts = csr_matrix(np.array([[0.1, -0.5, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]]))
    assert strongest(parts, 2) == [[Share(1, -0.5), Share(3, 0.3)], []]


def test_examples_of_a_latent_are_the_rows_with_its_largest_shares() -> None:
    """Against the definition, over several shards, with ties, empty rows and latents that never fire."""
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 4, (500, 30)).astype(np.float32) * (rng.random((500, 30)) < 0.2)
    dense[:, 7] = 0.0
    dense[100:120] = 0.0
    dense[300] = dense[250]
    norms = np.sqrt((dense.astype(np.float64) ** 2).sum(axis=1))
    shares = dense / np.where(norms > 0, norms, 1.0)[:, None]

    class Shards:
        def iter_shards(self) -> list[SparseCodes]:
            return [SparseCodes.from_dense(torch.from_numpy(dense[at : at + 70])) for at in range(0, 500, 70)]

    found = latent_examples(Shards(), [29, 0, 7, 7, 12], count=9)
    assert sorted(found) == [0, 7, 12, 29]
    for latent, rows in found.items():
        fires = np.flatnonzero(shares[:, latent] > 0)
        best = fires[np.lexsort((fires, -shares[fires, latent]))][:9]
        np.testing.assert_array_equal(rows, best)
    assert found[7].size == 0
    assert latent_examples(Shards(), [], count=9) == {}


def test_rows_with_infinities_are_nobodys_examples() -> None:
    dense = torch.tensor([[1.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [0.5, 0.5]])
    found = latent_examples(SparseCodes.from_dense(dense), [0, 1])
    assert found[0].tolist() == [0, 3]
    assert found[1].tolist() == [3]


def test_words_of_a_latent_are_those_of_its_rows() -> None:
    texts = ["the cat sat", "the cat ran", "a cat slept", "the dog sat", "one dog ran", "the dog slept"]
    words = LatentWords({0: np.array([0, 1, 2]), 1: np.array([3, 4, 5]), 2: np.zeros(0, np.int64)}, range(6))
    assert words.wanted() == set(range(6))
    for row, text in enumerate(texts):
        words.see(row, text)
    assert words.words(0).split(", ")[0] == "cat"
    assert words.words(1).split(", ")[0] == "dog"
    assert words.words(2) == ""


def test_an_explanation_reads_what_it_shows() -> None:
    corpus, targets = codes(4000, 1), codes(5, 2)
    scoring = Scoring(Evidence(corpus), Evidence(targets))
    table = scoring.score()
    rows = table.ranking()[:6]
    explanation = explain(scoring, background_rows(lambda: [table.valid]), rows)
    wanted = explanation.wanted()
    assert wanted == sorted(set(wanted))
    assert set(rows.tolist()) <= set(wanted)
    assert len(wanted) <= BACKGROUND_ROWS + 6 + 12 * len(explanation.examples)
    passages, latents = explanation.read(
        (row, Passage(f"id {row}", f"word{row} and " * 200, 99_999)) for row in wanted
    )
    assert sorted(passages) == sorted(rows.tolist())
    assert passages[int(rows[0])].length == 99_999
    shown = {share.latent for shares in explanation.shares for share in shares}
    assert set(latents) == shown
    parts = scoring.contributions(rows).latents.toarray()
    for number, latent in latents.items():
        assert latent.mean == pytest.approx(parts[:, number].mean(), rel=1e-12)
        ranks = [
            rank
            for rank, shares in enumerate(explanation.shares, start=1)
            if number in [share.latent for share in shares]
        ]
        assert list(latent.ranks) == ranks
        best = latent_examples(corpus, [number], 3)[number]
        assert [passage.id for passage in latent.examples] == [f"id {row}" for row in best]
        assert all(len(passage.text) <= 240 for passage in latent.examples)


def test_nothing_to_explain() -> None:
    corpus, targets = codes(20, 1), codes(2, 2)
    scoring = Scoring(Evidence(corpus), Evidence(targets))
    explanation = explain(scoring, np.arange(5), np.zeros(0, np.int64))
    assert explanation.wanted() == []
    assert explanation.read([]) == ({}, {})

"""A latent says nothing by its number: what is shown of it must be its strongest rows, and their words."""

from __future__ import annotations

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.report.explain import latent_examples, latent_words, strongest


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

"""Baselines by themselves, without codes: random, length, TF-IDF words, dense activations.

In a table of methods they stand as the scorers of the same formulas: ``random``, ``length``, ``tfidf``,
``tfidf-max``, ``dense`` and ``dense-centred``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from finescope.curation.blocks import FloatArray, IntArray
from finescope.curation.scoring.base import SpaceScorer
from finescope.curation.scoring.dense import DenseRows
from finescope.curation.scoring.evidence import Evidence, Spaces, word_space
from finescope.curation.scoring.onepass import one_pass
from finescope.curation.scoring.presets import PRESETS
from finescope.curation.scoring.scorers import TABLE, Random
from finescope.curation.scoring.space import Space, Targets, View
from finescope.curation.scoring.words import count_words


def random_scores(rows: int, seed: int) -> FloatArray:
    """Return seeded uniform scores, float64 [N]: a random order."""
    return Random("random", "", seed).values(rows, None)


def length_scores(lengths: Any) -> FloatArray:
    """Return the lengths as scores, float64 [N]: longest first, a strong baseline in several studies."""
    return np.asarray(lengths, dtype=np.float64)


class TfidfBaseline:
    """TF-IDF vectors of corpus and targets, scored like the codes."""

    def __init__(self, texts: Iterable[str], target_texts: Iterable[str]):
        """Fit on the corpus.

        Args:
            texts: N corpus texts.
            target_texts: T target texts.

        Raises:
            InputError: the texts hold no words, or the targets none of the corpus'.
        """
        words = count_words(texts)
        self._space = word_space(words)
        self._targets = self._space.targets(words.damp(words.count(target_texts)))

    def max_cosine(self, targets: IntArray) -> FloatArray:
        """Return the best cosine over the chosen targets, float64 [N]."""
        return _scores("tfidf-max", self._space, self._targets, targets)

    def contrast(self, targets: IntArray) -> FloatArray:
        """Return ⟨mean of the chosen targets − mean of the corpus, row⟩, float64 [N]."""
        return _scores("tfidf", self._space, self._targets, targets)


class DenseBaseline:
    """Mean-pooled activations, scored by cosine: what one would do without an SAE."""

    def __init__(self, corpus: Any, targets: Any):
        """Look at the vectors.

        Args:
            corpus: [N,D] mean-pooled activations, tensor or array (a memory map is read in blocks).
            targets: [T,D].

        Raises:
            ValueError: widths differ or the arrays are not matrices.
        """
        self._spaces = Spaces(Evidence(DenseRows(corpus), dense=corpus))
        self._seeds = Evidence(DenseRows(targets), dense=targets)
        self._of("dense")

    def max_cosine(self, targets: IntArray) -> FloatArray:
        """Return the best cosine over the chosen targets, float64 [N]."""
        return _scores("dense", *self._of("dense"), targets)

    def centred_mean(self, targets: IntArray) -> FloatArray:
        """Return the mean cosine to the chosen targets after subtracting the corpus mean, float64 [N]."""
        return _scores("dense-centred", *self._of("dense-centred"), targets)

    def _of(self, name: str) -> tuple[Space, Targets]:
        recipe = PRESETS["default"]
        return self._spaces.get(name, recipe), self._spaces.targets(name, recipe, self._seeds)


def _scores(name: str, space: Space, targets: Targets, positions: IntArray) -> FloatArray:
    scorer, pick = TABLE[name], targets.pick(np.asarray(positions, np.int64))
    found = np.zeros(len(space))
    if pick is not None and isinstance(scorer, SpaceScorer):
        for rows, (seen,) in one_pass([View(space, targets, scorer.uses_mean)]):
            found[rows] = scorer.score(seen, pick)
    return found

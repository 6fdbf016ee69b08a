"""Baselines that every report shows beside the chosen method: random, length, TF-IDF, dense activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from finescope.curation.blocks import FloatArray, IntArray
from finescope.errors import InputError

DENSE_BLOCK = 65_536
"""Dense rows turned into float64 at a time."""


def random_scores(rows: int, seed: int) -> FloatArray:
    """Return seeded uniform scores, float64 [N]: a random order."""
    return np.random.default_rng(seed).random(rows)


def length_scores(lengths: Any) -> FloatArray:
    """Return the lengths as scores, float64 [N]: longest first, a strong baseline in several studies."""
    return np.asarray(lengths, dtype=np.float64)


class TfidfBaseline:
    """TF-IDF vectors of corpus and targets (scikit-learn), scored like the codes."""

    def __init__(self, texts: Iterable[str], target_texts: Iterable[str]):
        """Fit on the corpus.

        Args:
            texts: N corpus texts.
            target_texts: T target texts.

        Raises:
            InputError: the texts hold no words.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        corpus = list(texts)
        # Words seen in one document only can't link two; dropping them halves the vocabulary.
        minimum = 2 if len(corpus) > 100 else 1
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=minimum, dtype=np.float64)
        try:
            self.corpus: Any = vectorizer.fit_transform(corpus).tocsr()
        except ValueError as error:
            raise InputError(f"TF-IDF found no words in the {len(corpus)} corpus texts ({error})") from error
        self.targets: Any = vectorizer.transform(list(target_texts)).tocsr()
        self._mean = np.asarray(self.corpus.mean(axis=0)).ravel()

    def max_cosine(self, targets: IntArray) -> FloatArray:
        """Return the best cosine over the chosen targets, float64 [N]."""
        return np.asarray((self.corpus @ self.targets[targets].T).max(axis=1).toarray()).ravel()

    def contrast(self, targets: IntArray) -> FloatArray:
        """Return ⟨mean of the chosen targets − mean of the corpus, row⟩, float64 [N]."""
        query = np.asarray(self.targets[targets].mean(axis=0)).ravel() - self._mean
        return np.asarray(self.corpus @ query)


class DenseBaseline:
    """Mean-pooled activations, scored by cosine: what one would do without an SAE."""

    def __init__(self, corpus: Any, targets: Any):
        """Prepare norms and mean.

        Args:
            corpus: [N,D] mean-pooled activations, tensor or array (a memory map is read in blocks).
            targets: [T,D].

        Raises:
            ValueError: widths differ or the arrays are not matrices.
        """
        self._corpus = np.asarray(corpus)
        self._targets = np.asarray(targets, dtype=np.float64)
        if (
            self._corpus.ndim != 2
            or self._targets.ndim != 2
            or self._corpus.shape[1] != self._targets.shape[1]
        ):
            raise ValueError(
                f"need corpus [N,D] and targets [T,D], got "
                f"{list(self._corpus.shape)} and {list(self._targets.shape)}"
            )
        total = np.zeros(self._corpus.shape[1])
        for _, block in self._blocks():
            total += block.sum(axis=0)
        self._mean = total / max(1, self._corpus.shape[0])

    def _blocks(self) -> Iterable[tuple[int, FloatArray]]:
        for start in range(0, self._corpus.shape[0], DENSE_BLOCK):
            yield start, np.asarray(self._corpus[start : start + DENSE_BLOCK], dtype=np.float64)

    def max_cosine(self, targets: IntArray) -> FloatArray:
        """Return the best cosine over the chosen targets, float64 [N]."""
        queries = _unit(self._targets[targets]).T
        return self._apply(lambda block: (_unit(block) @ queries).max(axis=1))

    def centred_mean(self, targets: IntArray) -> FloatArray:
        """Return the mean cosine to the chosen targets after subtracting the corpus mean, float64 [N]."""
        query = _unit(self._targets[targets] - self._mean).mean(axis=0)
        return self._apply(lambda block: _unit(block - self._mean) @ query)

    def _apply(self, function: Any) -> FloatArray:
        result = np.empty(self._corpus.shape[0])
        for start, block in self._blocks():
            result[start : start + block.shape[0]] = function(block)
        return result


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def z_add(*scores: FloatArray) -> FloatArray:
    """Return the sum of several scores, each brought to mean 0 and variance 1 (a constant adds 0)."""
    if not scores:
        raise ValueError("z_add needs at least one array of scores")
    total = np.zeros_like(scores[0], dtype=np.float64)
    for score in scores:
        spread = float(score.std())
        if spread > 0:
            total += (score - score.mean()) / spread
    return total

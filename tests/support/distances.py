"""Rows to search among by Euclidean distance, and the distances that are right, in float64."""

from __future__ import annotations

import numpy as np


def dense_rows(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def sparse_rows(n: int, d: int = 40, seed: int = 0) -> np.ndarray:
    """Three of ten entries, none negative."""
    random = np.random.default_rng(seed)
    return (np.abs(random.standard_normal((n, d))) * (random.random((n, d)) < 0.3)).astype(np.float32)


def squared_distances(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """[Q,N] squared distances in float64."""
    return ((queries[:, None].astype(np.float64) - corpus[None].astype(np.float64)) ** 2).sum(axis=2)


def nearest(distances: np.ndarray, k: int) -> np.ndarray:
    """Distance ascending, then row ascending."""
    return np.argsort(distances, axis=1, kind="stable")[:, :k]

"""Drop-in replacements that take what other libraries' functions take and return what they return.

    faiss.knn                                   knn
    sentence_transformers.util.semantic_search  semantic_search
    sklearn.neighbors.NearestNeighbors          NearestNeighbors

The results are exact: scores decided in float64 and rounded once, ties in the order of rows, the same for
every batch and machine. What the others leave to chance (the order of ties, NaN) is defined here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.ops import checks, cosine_topk
from finescope.search import Index
from finescope.search.euclidean import NearestRows

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INNER_PRODUCT = (METRIC_INNER_PRODUCT, "ip", "inner_product")
_L2 = (METRIC_L2, "l2", "L2")
_SIMILARITIES = {"cos_sim": "cosine", "cosine": "cosine", "dot_score": "ip", "dot": "ip"}

Array = np.ndarray[Any, Any]


def knn(xq: Any, xb: Any, k: int, metric: int | str = METRIC_L2) -> tuple[Array, Array]:
    """``faiss.knn``: the k nearest rows of ``xb`` for each row of ``xq``.

    Args:
        xq: queries [Q,D], an array or a tensor.
        xb: corpus [N,D]; unlike faiss, float16, bfloat16 and memory-mapped rows are not converted first.
        k: neighbours; more than N pads.
        metric: ``METRIC_INNER_PRODUCT`` (0, "ip") or ``METRIC_L2`` (1, "l2", squared distances).

    Returns:
        D, float32 [Q,k]: inner products, descending, or squared distances, ascending; and I, int64 [Q,k].
        -1 and the farthest float32 where there are fewer than k results; a row with a NaN is never one, and
        a query with a NaN has none.

    Raises:
        ValueError: shapes that do not fit, a negative k, another metric.
        TypeError: entries that aren't numbers.
    """
    if isinstance(metric, bool) or metric not in (*_INNER_PRODUCT, *_L2):
        raise ValueError(
            f"metric must be METRIC_INNER_PRODUCT (0 or 'ip') or METRIC_L2 (1 or 'l2'), got {metric!r}; "
            "for cosine similarity use finescope.Index"
        )
    queries, corpus = _matrix(xq, "xq"), xb if isinstance(xb, np.memmap) else _matrix(xb, "xb")
    if metric in _INNER_PRODUCT:
        scores, ids = Index(corpus, metric="ip").search(queries, k)
        padding = -np.finfo(np.float32).max
    else:
        rows = _matrix(corpus, "xb")
        scores, ids = NearestRows(rows).search(queries, k)
        padding = np.finfo(np.float32).max
    return scores.float().masked_fill_(ids < 0, float(padding)).numpy(), ids.numpy()


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: Callable[..., Any] | str = "cos_sim",
) -> list[list[dict[str, int | float]]]:
    """``sentence_transformers.util.semantic_search``: for each query, its best corpus rows.

    Args:
        query_embeddings: [Q,D] or [D], a tensor, an array, or a list of either.
        corpus_embeddings: [N,D], like the queries.
        query_chunk_size: accepted for compatibility; memory is bounded without it.
        corpus_chunk_size: the same.
        top_k: results for each query, at most N.
        score_function: "cos_sim" or "dot_score", or sentence-transformers' functions of these names. Others
            can't be searched exactly.

    Returns:
        for each query a list of {"corpus_id": int, "score": float}, best first. A row with a NaN is in none,
        and the list of a query with a NaN is empty.

    Raises:
        ValueError: another score function, shapes that do not fit.
        TypeError: entries that aren't numbers.
    """
    name = score_function if isinstance(score_function, str) else getattr(score_function, "__name__", "")
    if name not in _SIMILARITIES:
        raise ValueError(f"score_function must be cos_sim or dot_score, got {score_function!r}")
    queries, corpus = (
        _matrix(query_embeddings, "query_embeddings"),
        _matrix(corpus_embeddings, "corpus_embeddings"),
    )
    if queries.dim() == 1:
        queries = queries[None]
    checks.cosine_topk(queries, corpus, checks.Search(top_k, _SIMILARITIES[name]))
    scores, ids = cosine_topk(queries, corpus, min(top_k, len(corpus)), metric=_SIMILARITIES[name])
    return [
        [{"corpus_id": n, "score": s} for s, n in zip(*row, strict=True) if n >= 0]
        for row in zip(scores.tolist(), ids.tolist(), strict=True)
    ]


class NearestNeighbors:
    """``sklearn.neighbors.NearestNeighbors`` for brute-force search over dense rows.

    Metrics: "cosine" (1 − cosine; 1 where either row is zero), "ip" (1 − inner product), "euclidean" and
    "sqeuclidean".
    """

    _METRICS = ("cosine", "ip", "euclidean", "sqeuclidean")

    def __init__(self, n_neighbors: int = 5, *, metric: str = "cosine") -> None:
        """Choose what to look for; ``fit`` takes the rows.

        Raises:
            ValueError: another metric.
        """
        checks.option(metric, "metric", self._METRICS)
        self.n_neighbors = n_neighbors
        self.metric = metric

    def fit(self, X: Any, y: object = None) -> NearestNeighbors:
        """Hold the rows ready; those in memory are shared, not copied, for "cosine" and "ip".

        Args:
            X: [N,D], an array or a tensor.
            y: ignored.

        Raises:
            ValueError: not a matrix, no rows, NaN or infinity.
            TypeError: entries that aren't numbers.
        """
        self._rows = self._checked(X)
        if not len(self._rows):
            raise ValueError("X has no rows; a minimum of 1 is required")
        self.n_samples_fit_, self.n_features_in_ = self._rows.shape
        euclidean = self.metric in ("euclidean", "sqeuclidean")
        self._index = NearestRows(self._rows) if euclidean else Index(self._rows, metric=self.metric)
        return self

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """The nearest rows of each query.

        Args:
            X: queries [Q,D]; None for the rows themselves, none of which is its own neighbour.
            n_neighbors: how many; as given to the constructor if None.
            return_distance: whether to return distances as well.

        Returns:
            distances [Q,n_neighbors], ascending, and rows [Q,n_neighbors], int64; without distances only the
            rows. Distances are float64 for the Euclidean metrics and where any row or query is, else float32.

        Raises:
            ValueError: not fitted, other widths, more neighbours than rows, NaN or infinity.
            TypeError: a number of neighbours that isn't whole.
        """
        if not hasattr(self, "_rows"):
            raise ValueError("this NearestNeighbors isn't fitted yet: call fit first")
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise TypeError(f"n_neighbors must be a whole number, got {count!r}")
        most = self.n_samples_fit_ - (X is None)
        if not 0 < count <= most:
            raise ValueError(f"n_neighbors must be 1 … {most} for {self.n_samples_fit_} rows, got {count}")
        queries = self._rows if X is None else self._checked(X)
        if queries.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {queries.shape[1]} columns, but fit saw {self.n_features_in_}")
        exclude = torch.arange(len(queries))[:, None] if X is None else None
        found, ids = self._index.search(queries, int(count), exclude=exclude)
        if not return_distance:
            return ids.numpy()
        if self.metric == "euclidean":
            return np.sqrt(found.numpy()), ids.numpy()
        if self.metric != "sqeuclidean":
            found = 1.0 - found
            if self.metric == "cosine":
                found.clamp_(0.0, 2.0)
        return found.numpy(), ids.numpy()

    def _checked(self, X: Any) -> Tensor:
        rows = _matrix(X, "X")
        if rows.dim() != 2:
            raise ValueError(f"X must have shape [rows, columns], got {list(rows.shape)}")
        if not bool(rows.isfinite().all()):
            raise ValueError("X contains NaN or infinity")
        return rows


def _matrix(given: Any, name: str) -> Tensor:
    """Numbers of any kind as a floating tensor on the CPU, shared where possible."""
    if isinstance(given, Sequence) and len(given) and isinstance(given[0], Tensor):
        given = torch.stack(list(given))
    if isinstance(given, Tensor):
        rows = given.detach().cpu()
    else:
        array = np.asarray(given)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name} must hold numbers, got {array.dtype}")
        if not array.dtype.isnative or not array.flags.writeable or min(array.strides, default=1) <= 0:
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        rows = torch.from_numpy(array)
    if rows.dtype in _FLOATS:
        return rows
    if rows.is_complex() or rows.dtype == torch.bool:
        raise TypeError(f"{name} must hold numbers, got {rows.dtype}")
    return rows.float() if rows.itemsize <= 2 else rows.double()  # wide enough for every whole number

"""``faiss.knn``."""

from __future__ import annotations

from typing import Any

import numpy as np

from finescope.compat.rows import Array, alike, by_inner_product, rows_of
from finescope.search.euclidean import NearestRows

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1

_INNER_PRODUCT = (METRIC_INNER_PRODUCT, "ip", "inner_product")
_L2 = (METRIC_L2, "l2", "L2")


def knn(
    xq: Any, xb: Any, k: int, metric: int | str = METRIC_L2, metric_arg: float = 0.0
) -> tuple[Array, Array]:
    """``faiss.knn``: the k nearest rows of ``xb`` for each row of ``xq``.

    Args:
        xq: queries [Q,D], dense or sparse.
        xb: corpus [N,D], like the queries; unlike faiss, float16, bfloat16 and memory-mapped rows are not
            converted first.
        k: neighbours; more than N pads.
        metric: ``METRIC_INNER_PRODUCT`` (0, "ip") or ``METRIC_L2`` (1, "l2", squared distances).
        metric_arg: of other metrics of faiss; neither of these has one.

    Returns:
        D, float32 [Q,k]: inner products, descending, or squared distances, ascending; and I, int64 [Q,k].
        -1 and the farthest float32 where there are fewer than k results. A row with a NaN is never one, nor
        one with an undefined product (0 · ∞, ∞ - ∞), one of minus infinity or an infinite distance; products
        of plus infinity, of dense rows, come first. A query with a NaN has no results.

    Raises:
        ValueError: shapes that do not fit, a negative k, another metric.
        TypeError: entries that aren't numbers.
    """
    if isinstance(metric, bool) or metric not in (*_INNER_PRODUCT, *_L2):
        raise ValueError(
            f"metric must be METRIC_INNER_PRODUCT (0 or 'ip') or METRIC_L2 (1 or 'l2'), got {metric!r}; "
            "for cosine similarity use finescope.Index"
        )
    farthest = float(np.finfo(np.float32).max)
    queries = rows_of(xq, "xq")
    if metric in _L2:
        queries, corpus = alike(queries, rows_of(xb, "xb"))
        distances, ids = NearestRows(corpus).search(queries, k)
        found = distances.float()
        ids.masked_fill_(found == np.inf, -1)
        return found.masked_fill_(ids < 0, farthest).numpy(), ids.numpy()
    if isinstance(xb, np.memmap):
        found, ids = by_inner_product(queries, xb, k)
    else:
        found, ids = by_inner_product(*alike(queries, rows_of(xb, "xb")), k)
    return found.float().masked_fill_(ids < 0, -farthest).numpy(), ids.numpy()

"""k-means over document codes (scikit-learn), the same on every run and for every thread count."""

from __future__ import annotations

from typing import Any

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BoolArray,
    Codes,
    FloatArray,
    IntArray,
    iter_blocks,
    product,
    reciprocal,
    row_access,
    rows_of,
    unit_rows,
    weighted_norms,
)
from finescope.curation.lists import each_part
from finescope.curation.scoring.onepass import CorpusScorer

FIT_ROWS = 50_000
"""Rows k-means is fitted on at most; all rows are then assigned to the nearest centre."""


def kmeans_labels(
    codes: Codes,
    num_clusters: int,
    *,
    seed: int = 42,
    weights: FloatArray | None = None,
    fit_rows: int = FIT_ROWS,
) -> IntArray:
    """Cluster the rows by k-means on their unit vectors in the weighted space.

    Args:
        codes: N rows over F latents.
        num_clusters: number of clusters; no more than N are made.
        seed: of the starting centres and of the sample.
        weights: float64 [F] or None.
        fit_rows: fit on a seeded sample of this many rows when N is larger.

    Returns:
        int64 [N], the cluster of each row.

    Raises:
        ValueError: num_clusters < 1 or no rows.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    source = row_access(codes)
    n = rows_of(codes)
    if n == 0:
        raise ValueError("k-means needs at least one row")
    sample = np.arange(n)
    if n > fit_rows:
        sample = np.sort(np.random.default_rng(seed).choice(n, fit_rows, replace=False))
    fitted = unit_rows(source.take(sample), weights)
    centres = _fit_centres(fitted, num_clusters, seed)
    labels = np.empty(n, np.int64)
    # argmin ‖x − c‖² = argmax ⟨x, c⟩ − ‖c‖²/2; assigning all rows here keeps labels independent of the sample
    # path.
    bias = np.square(centres).sum(axis=1) / 2
    columns = np.ascontiguousarray(centres.T)
    if weights is not None:
        columns *= weights[:, None]
    for start, block in iter_blocks(codes):
        cosines = product(block, columns) * reciprocal(weighted_norms(block, weights))[:, None]
        labels[start : start + len(block)] = (cosines - bias).argmax(axis=1)
    return labels


def _fit_centres(matrix: Any, num_clusters: int, seed: int) -> FloatArray:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # Fewer distinct rows than clusters makes scikit-learn warn and return empty clusters.
    count = max(1, _distinct_rows(matrix, num_clusters))
    # One thread: scikit-learn adds partial sums per thread, so their number would reach the last bits.
    with threadpool_limits(limits=1):
        model = KMeans(n_clusters=count, n_init=4, random_state=seed).fit(matrix)
    return np.asarray(model.cluster_centers_, dtype=np.float64)


def _distinct_rows(matrix: Any, limit: int) -> int:
    """Number of distinct rows, counted no further than ``limit``."""
    seen: set[tuple[bytes, bytes]] = set()
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        seen.add((matrix.indices[part].tobytes(), matrix.data[part].tobytes()))
        if len(seen) >= limit:
            break
    return len(seen)


def cluster_candidates(
    scorer: CorpusScorer,
    targets: SparseCodes,
    labels: IntArray,
    per_cluster: int,
    *,
    clusters_per_target: int = 2,
    mask: BoolArray | None = None,
) -> IntArray:
    """Return the supplement's cluster variant: the best rows inside each target's best clusters.

    For each target a cluster's score is the mean cosine of the target to the cluster's rows; in each of the
    ``clusters_per_target`` best clusters (the lower number of equals) the ``per_cluster`` rows nearest to
    that target are candidates. The union over targets is returned.

    Args:
        scorer: the prepared corpus.
        targets: T rows.
        labels: int64 [N] from ``kmeans_labels``.
        per_cluster: rows per target and cluster.
        clusters_per_target: clusters each target looks into.
        mask: bool [N]; only rows that are True become candidates (means are taken over all rows).

    Returns:
        int64, ascending row numbers.
    """
    count = int(labels.max()) + 1
    means = scorer.mean_cosines(targets, labels, count)
    chosen = np.zeros((len(targets), count), np.bool_)
    order = np.argsort(-means, axis=1, kind="stable")[:, :clusters_per_target]
    np.put_along_axis(chosen, order, True, axis=1)
    allowed = labels if mask is None else np.where(mask, labels, -1)
    found = np.zeros(len(labels), np.bool_)
    for part in each_part(scorer.targets(targets).usable, per_cluster * count):
        ids, _ = scorer.nearest_in_groups(targets[part], per_cluster, allowed, chosen[part])
        found[ids[ids >= 0]] = True
    return np.flatnonzero(found)

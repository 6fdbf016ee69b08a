"""Dense search, packed once or not, against torch, faiss, usearch, NumKong, ScaNN and scikit-learn.

ScaNN is given partitions where the rows are real: Gaussian ones have none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import data, grid, harness, peers, truth
from finescope import Index
from finescope.ops import PackedMatrix, cosine_topk

# What usearch writes down for every pair.
_USEARCH_BYTES = 16
_COPIES = 4 << 30


def torch_search(queries: Tensor, corpus: Tensor, k: int) -> Any:
    """Blocked matmul + topk on unit rows, as one would write it by hand."""
    if len(queries) * len(corpus) <= 1 << 26:
        return torch.topk(queries @ corpus.T, k)
    parts = [torch.topk(queries @ block.T, k) for block in corpus.split(peers.BLOCK)]
    values = torch.cat([part.values for part in parts], dim=1)
    ids = torch.cat([part.indices + first * peers.BLOCK for first, part in enumerate(parts)], dim=1)
    best = torch.topk(values, k)
    return best.values, ids.gather(1, best.indices)


def exact(queries: Tensor, corpus: Tensor, k: int) -> dict[str, harness.Work]:
    """What of the field's exact searches is installed; each holds its index ready."""
    found: dict[str, harness.Work] = {"torch float32": lambda: torch_search(queries, corpus, k)}
    left, right = queries.numpy(), corpus.numpy()
    small = corpus.numel() * corpus.itemsize <= _COPIES
    with peers.installed("faiss-cpu"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        if small:
            index = faiss.IndexFlatIP(corpus.shape[1])
            index.add(right)
            found["faiss IndexFlatIP"] = lambda: index.search(left, k)
        else:  # without a copy of the corpus
            ip = faiss.METRIC_INNER_PRODUCT
            found["faiss knn"] = lambda: faiss.knn(left, right, k, metric=ip)
    if len(queries) <= 64:
        with peers.installed("usearch"):
            from usearch.index import MetricKind, search

            if len(queries) * len(corpus) * _USEARCH_BYTES <= _COPIES:
                found["usearch exact"] = lambda: search(
                    right, left, k, MetricKind.IP, exact=True, threads=torch.get_num_threads()
                )
        if small:
            from sklearn.neighbors import NearestNeighbors

            nearest = NearestNeighbors(metric="cosine", algorithm="brute").fit(right)
            found["scikit-learn"] = lambda: nearest.kneighbors(left, k)
    return found


def approximate(kind: str, queries: Tensor, corpus: Tensor, k: int) -> dict[str, peers.Peer]:
    """Searches that may miss something."""
    if corpus.numel() * corpus.itemsize > _COPIES:
        return {}
    half, half_queries = corpus.bfloat16(), queries.bfloat16()
    found: dict[str, peers.Peer] = {"torch bfloat16": lambda: torch_search(half_queries, half, k)[1]}
    with peers.installed("numkong"):
        found["NumKong bfloat16"] = peers.numkong(queries, corpus, k)
    with peers.installed("scann-core"):
        found["ScaNN int8"] = peers.scann(queries, corpus, k)
        if kind == "real":
            found["ScaNN tree"] = peers.scann_tree(queries, corpus, k)
    return found


@pytest.mark.parametrize(
    ("kind", "size"), grid.cases(grid.SEARCH, grid.SEARCH_BIG, grid.SEARCH_KINDS, "QNDk")
)
def bench_cosine_topk(benchmark: Any, kind: str, size: tuple[int, int, int, int]) -> None:
    q, n, d, k = size
    rows = data.rows(kind, q + n, d, seed=2)
    queries, corpus = normalize(rows[:q]), normalize(rows[q:])
    del rows
    index = Index(corpus)
    index.pack()
    some = queries[:16]
    truth.check_topk(*index.search(some, k), truth.cosines(some, corpus))
    packed = PackedMatrix(corpus).packed
    near = approximate(kind, queries, corpus, k)
    ids = index.search(queries, k)[1]
    harness.compare(
        benchmark,
        lambda: index.search(queries, k),
        {
            "ours, packing included": lambda: cosine_topk(queries, corpus, k),
            **exact(queries, corpus, k),
            **near,
        },
        limit=harness.Limit(q * n * d, d, packed),
        recall={name: truth.recall(peer(), ids) for name, peer in near.items()},
    )

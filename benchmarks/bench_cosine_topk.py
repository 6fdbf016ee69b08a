"""Dense search against torch, faiss, scikit-learn and usearch: packed once, and packing included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import data, harness
from finescope import Index
from finescope.ops import cosine_topk

# Q, N, D, k
SIZES = [(64, 200_000, 384, 100), (1024, 200_000, 384, 100), (1, 200_000, 384, 100), (64, 100_000, 768, 10)]


def torch_search(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> Any:
    """Blocked matmul + topk on unit rows, as one would write it by hand."""
    if len(queries) * len(corpus) <= 1 << 26:
        return torch.topk(queries @ corpus.T, k)
    parts = [torch.topk(queries @ block.T, k) for block in corpus.split(1 << 16)]
    return torch.topk(torch.cat([part.values for part in parts], dim=1), k)


def peers(queries: torch.Tensor, corpus: torch.Tensor, k: int) -> dict[str, Callable[[], object]]:
    """What of the field's libraries is installed; each holds its index ready."""
    found: dict[str, Callable[[], object]] = {"torch float32": lambda: torch_search(queries, corpus, k)}
    left, right = queries.numpy(), corpus.numpy()
    try:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(corpus.shape[1])
        index.add(right)
        found["faiss IndexFlatIP"] = lambda: index.search(left, k)
    except ImportError:
        pass
    if len(queries) <= 64:
        try:
            from usearch.index import MetricKind, search

            found["usearch exact"] = lambda: search(
                right, left, k, MetricKind.IP, exact=True, threads=torch.get_num_threads()
            )
        except ImportError:
            pass
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(metric="cosine", algorithm="brute").fit(right)
        found["scikit-learn"] = lambda: nearest.kneighbors(left, k)
    return found


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "Q{}-N{}-D{}-k{}".format(*size))
def bench_cosine_topk(benchmark: Any, size: tuple[int, int, int, int]) -> None:
    q, n, d, k = size
    queries = torch.nn.functional.normalize(data.rows("gaussian", q, d, seed=2))
    corpus = torch.nn.functional.normalize(data.rows("gaussian", n, d, seed=3))
    index = Index(corpus)
    for _ in range(3):  # the packed copy is made on a later search
        scores, ids = index.search(queries[:16], k)
    exact = queries[:16].double() @ corpus.double().T
    exact /= queries[:16].double().norm(dim=1, keepdim=True) * corpus.double().norm(dim=1)
    np.testing.assert_allclose(scores, torch.topk(exact, k).values, rtol=2**-23)
    assert torch.equal(scores.double(), exact.gather(1, ids).float().double())
    harness.compare(
        benchmark,
        lambda: index.search(queries, k),
        {"ours, packing included": lambda: cosine_topk(queries, corpus, k), **peers(queries, corpus, k)},
        5 if q > 64 else 9,
    )

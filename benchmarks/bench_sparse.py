"""Sparse codes: search and pooling against scipy, sparse_dot_topn, torch, splade-index, bm25s and Seismic.

The searches are timed with the corpus as each library keeps it ready: ours packed by ``Index``, the others'
normalised and, for sparse_dot_topn, transposed. "once" is ours with nothing prepared. "limit" is a copy in
memory of as many bytes as the lists hold that the queries have to read at least once.

splade-index and bm25s are met where they are at home: the shape of splade-index's example, 100,000 documents
of SPLADE-v3, and inner products. bm25s has no weights of a query's words, so there a query's values are 1.
Seismic, which is approximate, takes minutes to build its index (``--all``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse import csr_matrix

from benchmarks import data, harness, peers, truth
from finescope import Index, SparseCodes
from finescope.ops import pool_codes, sparse_cosine_topk

NNZ, F, TOP = 96, 16384, 100
# Q, N
SIZES = [(1, 1_000_000), (64, 1_000_000), (1024, 1_000_000), (1, 300_000), (64, 300_000)]
# Rows, entries of a row and of a query, latents, k
SPLADE_N, SPLADE_M, SPLADE_TERMS, SPLADE_F, SPLADE_TOP = 100_000, 128, 32, 30522, 10
SEISMIC_N = 20_000


@functools.lru_cache(maxsize=1)
def rows(n: int, nnz: int = NNZ, f: int = F) -> SparseCodes:
    """The corpus; the last one is kept."""
    return data.codes(n, nnz, f)


def unit(codes: SparseCodes) -> csr_matrix:
    """Codes as rows of length 1."""
    matrix = codes.to_scipy().astype(np.float32)
    matrix.data /= np.repeat(codes.norms().numpy(), np.diff(matrix.indptr)).astype(np.float32)
    return matrix


def ready(corpus: SparseCodes, queries: SparseCodes, k: int, metric: str = "cosine") -> Index:
    """An index that has been searched as often as it takes to pack."""
    index = Index(corpus, metric=metric)
    for _ in range(2):
        index.search(queries[:8], k)
    return index


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"Q{size[0]}-N{size[1]}-M{NNZ}-F{F}-k{TOP}")
def bench_sparse_cosine_topk(benchmark: Any, size: tuple[int, int]) -> None:
    q, n = size
    corpus, queries = rows(n), data.codes(q, NNZ, F, seed=1)
    right, left = unit(corpus), unit(queries)

    index = ready(corpus, queries, TOP)
    wide = queries[:8].to_dense().double().numpy()
    exact = (corpus.to_scipy().astype(np.float64) @ wide.T).T
    exact /= np.outer(np.linalg.norm(wide, axis=1), corpus.norms().numpy())
    truth.check_topk(*index.search(queries[:8], TOP), torch.from_numpy(exact))
    truth.same_results(index.search(queries, TOP), sparse_cosine_topk(queries, corpus, TOP))

    def by_scipy() -> None:
        dense = left.toarray()
        for first in range(0, q, 64):
            product = right @ dense[first : first + 64].T
            best = np.argpartition(-product, TOP, axis=0)[:TOP]
            np.take_along_axis(product, best, axis=0)

    csr = SparseCodes.from_scipy(right).to_torch_sparse()

    def by_torch() -> None:
        dense = torch.from_numpy(left.toarray())
        for block in dense.split(64):
            torch.topk(csr @ block.T, TOP, dim=0)

    rivals: dict[str, Callable[[], object]] = {"scipy": by_scipy, "torch.sparse": by_torch}
    rivals["once"] = lambda: sparse_cosine_topk(queries, corpus, TOP)
    rivals["limit"] = limit(queries, corpus)
    with peers.installed("sparse-dot-topn"):
        rivals["sparse_dot_topn"] = peers.sparse_dot_topn(left, right, TOP)
    harness.compare(benchmark, lambda: index.search(queries, TOP), rivals, 1 if q > 64 else 5)


def limit(queries: SparseCodes, corpus: SparseCodes) -> Callable[[], object]:
    """A copy that moves the bytes of the lists of all latents that any query holds, four to an entry."""
    rows = np.bincount(corpus.indices.numpy(), minlength=F)
    held = np.unique(queries.indices.numpy())
    source = torch.ones(int(rows[held].sum()) // 2)  # read and written: half the bytes each
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "unweighted"])
@pytest.mark.parametrize("q", [1, 64])
def bench_sparse_inner_topk(benchmark: Any, q: int, weighted: bool) -> None:
    corpus, queries = rows(SPLADE_N, SPLADE_M, SPLADE_F), data.codes(q, SPLADE_TERMS, SPLADE_F, seed=1)
    if not weighted:
        ones = torch.ones_like(queries.values)
        queries = SparseCodes(queries.indptr, queries.indices, ones, queries.num_latents)
    right, left = (codes.to_scipy().astype(np.float32) for codes in (corpus, queries))
    index = ready(corpus, queries, SPLADE_TOP, "ip")
    scores, ids = index.search(queries, SPLADE_TOP)
    exact = torch.from_numpy((right.astype(np.float64) @ left.astype(np.float64).T).toarray().T)
    truth.check_topk(scores, ids, exact)
    found: dict[str, peers.Peer] = {}
    if weighted:
        with peers.installed("splade-index", "pip install --no-deps splade-index, and numba"):
            found["splade-index"] = peers.splade_index(left, right, SPLADE_TOP)
    else:
        with peers.installed("bm25s"):
            found["bm25s"] = peers.bm25s(left, right, SPLADE_TOP)
    for name, peer in found.items():  # float32 sums of theirs may swap the last of them
        assert truth.recall(peer(), ids) > 0.99, name
    rivals: dict[str, peers.Peer] = {**found}
    rivals["once"] = lambda: sparse_cosine_topk(queries, corpus, SPLADE_TOP, metric="ip")
    with peers.installed("sparse-dot-topn"):
        rivals["sparse_dot_topn"] = peers.sparse_dot_topn(left, right, SPLADE_TOP)
    harness.compare(benchmark, lambda: index.search(queries, SPLADE_TOP), rivals)


@pytest.mark.big
@pytest.mark.parametrize("q", [1, 64], ids=lambda q: f"Q{q}-N{SEISMIC_N}-M{NNZ}-F{F}-k{TOP}")
def bench_sparse_seismic(benchmark: Any, q: int) -> None:
    corpus, queries = rows(SEISMIC_N), data.codes(q, NNZ, F, seed=1)
    index = ready(corpus, queries, TOP)
    ids = index.search(queries, TOP)[1]
    found: dict[str, peers.Peer] = {}
    with peers.installed("pyseismic-lsr"):
        found = peers.seismic(unit(queries), unit(corpus), TOP)
    recall = {name: truth.recall(peer(), ids) for name, peer in found.items()}
    harness.compare(benchmark, lambda: index.search(queries, TOP), found, recall=recall)


def bench_pool_codes(benchmark: Any) -> None:
    documents, tokens, k = 200, 128, 32
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, F, (documents * tokens, k), generator=generator)
    values = torch.rand(documents * tokens, k, generator=generator)
    offsets = torch.arange(0, documents * tokens + 1, tokens)

    def by_scipy() -> tuple[np.ndarray, np.ndarray]:
        rows = scipy.sparse.csr_matrix(
            (values.numpy().reshape(-1), indices.numpy().reshape(-1), np.arange(0, values.numel() + 1, k)),
            shape=(documents * tokens, F),
        )
        ones = scipy.sparse.csr_matrix(
            (
                np.full(documents * tokens, 1 / tokens, np.float32),
                np.arange(documents * tokens),
                offsets.numpy(),
            ),
            shape=(documents, documents * tokens),
        )
        pooled = (ones @ rows).tocsr()
        pooled.sort_indices()
        kept_values = np.zeros((documents, 100), np.float32)
        kept = np.full((documents, 100), -1)
        for row in range(documents):
            low, high = pooled.indptr[row], pooled.indptr[row + 1]
            best = np.sort(np.argpartition(-pooled.data[low:high], 100)[:100]) + low
            kept_values[row], kept[row] = pooled.data[best], pooled.indices[best]
        return kept_values, kept

    ours_values, ours_latents = pool_codes(values, indices, offsets, reduce="mean", keep=100)
    theirs_values, theirs_latents = by_scipy()
    np.testing.assert_allclose(np.sort(ours_values), np.sort(theirs_values), rtol=1e-5)
    assert (ours_latents.numpy() == theirs_latents).mean() > 0.99  # float32 sums may swap the last of them
    harness.compare(
        benchmark,
        lambda: pool_codes(values, indices, offsets, reduce="mean", keep=100),
        {"scipy.sparse": by_scipy},
        9,
    )

"""Sparse codes: search and pooling against scipy, sparse_dot_topn and torch.

The searches are timed with the corpus as each library keeps it ready: ours packed by ``Index``, the others'
normalised and, for sparse_dot_topn, transposed. "once" is ours with nothing prepared. "limit" is a copy in
memory of as many bytes as the lists hold that the queries have to read at least once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from benchmarks import data, harness, truth
from finescope import Index, SparseCodes
from finescope.ops import pool_codes, sparse_cosine_topk

N, NNZ, F, TOP = 1_000_000, 96, 16384, 100


@pytest.fixture(scope="module")
def corpus() -> SparseCodes:
    return data.codes(N, NNZ, F)


@pytest.mark.parametrize("q", [1, 64, 1024], ids=lambda q: f"Q{q}-N{N}-M{NNZ}-F{F}-k{TOP}")
def bench_sparse_cosine_topk(benchmark: Any, corpus: SparseCodes, q: int) -> None:
    queries = data.codes(q, NNZ, F, seed=1)
    unit = corpus.to_scipy()
    unit.data /= np.repeat(corpus.norms().numpy(), NNZ).astype(np.float32)
    left = queries.to_scipy()
    left.data /= np.repeat(queries.norms().numpy(), NNZ).astype(np.float32)

    index = Index(corpus)
    for _ in range(2):  # the second search packs
        index.search(queries[:8], TOP)
    wide = queries[:8].to_dense().double().numpy()
    exact = (corpus.to_scipy().astype(np.float64) @ wide.T).T
    exact /= np.outer(np.linalg.norm(wide, axis=1), corpus.norms().numpy())
    truth.check_topk(*index.search(queries[:8], TOP), torch.from_numpy(exact))
    truth.same_results(index.search(queries, TOP), sparse_cosine_topk(queries, corpus, TOP))

    def by_scipy() -> None:
        dense = left.toarray()
        for first in range(0, q, 64):
            product = unit @ dense[first : first + 64].T
            best = np.argpartition(-product, TOP, axis=0)[:TOP]
            np.take_along_axis(product, best, axis=0)

    csr = SparseCodes.from_scipy(unit).to_torch_sparse()

    def by_torch() -> None:
        dense = torch.from_numpy(left.toarray())
        for block in dense.split(64):
            torch.topk(csr @ block.T, TOP, dim=0)

    rivals: dict[str, Callable[[], object]] = {"scipy": by_scipy, "torch.sparse": by_torch}
    rivals["once"] = lambda: sparse_cosine_topk(queries, corpus, TOP)
    rivals["limit"] = limit(queries, corpus)
    try:
        from sparse_dot_topn import sp_matmul_topn

        transposed = unit.T.tocsr()
        rivals["sparse_dot_topn"] = lambda: sp_matmul_topn(
            left, transposed, TOP, n_threads=torch.get_num_threads(), sort=True
        )
    except ImportError:
        pass
    harness.compare(benchmark, lambda: index.search(queries, TOP), rivals, 1 if q > 64 else 5)


def limit(queries: SparseCodes, corpus: SparseCodes) -> Callable[[], object]:
    """A copy that moves the bytes of the lists of all latents that any query holds, four to an entry."""
    rows = np.bincount(corpus.indices.numpy(), minlength=F)
    held = np.unique(queries.indices.numpy())
    source = torch.ones(int(rows[held].sum()) // 2)  # read and written: half the bytes each
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


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

"""``knn`` takes what faiss' takes, returns what it returns, and is exact."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from finescope import Index
from finescope.compat import METRIC_INNER_PRODUCT, METRIC_L2, knn
from support.distances import dense_rows, nearest, sparse_rows, squared_distances

LARGEST = np.finfo(np.float32).max


@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("metric", [METRIC_L2, METRIC_INNER_PRODUCT])
def test_knn_is_faiss_knn(metric: int, k: int) -> None:
    faiss = pytest.importorskip("faiss")
    assert (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2) == (METRIC_INNER_PRODUCT, METRIC_L2)
    queries, corpus = dense_rows(9), dense_rows(120, seed=1)
    corpus[40], queries[3] = 0.0, 0.0
    corpus[50, 7] = queries[5, 2] = np.nan
    ours, theirs = knn(queries, corpus, k, metric), faiss.knn(queries, corpus, k, metric=metric)
    for left, right in zip(ours, theirs, strict=True):
        assert type(left) is type(right)
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-4)
    assert (ours[1] == theirs[1])[:3].all(), "no ties: the same rows"
    assert ((ours[1] < 0) == (theirs[1] < 0)).all()
    assert not (ours[1] == 50).any()
    assert (ours[1][5] == -1).all()


def test_knn_defaults_to_squared_distances_like_faiss() -> None:
    queries, corpus = dense_rows(4), dense_rows(200, seed=1)
    exact = squared_distances(queries, corpus)
    distances, ids = knn(queries, corpus, 7)
    assert np.array_equal(ids, nearest(exact, 7))
    np.testing.assert_array_equal(distances, np.take_along_axis(exact, ids, 1).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "int8", "int64", ">f4"])
def test_knn_takes_rows_as_they_are(dtype: str) -> None:
    values = np.round(dense_rows(300, seed=1) * 8)
    queries: Any = values[:5]
    corpus: Any = torch.from_numpy(values).bfloat16() if dtype == "bfloat16" else values.astype(dtype)
    for metric in (METRIC_L2, METRIC_INNER_PRODUCT):
        got, wanted = knn(queries, corpus, 6, metric), knn(queries, values, 6, metric)
        assert np.array_equal(got[0], wanted[0])
        assert np.array_equal(got[1], wanted[1])
    read_only = values[::-1]
    read_only.flags.writeable = False
    assert np.array_equal(knn(queries, read_only, 6)[0], knn(queries, values, 6)[0])


def test_knn_inner_product_is_the_index() -> None:
    queries, corpus = dense_rows(5), dense_rows(4000, seed=1)
    scores, ids = Index(torch.from_numpy(corpus), metric="ip").search(queries, 20)
    for metric in (METRIC_INNER_PRODUCT, "ip", "inner_product"):
        got = knn(queries, corpus, 20, metric)
        assert np.array_equal(got[0], scores.numpy())
        assert np.array_equal(got[1], ids.numpy())


def test_knn_complaints() -> None:
    queries, corpus = dense_rows(3), dense_rows(10)
    for metric in ("cosine", 2, True, None):
        with pytest.raises(ValueError, match=r"metric must be METRIC_INNER_PRODUCT .* finescope\.Index"):
            knn(queries, corpus, 2, metric)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="corpus must have shape"):
        knn(queries, corpus[:, 1:], 2)
    with pytest.raises(ValueError, match="k must be"):
        knn(queries, corpus, -1)
    with pytest.raises(TypeError, match="xb must hold numbers"):
        knn(queries, corpus.astype(str), 2)
    assert knn(queries, corpus[:0], 2)[1].tolist() == [[-1, -1]] * 3
    assert knn(queries[:0], corpus, 2)[0].shape == (0, 2)
    assert knn(queries, corpus, 0)[0].shape == (3, 0)


def test_knn_agrees_with_usearch() -> None:
    pytest.importorskip("usearch")
    from usearch.index import MetricKind, search

    queries, corpus = dense_rows(6), dense_rows(500, seed=1)
    theirs = search(corpus, queries, 9, MetricKind.IP, exact=True)
    scores, ids = knn(queries, corpus, 9, METRIC_INNER_PRODUCT)
    assert np.array_equal(ids, theirs.keys)
    np.testing.assert_allclose(1 - scores, theirs.distances, atol=1e-4)


def test_the_signature_is_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    theirs, ours = inspect.signature(faiss.knn).parameters, inspect.signature(knn).parameters
    assert [(name, each.default) for name, each in ours.items()] == [
        (name, each.default) for name, each in theirs.items()
    ]
    queries, corpus = dense_rows(3), dense_rows(20, seed=1)
    for metric in (METRIC_L2, METRIC_INNER_PRODUCT):
        ours_found = knn(queries, corpus, 4, metric=metric, metric_arg=3)
        assert np.array_equal(ours_found[1], faiss.knn(queries, corpus, 4, metric=metric, metric_arg=3)[1])


INFINITE = np.array(
    [
        [np.inf, 0],
        [1, 0],
        [-np.inf, 0],
        [np.inf, 1],
        [np.nan, 0],
        [2, 0],
        [0, np.inf],
        [3e38, 3e38],
        [-3e38, -3e38],
    ],
    np.float32,
)
ASKED = np.array(
    [[0.5, 0], [0.5, 1], [-1, 0], [0, 0], [2, 2], [np.inf, 1], [-np.inf, 1], [np.nan, 1], [np.inf, np.inf]],
    np.float32,
)


def _products(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """[Q,N] as IEEE 754 has them; NaN where they are undefined."""
    with np.errstate(all="ignore"):
        terms = queries[:, None].astype(np.float64) * corpus[None].astype(np.float64)
        return terms.sum(axis=2).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 9, 12])
def test_infinite_products_come_first_and_undefined_ones_never(k: int) -> None:
    with np.errstate(over="ignore"):
        half = INFINITE.astype(np.float16)
    for corpus in (INFINITE, half):
        wanted = _products(ASKED, corpus)
        scores, ids = knn(torch.from_numpy(ASKED), corpus, k, METRIC_INNER_PRODUCT)
        for row, (values, found) in enumerate(zip(scores, ids, strict=True)):
            real = [n for n in range(9) if wanted[row, n] > -np.inf]
            best = sorted(real, key=lambda n, row=row: (-wanted[row, n], n))[:k]
            assert found.tolist() == best + [-1] * (k - len(best))
            assert values.tolist() == [wanted[row, n] for n in best] + [-LARGEST] * (k - len(best))


def test_infinite_products_are_faiss(tmp_path: Any) -> None:
    faiss = pytest.importorskip("faiss")
    for k in (2, 9):
        theirs, ours = (search(ASKED, INFINITE, k, METRIC_INNER_PRODUCT) for search in (faiss.knn, knn))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
        for mine, wanted in zip(ours[1], theirs[1], strict=True):
            assert set(mine.tolist()) == set(wanted.tolist()), "faiss has the later of equal rows first"
        theirs, ours = (search(ASKED, INFINITE, k, METRIC_L2) for search in (faiss.knn, knn))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
        assert np.array_equal(ours[1], theirs[1])
    mapped = np.memmap(tmp_path / "rows", np.float32, "w+", shape=INFINITE.shape)
    mapped[:] = INFINITE
    for ours, wanted in zip(knn(ASKED, mapped, 5, 0), knn(ASKED, INFINITE, 5, 0), strict=True):
        assert np.array_equal(ours, wanted)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("metric", [METRIC_L2, METRIC_INNER_PRODUCT])
def test_sparse_rows_are_found_as_dense_ones(metric: int) -> None:
    queries, corpus = sparse_rows(7), sparse_rows(200, seed=1)
    dense = knn(queries, corpus, 9, metric)
    coo = torch.from_numpy(corpus).to_sparse_coo()
    for asked, rows in (
        (sp.csr_matrix(queries), sp.csr_matrix(corpus)),
        (queries, sp.csc_array(corpus)),
        (torch.from_numpy(queries).to_sparse_csr(), corpus),
        (
            queries,
            torch.sparse_coo_tensor(
                coo.indices().flip(1), coo.values().flip(0), coo.shape, check_invariants=True
            ),
        ),
    ):
        scores, ids = knn(asked, rows, 9, metric)
        assert np.array_equal(ids, dense[1])
        np.testing.assert_allclose(scores, dense[0], rtol=1e-6)

"""The drop-in functions take what their models take, return what they return, and are exact.

Each is held against the library it stands in for, where that is installed, and against float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from finescope import Index
from finescope.compat import METRIC_INNER_PRODUCT, METRIC_L2, NearestNeighbors, knn, semantic_search
from finescope.search.euclidean import NearestRows

LARGEST = np.finfo(np.float32).max


def _rows(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def _distances(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """[Q,N] squared distances in float64."""
    return ((queries[:, None].astype(np.float64) - corpus[None].astype(np.float64)) ** 2).sum(axis=2)


def _nearest(distances: np.ndarray, k: int) -> np.ndarray:
    """Distance ascending, then row ascending."""
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


# ------------------------------------------------------------------ faiss


@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("metric", [METRIC_L2, METRIC_INNER_PRODUCT])
def test_knn_is_faiss_knn(metric: int, k: int) -> None:
    faiss = pytest.importorskip("faiss")
    assert (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2) == (METRIC_INNER_PRODUCT, METRIC_L2)
    queries, corpus = _rows(9), _rows(120, seed=1)
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
    queries, corpus = _rows(4), _rows(200, seed=1)
    exact = _distances(queries, corpus)
    distances, ids = knn(queries, corpus, 7)
    assert np.array_equal(ids, _nearest(exact, 7))
    np.testing.assert_array_equal(distances, np.take_along_axis(exact, ids, 1).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "int8", "int64", ">f4"])
def test_knn_takes_rows_as_they_are(dtype: str) -> None:
    values = np.round(_rows(300, seed=1) * 8)
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
    queries, corpus = _rows(5), _rows(4000, seed=1)
    scores, ids = Index(torch.from_numpy(corpus), metric="ip").search(queries, 20)
    for metric in (METRIC_INNER_PRODUCT, "ip", "inner_product"):
        got = knn(queries, corpus, 20, metric)
        assert np.array_equal(got[0], scores.numpy())
        assert np.array_equal(got[1], ids.numpy())


def test_knn_complaints() -> None:
    queries, corpus = _rows(3), _rows(10)
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

    queries, corpus = _rows(6), _rows(500, seed=1)
    theirs = search(corpus, queries, 9, MetricKind.IP, exact=True)
    scores, ids = knn(queries, corpus, 9, METRIC_INNER_PRODUCT)
    assert np.array_equal(ids, theirs.keys)
    np.testing.assert_allclose(1 - scores, theirs.distances, atol=1e-4)


# ------------------------------------------------------------------ Euclidean distance


@pytest.mark.parametrize(
    "kind", ["gaussian", "duplicates", "equal", "shifted", "near", "tiny", "huge", "unit", "outliers"]
)
def test_distances_are_exact(kind: str) -> None:
    """Data for which ‖q‖² − 2⟨q,c⟩ + ‖c‖² is worthless in float32, and often in float64."""
    corpus, queries = _rows(600, 16, 1), _rows(7, 16)
    if kind == "duplicates":
        corpus = corpus[np.random.default_rng(0).integers(0, 20, 600)]
    elif kind == "equal":
        corpus[:] = corpus[0]
    elif kind == "shifted":
        corpus, queries = corpus + np.float32(1e4), queries + np.float32(1e4)
    elif kind == "near":
        corpus = corpus[:1] + corpus * np.float32(2**-20)
        queries = corpus[:7].copy()
    elif kind in ("tiny", "huge"):
        factor = np.float32(1e-30 if kind == "tiny" else 1e18)
        corpus, queries = corpus * factor, queries * factor
    elif kind == "unit":
        corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    elif kind == "outliers":
        corpus[:, 3] *= 1000
    exact = _distances(queries, corpus)
    for k in (1, 12, 600, 700):
        squares, ids = NearestRows(torch.from_numpy(corpus)).search(torch.from_numpy(queries), k)
        wanted = np.take_along_axis(exact, _nearest(exact, k), 1)
        np.testing.assert_allclose(squares[:, :600].numpy(), wanted, rtol=2**-23)
        found = ids[:, :600].numpy()
        np.testing.assert_allclose(np.take_along_axis(exact, found, 1), wanted, rtol=1e-13)
        assert all(len(set(row)) == len(row) for row in found.tolist())
        if kind in ("duplicates", "equal"):
            assert np.array_equal(found, _nearest(exact, k)), "equal distances: the lowest rows"
        assert (ids[:, 600:] == -1).all()
        assert squares[:, 600:].isinf().all()


def test_distances_do_not_depend_on_the_batch() -> None:
    corpus, queries = torch.from_numpy(_rows(3000, 40, 1)), torch.from_numpy(_rows(50, 40))
    nearest = NearestRows(corpus)
    squares, ids = nearest.search(queries, 9)
    for row in range(0, 50, 7):
        some, where = nearest.search(queries[row : row + 1], 20)
        assert torch.equal(some[:, :9], squares[row : row + 1])
        assert torch.equal(where[:, :9], ids[row : row + 1])
    _, others = nearest.search(queries, 8, exclude=ids[:, :1])
    assert torch.equal(others, ids[:, 1:])


# ------------------------------------------------------------------ sentence-transformers


def _documented(queries: torch.Tensor, corpus: torch.Tensor, k: int, *, cosine: bool) -> list[Any]:
    """What the documentation of semantic_search says, in float64."""
    q, c = queries.double(), corpus.double()
    if cosine:
        q, c = torch.nn.functional.normalize(q, dim=1), torch.nn.functional.normalize(c, dim=1)
    scores, ids = torch.topk(q @ c.T, min(k, len(c)))
    return [
        [{"corpus_id": n, "score": s} for s, n in zip(*row, strict=True)]
        for row in zip(scores.tolist(), ids.tolist(), strict=True)
    ]


def cos_sim(a: object, b: object) -> None:
    """Stands for sentence_transformers.util.cos_sim, which is known by its name."""


def dot_score(a: object, b: object) -> None:
    """Stands for sentence_transformers.util.dot_score."""


@pytest.mark.parametrize("k", [1, 10, 500])
@pytest.mark.parametrize("function", [cos_sim, dot_score, "cos_sim", "dot_score"])
def test_semantic_search(function: Any, k: int) -> None:
    queries, corpus = torch.from_numpy(_rows(6)), torch.from_numpy(_rows(300, seed=1))
    name = function if isinstance(function, str) else function.__name__
    wanted = _documented(queries, corpus, k, cosine=name == "cos_sim")
    for given in (queries, queries.numpy(), list(queries)):
        got = semantic_search(given, corpus, 2, 7, top_k=k, score_function=function)
        assert [[hit["corpus_id"] for hit in hits] for hits in got] == [
            [hit["corpus_id"] for hit in hits] for hits in wanted
        ]
        for mine, theirs in zip(got, wanted, strict=True):
            assert all(type(hit["corpus_id"]) is int and type(hit["score"]) is float for hit in mine)
            np.testing.assert_allclose([h["score"] for h in mine], [h["score"] for h in theirs], rtol=1e-6)


def test_semantic_search_is_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util")
    queries, corpus = torch.from_numpy(_rows(6)), torch.from_numpy(_rows(300, seed=1))
    for function in (util.cos_sim, util.dot_score):
        ours = semantic_search(queries, corpus, top_k=10, score_function=function)
        theirs = util.semantic_search(queries, corpus, top_k=10, score_function=function)
        assert [[h["corpus_id"] for h in hits] for hits in ours] == [
            [h["corpus_id"] for h in hits] for hits in theirs
        ]


def test_semantic_search_edges() -> None:
    queries, corpus = torch.from_numpy(_rows(3)), torch.from_numpy(_rows(10, seed=1))
    assert [len(hits) for hits in semantic_search(queries, corpus)] == [10] * 3
    assert len(semantic_search(queries[0], corpus, top_k=4)) == 1
    assert semantic_search(queries, corpus[:0]) == [[], [], []]
    assert semantic_search(queries[:0], corpus) == []
    corpus[2], queries[1, 0], corpus[3] = torch.nan, torch.nan, 0.0
    hits = semantic_search(queries, corpus)
    assert [len(row) for row in hits] == [9, 0, 9]
    assert {hit["corpus_id"] for hit in hits[0]} == set(range(10)) - {2}
    assert next(hit["score"] for hit in hits[0] if hit["corpus_id"] == 3) == 0.0
    with pytest.raises(ValueError, match="score_function must be cos_sim or dot_score, got <function"):
        semantic_search(queries, corpus, score_function=lambda a, b: a @ b.T)
    with pytest.raises(ValueError, match="k must be"):
        semantic_search(queries, corpus, top_k=-1)


# ------------------------------------------------------------------ scikit-learn


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean"])
def test_nearest_neighbors_are_scikit_learns(metric: str, dtype: Any) -> None:
    from sklearn.neighbors import NearestNeighbors as Theirs

    corpus, queries = _rows(300, seed=1).astype(dtype), _rows(8).astype(dtype)
    theirs = Theirs(n_neighbors=6, metric=metric, algorithm="brute").fit(corpus)
    ours = NearestNeighbors(n_neighbors=6, metric=metric).fit(corpus, None)
    for args in ((queries,), (queries, 300), (None,), (None, 299), (queries, 1)):
        mine, wanted = ours.kneighbors(*args), theirs.kneighbors(*args)
        for left, right in zip(mine, wanted, strict=True):
            assert type(left) is type(right)
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(mine[0], wanted[0], rtol=1e-4, atol=2e-6)
        assert np.array_equal(mine[1], wanted[1]), "no ties: the same rows"
        assert np.array_equal(ours.kneighbors(*args, return_distance=False), mine[1])
    assert not (ours.kneighbors()[1] == np.arange(300)[:, None]).any()
    assert (ours.n_samples_fit_, ours.n_features_in_) == (theirs.n_samples_fit_, theirs.n_features_in_)


def test_nearest_neighbors_refuse_what_scikit_learn_refuses() -> None:
    from sklearn.neighbors import NearestNeighbors as Theirs

    rows, bad = _rows(12), _rows(12)
    bad[4, 4] = np.nan
    for make in (Theirs, NearestNeighbors):
        fitted = make(metric="cosine").fit(rows)
        for call in (
            lambda m=make: m(metric="cosine").fit(bad),
            lambda m=make: m(metric="cosine").fit(rows[:0]),
            lambda m=make: m(metric="cosine").fit(rows[0]),
            lambda m=make: m(metric="cosine").kneighbors(rows),
            lambda f=fitted: f.kneighbors(bad),
            lambda f=fitted: f.kneighbors(rows, 13),
            lambda f=fitted: f.kneighbors(None, 12),
            lambda f=fitted: f.kneighbors(rows, 0),
            lambda f=fitted: f.kneighbors(rows[:, 1:]),
            lambda f=fitted: f.kneighbors(rows[0]),
        ):
            with pytest.raises(ValueError):
                call()
        with pytest.raises(TypeError):
            fitted.kneighbors(rows, 2.5)
    with pytest.raises(ValueError, match="metric must be one of 'cosine', 'ip', 'euclidean', 'sqeuclidean'"):
        NearestNeighbors(metric="manhattan")


def test_zero_rows_and_ties() -> None:
    from sklearn.neighbors import NearestNeighbors as Theirs

    corpus = np.repeat(_rows(5), 4, axis=0)
    corpus[8] = 0.0
    queries = np.vstack([corpus[:1], np.zeros((1, 32), np.float32)])
    mine = NearestNeighbors().fit(corpus).kneighbors(queries, 20)
    theirs = Theirs(metric="cosine").fit(corpus).kneighbors(queries, 20)
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
    assert mine[1][0, :4].tolist() == [0, 1, 2, 3], "ties in the order of rows"
    assert mine[1][1].tolist() == list(range(20)), "all are equally far from a zero row"
    assert (mine[0][1] == 1.0).all()


def test_inner_product_distance_is_usearchs() -> None:
    pytest.importorskip("usearch")
    from usearch.index import MetricKind, search

    queries, corpus = _rows(6), _rows(500, seed=1)
    theirs = search(corpus, queries, 9, MetricKind.IP, exact=True)
    distances, ids = NearestNeighbors(9, metric="ip").fit(corpus).kneighbors(queries)
    assert np.array_equal(ids, theirs.keys)
    np.testing.assert_allclose(distances, theirs.distances, atol=1e-4)

"""``NearestNeighbors`` is scikit-learn's, searched exactly: parameters, graphs, radii, sparse rows."""

from __future__ import annotations

import inspect
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors as Theirs
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from finescope import SparseCodes
from finescope.compat import NearestNeighbors
from support.distances import dense_rows, sparse_rows

# Checks of scikit-learn's that do not apply, with the reason. There are none.
NOT_APPLYING: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        NearestNeighbors(),
        NearestNeighbors(metric="cosine", n_neighbors=2),
        NearestNeighbors(metric="ip"),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    name = check.func.__name__
    if name in NOT_APPLYING:
        pytest.skip(NOT_APPLYING[name])
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "minkowski", "sqeuclidean"])
def test_nearest_neighbors_are_scikit_learns(metric: str, dtype: Any) -> None:
    corpus, queries = dense_rows(300, seed=1).astype(dtype), dense_rows(8).astype(dtype)
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
    rows, bad = dense_rows(12), dense_rows(12)
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


def test_zero_rows_and_ties() -> None:
    corpus = np.repeat(dense_rows(5), 4, axis=0)
    corpus[8] = 0.0
    queries = np.vstack([corpus[:1], np.zeros((1, 32), np.float32)])
    mine = NearestNeighbors(metric="cosine").fit(corpus).kneighbors(queries, 20)
    theirs = Theirs(metric="cosine").fit(corpus).kneighbors(queries, 20)
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
    assert mine[1][0, :4].tolist() == [0, 1, 2, 3], "ties in the order of rows"
    assert mine[1][1].tolist() == list(range(20)), "all are equally far from a zero row"
    assert (mine[0][1] == 1.0).all()


def test_inner_product_distance_is_usearchs() -> None:
    pytest.importorskip("usearch")
    from usearch.index import MetricKind, search

    queries, corpus = dense_rows(6), dense_rows(500, seed=1)
    theirs = search(corpus, queries, 9, MetricKind.IP, exact=True)
    distances, ids = NearestNeighbors(9, metric="ip").fit(corpus).kneighbors(queries)
    assert np.array_equal(ids, theirs.keys)
    np.testing.assert_allclose(distances, theirs.distances, atol=1e-4)


def test_parameters_and_defaults_are_scikit_learns() -> None:
    theirs, ours = Theirs().get_params(), NearestNeighbors().get_params()
    assert ours == theirs
    assert list(inspect.signature(NearestNeighbors).parameters) == list(inspect.signature(Theirs).parameters)
    for name in ("fit", "kneighbors", "radius_neighbors", "kneighbors_graph", "radius_neighbors_graph"):
        ours_has, theirs_has = (inspect.signature(getattr(kind, name)) for kind in (NearestNeighbors, Theirs))
        assert list(ours_has.parameters) == list(theirs_has.parameters)
    made = NearestNeighbors(3, metric="cosine").set_params(radius=0.5, n_jobs=-1)
    again = clone(made)
    assert again.get_params() == made.get_params()
    assert isinstance(again, Theirs)


@pytest.mark.parametrize(
    "options",
    [{"algorithm": name} for name in ("auto", "ball_tree", "kd_tree", "brute")]
    + [{"n_jobs": -1}, {"leaf_size": 2}, {"p": 2.0}, {"metric_params": {}}, {"metric": "l2", "p": 3}],
)
def test_what_cannot_change_a_result_is_taken(options: dict[str, Any]) -> None:
    rows = dense_rows(50, 4)
    wanted = NearestNeighbors().fit(rows).kneighbors(rows)
    found = NearestNeighbors(**options).fit(rows).kneighbors(rows)
    assert all(np.array_equal(left, right) for left, right in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "manhattan"}, "metric must be one of 'minkowski'"),
        ({"metric": "precomputed"}, "metric must be one of"),
        ({"p": 1}, "p=2 and without weights"),
        ({"metric_params": {"w": [1, 2]}}, "without weights"),
        ({"metric": "cosine", "metric_params": {"w": 1}}, "takes no metric_params"),
        ({"algorithm": "faster"}, "algorithm"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"leaf_size": 0}, "leaf_size"),
        ({"radius": -1.0}, "radius"),
    ],
)
def test_what_would_change_a_result_is_refused_at_fit(options: dict[str, Any], words: str) -> None:
    made = NearestNeighbors(**options)
    with pytest.raises(ValueError, match=words):
        made.fit(dense_rows(9, 2))


def test_not_fitted() -> None:
    for call in ("kneighbors", "radius_neighbors", "kneighbors_graph"):
        with pytest.raises(NotFittedError):
            getattr(NearestNeighbors(), call)(dense_rows(3))


# ------------------------------------------------------------------ sparse rows


@pytest.mark.parametrize("metric", ["minkowski", "euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_sparse_rows_are_found_as_dense_ones(metric: str, dtype: Any) -> None:
    corpus, queries = (np.round(sparse_rows(n, seed=n) * 8).astype(dtype) for n in (150, 9))
    dense = NearestNeighbors(n_neighbors=7, metric=metric).fit(corpus)
    wanted = dense.kneighbors(queries), dense.kneighbors(), dense.radius_neighbors(queries, 6.0)
    kinds: list[Any] = [sp.csr_matrix, sp.csc_array, sp.coo_matrix, np.asarray]
    for make in kinds:
        fitted = NearestNeighbors(n_neighbors=7, metric=metric).fit(make(corpus))
        for ask in kinds:
            found = (
                fitted.kneighbors(ask(queries)),
                fitted.kneighbors(),
                fitted.radius_neighbors(ask(queries), 6.0),
            )
            for ours, theirs in zip(found[:2], wanted[:2], strict=True):
                np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
                assert np.array_equal(ours[1], theirs[1])
            for ours, theirs in zip(found[2][1], wanted[2][1], strict=True):
                assert np.array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_tensors_and_codes_are_taken() -> None:
    rows = sparse_rows(60)
    tensor = torch.from_numpy(rows)
    wanted = NearestNeighbors().fit(rows).kneighbors(rows[:4])
    for given in (tensor, tensor.to_sparse_coo(), tensor.to_sparse_csr(), SparseCodes.from_dense(tensor)):
        found = NearestNeighbors().fit(given).kneighbors(given[:4] if given is tensor else tensor[:4])
        assert np.array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-9)
    half = tensor.bfloat16()
    assert np.array_equal(
        NearestNeighbors().fit(half).kneighbors(half)[1],
        NearestNeighbors().fit(half.float().numpy()).kneighbors(half.float().numpy())[1],
    )


def test_words_in_a_pipeline() -> None:
    texts = [
        f"{a} {b} {c}" for a in ("red", "green", "blue") for b in ("cat", "dog") for c in ("runs", "sleeps")
    ]
    pipe = make_pipeline(TfidfVectorizer(), NearestNeighbors(n_neighbors=3, metric="cosine")).fit(texts)
    rows = pipe[:-1].transform(texts)
    ours = pipe[-1].kneighbors(rows)
    theirs = Theirs(n_neighbors=3, metric="cosine").fit(rows).kneighbors(rows)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-12)
    assert ours[1][:, 0].tolist() == list(range(len(texts)))
    assert clone(pipe).set_params(nearestneighbors__n_neighbors=2).fit(texts)[-1].n_neighbors == 2


# ------------------------------------------------------------------ radii and graphs


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "ip"])
@pytest.mark.parametrize("sparse", [False, True])
def test_all_rows_within_a_radius(metric: str, sparse: bool) -> None:
    corpus, queries = sparse_rows(400, 12, 1), sparse_rows(8, 12)
    corpus[200:260] = corpus[0]  # more of them than are looked for at first
    c, q = corpus.astype(np.float64), queries.astype(np.float64)
    exact = 1 - q @ c.T
    if metric == "cosine":
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(c, axis=1)
        exact = 1 - np.divide(q @ c.T, norms, out=np.zeros_like(exact), where=norms > 0)
    elif metric != "ip":
        exact = ((q[:, None] - c[None]) ** 2).sum(axis=2)
        exact = np.sqrt(exact) if metric == "euclidean" else exact
    values = np.unique(exact)
    wide = len(values) // 2 + np.argmax(np.diff(values)[len(values) // 2 :][:100])
    radius = float(values[wide : wide + 2].mean())
    make = sp.csr_matrix if sparse else np.asarray
    fitted = NearestNeighbors(metric=metric, radius=radius).fit(make(corpus))
    distances, ids = fitted.radius_neighbors(make(queries))
    for row in range(8):
        assert np.array_equal(ids[row], np.flatnonzero(exact[row] <= radius)), "the radius is in a gap"
        np.testing.assert_allclose(distances[row], exact[row, ids[row]], rtol=1e-5, atol=1e-6)
        assert (distances[row] <= radius).all()
    ordered, places = fitted.radius_neighbors(make(queries), sort_results=True)
    for row in range(8):
        assert np.array_equal(np.sort(places[row]), ids[row])
        assert (np.diff(ordered[row]) >= 0).all()
    graph = fitted.radius_neighbors_graph(make(queries), mode="distance", sort_results=True)
    assert graph.shape == (8, 400)
    assert graph.nnz == sum(map(len, ids))
    assert [len(found) for found in fitted.radius_neighbors(make(queries), -1e9, return_distance=False)] == [
        0
    ] * 8


def test_radii_are_scikit_learns() -> None:
    corpus, queries = dense_rows(200, 3), dense_rows(9, 3, 1)
    theirs, ours = (kind(radius=0.9).fit(corpus) for kind in (Theirs, NearestNeighbors))
    for asked in (queries, None):
        for left, right in zip(ours.radius_neighbors(asked), theirs.radius_neighbors(asked), strict=True):
            assert (type(left), left.dtype, left.shape) == (type(right), right.dtype, right.shape)
            for mine, wanted in zip(left, right, strict=True):
                assert mine.dtype == wanted.dtype
                np.testing.assert_allclose(np.sort(mine), np.sort(wanted), rtol=1e-6)
    assert all(row not in found for row, found in enumerate(ours.radius_neighbors(return_distance=False)))
    with pytest.raises(ValueError, match="return_distance must be True"):
        ours.radius_neighbors(queries, return_distance=False, sort_results=True)


def test_a_row_at_the_radius_is_within() -> None:
    fitted = NearestNeighbors(radius=0.3).fit([[0.1], [0.4], [0.7], [1.0]])
    (found,) = fitted.radius_neighbors([[0.4]], return_distance=False)
    assert (
        found.tolist() == [row for row, x in enumerate((0.1, 0.4, 0.7, 1.0)) if abs(x - 0.4) <= 0.3] == [1, 2]
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_far_from_the_origin_keep_their_distances(sparse: bool) -> None:
    """Times in seconds: ‖q‖² - 2⟨q,c⟩ + ‖c‖² loses all of them."""
    seconds = np.array([0, 5, 10, 600, 605, 610, 1200, 1800, 1805])
    rows: Any = (1_700_000_000 + seconds)[:, None]
    fitted = NearestNeighbors(n_neighbors=3, radius=10).fit(sp.csr_matrix(rows) if sparse else rows)
    away = abs(seconds[:, None] - seconds)
    distances, ids = fitted.kneighbors(rows)
    assert np.array_equal(ids, np.argsort(away, axis=1, kind="stable")[:, :3])
    assert np.array_equal(distances, np.take_along_axis(away, ids, 1))
    for row, found in enumerate(fitted.radius_neighbors(rows, return_distance=False)):
        assert np.array_equal(found, np.flatnonzero(away[row] <= 10))


@pytest.mark.parametrize("mode", ["connectivity", "distance"])
@pytest.mark.parametrize("sparse", [False, True])
def test_graphs_are_scikit_learns(mode: str, sparse: bool) -> None:
    make = sp.csr_matrix if sparse else np.asarray
    corpus, queries = make(sparse_rows(60)), make(sparse_rows(7, seed=1))
    theirs, ours = (kind(n_neighbors=4, algorithm="brute").fit(corpus) for kind in (Theirs, NearestNeighbors))
    for asked in (queries, None):
        left, right = (fitted.kneighbors_graph(asked, mode=mode) for fitted in (ours, theirs))
        assert type(left) is type(right)
        np.testing.assert_allclose(left.toarray(), right.toarray(), rtol=1e-4, atol=1e-5)
        left, right = (fitted.radius_neighbors_graph(asked, 2.0, mode=mode) for fitted in (ours, theirs))
        np.testing.assert_allclose(left.toarray(), right.toarray(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_fitted_one_is_copied_whole(sparse: bool) -> None:
    rows: Any = sparse_rows(80)
    rows = sp.csr_matrix(rows) if sparse else rows
    for metric in ("euclidean", "cosine"):
        fitted = NearestNeighbors(metric=metric).fit(rows)
        wanted = fitted.kneighbors(rows)
        again = pickle.loads(pickle.dumps(fitted))
        for left, right in zip(again.kneighbors(rows), wanted, strict=True):
            assert np.array_equal(left, right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "NearestNeighbors" in repr(fitted)

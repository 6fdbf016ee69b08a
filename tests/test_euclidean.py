"""The nearest rows by Euclidean distance are those of float64, whatever the data, dense or sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.search.euclidean import NearestRows
from support.distances import dense_rows, nearest, sparse_rows, squared_distances


@pytest.mark.parametrize(
    "kind", ["gaussian", "duplicates", "equal", "shifted", "near", "tiny", "huge", "unit", "outliers"]
)
def test_distances_are_exact(kind: str) -> None:
    """Data for which ‖q‖² − 2⟨q,c⟩ + ‖c‖² is worthless in float32, and often in float64."""
    corpus, queries = dense_rows(600, 16, 1), dense_rows(7, 16)
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
    exact = squared_distances(queries, corpus)
    for k in (1, 12, 600, 700):
        squares, ids = NearestRows(torch.from_numpy(corpus)).search(torch.from_numpy(queries), k)
        wanted = np.take_along_axis(exact, nearest(exact, k), 1)
        np.testing.assert_allclose(squares[:, :600].numpy(), wanted, rtol=2**-23)
        found = ids[:, :600].numpy()
        np.testing.assert_allclose(np.take_along_axis(exact, found, 1), wanted, rtol=1e-13)
        assert all(len(set(row)) == len(row) for row in found.tolist())
        if kind in ("duplicates", "equal"):
            assert np.array_equal(found, nearest(exact, k)), "equal distances: the lowest rows"
        assert (ids[:, 600:] == -1).all()
        assert squares[:, 600:].isinf().all()


def test_distances_do_not_depend_on_the_batch() -> None:
    corpus, queries = torch.from_numpy(dense_rows(3000, 40, 1)), torch.from_numpy(dense_rows(50, 40))
    nearest = NearestRows(corpus)
    squares, ids = nearest.search(queries, 9)
    for row in range(0, 50, 7):
        some, where = nearest.search(queries[row : row + 1], 20)
        assert torch.equal(some[:, :9], squares[row : row + 1])
        assert torch.equal(where[:, :9], ids[row : row + 1])
    _, others = nearest.search(queries, 8, exclude=ids[:, :1])
    assert torch.equal(others, ids[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["words", "duplicates", "equal", "empty", "tiny", "huge", "signed", "wide"])
def test_distances_of_sparse_rows_are_exact(kind: str, dtype: torch.dtype) -> None:
    corpus, queries = sparse_rows(300, 40, 1), sparse_rows(9, 40)
    if kind == "duplicates":
        corpus = corpus[np.random.default_rng(0).integers(0, 20, 300)]
        queries[:4] = corpus[:4]
    elif kind == "equal":
        corpus[:] = corpus[0]
    elif kind == "empty":
        corpus[::3], queries[2] = 0, 0
    elif kind in ("tiny", "huge") and dtype not in (torch.float16,):
        factor = np.float32(1e-30 if kind == "tiny" else 1e18)
        corpus, queries = corpus * factor, queries * factor
    elif kind == "signed":
        corpus *= np.random.default_rng(3).choice([-1, 1], corpus.shape).astype(np.float32)
    elif kind == "wide":
        corpus, queries = (np.pad(each, ((0, 0), (100_000, 0))) for each in (corpus, queries))
    rows, asked = (SparseCodes.from_dense(torch.from_numpy(each).to(dtype)) for each in (corpus, queries))
    exact = squared_distances(*(each.to_dense().double().numpy()[:, -40:] for each in (asked, rows)))
    for k in (1, 12, 300, 310):
        squares, ids = NearestRows(rows).search(asked, k)
        wanted = np.take_along_axis(exact, nearest(exact, k), 1)
        np.testing.assert_allclose(squares[:, :300].numpy(), wanted, rtol=1e-13)
        found = ids[:, :300].numpy()
        np.testing.assert_allclose(np.take_along_axis(exact, found, 1), wanted, rtol=1e-13)
        assert all(len(set(row)) == len(row) for row in found.tolist())
        if kind in ("duplicates", "equal"):
            assert np.array_equal(found, nearest(exact, k)), "equal distances: the lowest rows"
        assert (ids[:, 300:] == -1).all()


def test_sparse_distances_do_not_depend_on_the_batch() -> None:
    corpus, queries = (SparseCodes.from_dense(torch.from_numpy(sparse_rows(n, 60, n))) for n in (2000, 40))
    nearest = NearestRows(corpus)
    squares, ids = nearest.search(queries, 9)
    for row in range(0, 40, 7):
        some, where = nearest.search(queries[row], 20)
        assert torch.equal(some[:, :9], squares[row : row + 1])
        assert torch.equal(where[:, :9], ids[row : row + 1])
    _, others = nearest.search(queries, 8, exclude=ids[:, :1])
    assert torch.equal(others, ids[:, 1:])


def test_rows_that_hold_no_distance_are_never_found() -> None:
    dense = torch.from_numpy(sparse_rows(20))
    dense[3, 1], dense[5, 2], dense[7, 0] = torch.nan, torch.inf, -torch.inf
    asked = torch.from_numpy(sparse_rows(3, seed=1))
    asked[1, 4] = torch.nan
    for rows, queries in ((dense, asked), (SparseCodes.from_dense(dense), SparseCodes.from_dense(asked))):
        squares, ids = NearestRows(rows).search(queries, 20)
        for row in (0, 2):
            assert set(ids[row].tolist()) == set(range(20)) - {3, 5, 7} | {-1}
        assert (ids[1] == -1).all()
        assert squares[ids < 0].isinf().all()


def test_operands_that_do_not_fit() -> None:
    rows = torch.rand(5, 4)
    codes = SparseCodes.from_dense(rows)
    with pytest.raises(TypeError, match="both be dense rows or both be sparse"):
        NearestRows(rows).search(codes, 1)
    with pytest.raises(ValueError, match="queries have 3 columns, but the corpus has 4"):
        NearestRows(codes).search(SparseCodes.from_dense(rows[:, :3]), 1)
    with pytest.raises(ValueError, match="k must be"):
        NearestRows(codes).search(codes, -1)

"""``semantic_search`` and the miners take what sentence-transformers' take, and return it exactly."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from finescope import Index, SparseCodes, compat
from finescope.compat import (
    community_detection,
    paraphrase_mining,
    paraphrase_mining_embeddings,
    semantic_search,
)


def _rows(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def _sparse_rows(n: int, d: int = 40, seed: int = 0) -> np.ndarray:
    """Three of ten entries, none negative."""
    random = np.random.default_rng(seed)
    return (np.abs(random.standard_normal((n, d))) * (random.random((n, d)) < 0.3)).astype(np.float32)


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
    with pytest.raises(
        ValueError, match="score_function must be cos_sim, dot_score or euclidean_sim, got <f"
    ):
        semantic_search(queries, corpus, score_function=lambda a, b: a @ b.T)
    with pytest.raises(ValueError, match="k must be"):
        semantic_search(queries, corpus, top_k=-1)


def _encoded(rows: np.ndarray) -> torch.Tensor:
    """As SparseEncoder.encode returns it: COO, not marked as coalesced, entries in any order."""
    dense = torch.from_numpy(rows)
    places = dense.nonzero()
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))].T
    values = dense[places[0], places[1]]
    return torch.sparse_coo_tensor(places, values, dense.shape, check_invariants=True)


@pytest.mark.parametrize("function", ["cos_sim", "dot_score", "euclidean_sim"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_embeddings_are_searched_as_dense_ones(function: str) -> None:
    queries, corpus = _sparse_rows(6), _sparse_rows(90, seed=1)
    corpus[4] = 0.0
    q, c = queries.astype(np.float64), corpus.astype(np.float64)
    wanted = q @ c.T
    if function == "cos_sim":
        wanted /= np.linalg.norm(q, axis=1)[:, None] * np.maximum(np.linalg.norm(c, axis=1), 1e-300)
    elif function == "euclidean_sim":
        wanted = -np.sqrt(((q[:, None] - c[None]) ** 2).sum(axis=2))
    best = np.argsort(-wanted, axis=1, kind="stable")[:, :8]
    asked, rows = _encoded(queries), _encoded(corpus)
    for first, second in (
        (asked, rows),
        (queries, rows),
        (asked, corpus),
        (torch.from_numpy(queries).to_sparse_csr(), sp.csr_matrix(corpus)),
        (list(asked), list(rows)),
        (SparseCodes.from_torch_sparse(asked), rows.coalesce()),
        (asked.double(), rows.double()),
    ):
        hits = semantic_search(first, second, top_k=8, score_function=function)
        assert [[hit["corpus_id"] for hit in row] for row in hits] == best.tolist()
        for row, scores in zip(hits, np.take_along_axis(wanted, best, 1), strict=True):
            np.testing.assert_allclose([hit["score"] for hit in row], scores, rtol=1e-6, atol=1e-12)
    assert len(semantic_search(asked[0], rows, top_k=2, score_function=function)) == 1
    half = semantic_search(asked.bfloat16(), rows.bfloat16(), top_k=8, score_function=function)
    dense = torch.from_numpy(queries).bfloat16(), torch.from_numpy(corpus).bfloat16()
    whole = semantic_search(*dense, top_k=8, score_function=function)
    assert [[hit["corpus_id"] for hit in row] for row in half] == [
        [hit["corpus_id"] for hit in row] for row in whole
    ]


def _one_by_one(rows: np.ndarray) -> list[torch.Tensor]:
    """As ``encode(convert_to_tensor=False)`` returns them."""
    return [row.coalesce() for row in _encoded(rows)]


def test_an_index_takes_sparse_embeddings() -> None:
    queries, corpus = _sparse_rows(6), _sparse_rows(90, seed=1)
    codes = [SparseCodes.from_dense(torch.from_numpy(rows)) for rows in (queries, corpus)]
    for metric in ("cosine", "ip"):
        wanted = Index(codes[1], metric=metric).search(codes[0], 7)
        for make in (_encoded, sp.csr_matrix, sp.coo_array, _one_by_one):
            index = Index(make(corpus[:50]), metric=metric)
            index.add(make(corpus[50:]))
            found = index.search(make(queries), 7)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
    dense = list(torch.from_numpy(corpus))
    assert torch.equal(
        Index(dense).search(dense[:3], 2)[1], Index(torch.stack(dense)).search(dense[:3], 2)[1]
    )
    counts = sp.csr_matrix(np.array([[2**53, 1], [2**53, 0]], np.int64))
    assert Index(counts, metric="ip").search(sp.csr_matrix([[0, 1]]), 1)[1].item() == 0
    with pytest.raises(TypeError, match="queries must be SparseCodes"):
        Index(codes[1]).search(torch.from_numpy(queries), 1)


def test_infinite_dot_products_come_first() -> None:
    corpus = np.array([[1, 1], [np.inf, 1], [2, 0]], np.float32)
    (hits,) = semantic_search(np.array([1, 0], np.float32), corpus, score_function="dot_score")
    assert hits == [
        {"corpus_id": 1, "score": np.inf},
        {"corpus_id": 2, "score": 2.0},
        {"corpus_id": 0, "score": 1.0},
    ]


# ------------------------------------------------------------------ pairs


def _pairs(scores: np.ndarray, top_k: int, most: int) -> list[list[float]]:
    """Pairs of which one is among the best of the other, by score, then by rows."""
    n, found = len(scores), set()
    for row in range(n):
        others = sorted((-scores[row, other], other) for other in range(n) if other != row)
        found |= {(min(row, other), max(row, other)) for _, other in others[:top_k]}
    ordered = sorted(found, key=lambda pair: (-scores[pair], pair))[:most]
    return [[scores[pair], *pair] for pair in ordered]


@pytest.mark.parametrize(("top_k", "most"), [(1, 1000), (3, 40), (100, 500_000), (5, 0), (0, 9)])
def test_pairs_are_the_best_of_either_row(top_k: int, most: int) -> None:
    rows = np.round(_rows(60, 4) * 2) / 2  # ties, and equal rows
    rows[7] = rows[3]
    wide = rows.astype(np.float64)
    found = paraphrase_mining_embeddings(rows, max_pairs=most, top_k=top_k, score_function="dot_score")
    assert found == _pairs(wide @ wide.T, top_k, most)
    assert all(type(score) is float and type(i) is int and type(j) is int for score, i, j in found)


def test_pairs_are_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util")
    rows = torch.from_numpy(_rows(80, 8))
    sparse = _encoded(_sparse_rows(50))
    for function in (util.cos_sim, util.dot_score, util.euclidean_sim):
        for options in ({}, {"top_k": 4, "max_pairs": 60}):
            theirs = util.paraphrase_mining_embeddings(rows, 7, 13, score_function=function, **options)
            ours = paraphrase_mining_embeddings(rows, 7, 13, score_function=function, **options)
            np.testing.assert_allclose([p[0] for p in ours], [p[0] for p in theirs], rtol=1e-4, atol=1e-5)
            assert {tuple(pair[1:]) for pair in ours} == {tuple(pair[1:]) for pair in theirs}
        dense = paraphrase_mining_embeddings(sparse.to_dense(), top_k=5, score_function=function)
        same = paraphrase_mining_embeddings(sparse, top_k=5, score_function=function)
        assert [pair[1:] for pair in same] == [pair[1:] for pair in dense]


def test_texts_are_handed_to_the_model() -> None:
    class Model:
        def encode(self, sentences: list[str], **options: Any) -> torch.Tensor:
            self.options = options
            return torch.tensor([[float(len(text)), 1.0] for text in sentences])

    model = Model()
    found = paraphrase_mining(
        model, ["a", "bb", "cc", "dddddd"], batch_size=3, prompt="p", top_k=1, max_pairs=1
    )
    assert [pair[1:] for pair in found] == [[1, 2]]
    assert model.options == {
        "show_progress_bar": False,
        "batch_size": 3,
        "convert_to_tensor": True,
        "prompt": "p",
    }


# ------------------------------------------------------------------ communities


def test_communities_are_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util")
    random = np.random.default_rng(0)
    centres = random.standard_normal((5, 6))
    for trial in range(12):
        rows = (centres[random.integers(0, 5, 70)] + 0.3 * random.standard_normal((70, 6))).astype(np.float32)
        options = {
            "threshold": float(random.uniform(0.5, 1)),
            "min_community_size": int(random.integers(1, 9)),
        }
        theirs = util.community_detection(torch.from_numpy(rows), batch_size=13, **options)
        assert community_detection(rows, **options) == theirs, trial


def test_communities_by_hand() -> None:
    near = [
        [1.0, 0.0],
        [0.96, 0.28],
        [0.8, 0.6],
        [0.6, 0.8],
        [0.28, 0.96],
        [0.0, 1.0],
        [0.0, 0.0],
        [-1.0, 0.0],
    ]
    # Within .79: 0 has 1 2, 1 has 0 2 3, 2 has 3 1 0 4, 3 has 2 4 1 5, 4 has 5 3 2, 5 has 4 3; 7 has itself.
    # The first of the two largest takes all but 5 and 7; the row of zeros is near to nothing, not to itself.
    for rows in (np.array(near), np.array(near, np.float32), _encoded(np.array(near, np.float32))):
        (group,) = community_detection(rows, 0.79, 2)
        assert (group[:3], set(group[3:])) == ([2, 3, 1], {0, 4}), "0 and 4 are as near but for rounding"
        assert community_detection(rows, 0.79, 1) == [group, [5], [7]]
        assert community_detection(rows, 0.95, 2) == [[0, 1], [2, 3], [4, 5]]
        assert community_detection(rows, 0.95, 3) == []


def test_communities_at_the_edges() -> None:
    rows = _rows(5, 3)
    assert community_detection(rows, 0.5, 6) == []
    assert community_detection(rows[:0], 0.5, 1) == []
    assert community_detection([], 0.5) == []
    assert sorted(map(sorted, community_detection(rows, 1.5, 1))) == []
    assert community_detection(np.ones((40, 2), np.float32), 0.9) == [list(range(40))]
    with pytest.raises(ValueError, match="min_community_size must be at least 1"):
        community_detection(rows, 0.5, 0)
    with pytest.raises(ValueError, match="threshold must be a number"):
        community_detection(rows, float("nan"))


def test_signatures_are_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util")
    for name in (
        "semantic_search",
        "paraphrase_mining",
        "paraphrase_mining_embeddings",
        "community_detection",
    ):
        theirs = inspect.signature(getattr(util, name)).parameters
        ours = inspect.signature(getattr(compat, name)).parameters
        assert list(ours) == list(theirs)
        for parameter, each in ours.items():
            if parameter != "score_function":
                assert each.default == theirs[parameter].default

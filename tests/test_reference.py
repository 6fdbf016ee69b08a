"""What the operations return is defined: the oracle's bytes, whatever screened the candidates.

Parity between two backends cannot see a mistake that both share, so every implementation is held against slow
NumPy that follows the written definition, and that definition against exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from support import oracle
from support.backends import implementations
from support.equivalence import assert_same_bytes, assert_topk_equivalent
from support.rows import DTYPES, KINDS, csr, rows

Op = Callable[..., Any]
# ------------------------------------------------------------------ topk_encode


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_encode(op: Op, kind: str, dtype: torch.dtype) -> None:
    x, weight = rows(kind, 9, 37, dtype, 1), rows(kind, 300, 37, dtype, 2)
    bias = rows("gaussian", 1, 300, dtype, 3)[0]
    for b in (bias, None):
        assert_same_bytes(op(x, weight, b, 12), oracle.encode(x, weight, b, 12), kind)


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize(
    ("tokens", "width", "latents", "k"), [(1, 1, 1, 1), (3, 16, 64, 64), (2, 5, 40, 39), (5, 130, 257, 8)]
)
def test_encode_shapes(op: Op, tokens: int, width: int, latents: int, k: int) -> None:
    x, weight, bias = torch.randn(tokens, width), torch.randn(latents, width), torch.randn(latents)
    assert_same_bytes(op(x, weight, bias, k), oracle.encode(x, weight, bias, k))


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_encode_mixed_dtypes(op: Op) -> None:
    x, weight, bias = torch.randn(6, 33).bfloat16(), torch.randn(90, 33).half(), torch.randn(90)
    assert_same_bytes(op(x, weight, bias, 7), oracle.encode(x, weight, bias, 7))
    assert_same_bytes(op(x, weight.double(), bias, 7), oracle.encode(x, weight.double(), bias, 7))
    assert_same_bytes(op(x, weight, bias.double(), 7), oracle.encode(x, weight, bias.double(), 7))


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_encode_with_few_positives(op: Op) -> None:
    """Below k positives the lowest free latents fill the row with zeros, whichever they are."""
    x, weight = torch.randn(8, 20), torch.randn(200, 20)
    for shift in (-4.0, -8.0, -14.0, -1e6):
        bias = torch.randn(200) + shift
        got = op(x, weight, bias, 30)
        assert_same_bytes(got, oracle.encode(x, weight, bias, 30), f"shift {shift}")
    assert (got[0] == 0).all()
    assert (got[1] == torch.arange(30)).all()


@pytest.mark.parametrize("op", implementations("topk_encode"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_encode_property(op: Op, data: st.DataObject) -> None:
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    other = data.draw(st.sampled_from(KINDS))
    tokens, width, latents = (data.draw(st.integers(0, n)) for n in (5, 40, 120))
    k = data.draw(st.integers(0, latents))
    seed = data.draw(st.integers(0, 2**20))
    x, weight = rows(kind, tokens, width, dtype, seed), rows(other, latents, width, dtype, seed + 1)
    bias = data.draw(st.sampled_from([None, rows(kind, 1, latents, torch.float32, seed + 2)[0]]))
    assert_same_bytes(op(x, weight, bias, k), oracle.encode(x, weight, bias, k))


# ------------------------------------------------------------------ cosine_topk


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_search(op: Op, kind: str, dtype: torch.dtype, metric: str) -> None:
    queries, corpus = rows(kind, 5, 37, dtype, 4), rows(kind, 400, 37, dtype, 5)
    truth = oracle.dense_scores(queries, corpus, metric)
    wanted = oracle.search(truth, 15, oracle.result_dtype(queries))
    assert_same_bytes(op(queries, corpus, 15, metric), wanted, kind)


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_search_property(op: Op, data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(["cosine", "ip"]))
    dtypes = data.draw(st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)))
    kinds = data.draw(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
    count, width, size = (data.draw(st.integers(0, n)) for n in (4, 40, 120))
    k, seed = data.draw(st.integers(0, 130)), data.draw(st.integers(0, 2**20))
    queries, corpus = (
        rows(kinds[0], count, width, dtypes[0], seed),
        rows(kinds[1], size, width, dtypes[1], seed + 1),
    )
    options: dict[str, Any] = {"id_offset": data.draw(st.sampled_from([0, 7, 2**33]))}
    options["min_score"] = data.draw(st.sampled_from([None, -0.5, 0.0, 0.1, 1.0]))
    if data.draw(st.booleans()):
        options["mask"] = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.7
    if data.draw(st.booleans()):
        g = torch.Generator().manual_seed(seed)
        options["exclude"] = torch.randint(-1, size + 2, (count, 6), generator=g) + options["id_offset"]
        options["exclude"][:, :2] = -1
    truth = oracle.dense_scores(queries, corpus, metric)
    wanted = oracle.search(truth, k, oracle.result_dtype(queries, corpus), **options)
    assert_same_bytes(op(queries, corpus, k, metric, **options), wanted)


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("kind", ["gaussian", "grid", "duplicates", "outliers", "mean"])
def test_search_agrees_with_exact_arithmetic(op: Op, kind: str) -> None:
    """The fixed order is a definition; here it is compared with sums that have no rounding at all."""
    queries, corpus = rows(kind, 3, 21, torch.float32, 6), rows(kind, 60, 21, torch.float32, 7)
    q, c = oracle.array(queries), oracle.array(corpus)
    truth = np.array([[oracle.true_dot(a, b) for b in c] for a in q])
    assert_topk_equivalent(*op(queries, corpus, 10, "ip"), truth, 10, tolerance=1e-14)
    norms = [[math.sqrt(oracle.true_dot(r, r)) for r in side] for side in (q, c)]
    cosine = truth / np.maximum(np.outer(*norms), 1e-300)
    scores, ids = op(queries, corpus, 10, "cosine")
    # Equal directions may differ in the last bit of a quotient, so ties are only held to the tolerance here.
    ordered = np.sort(cosine, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(scores.numpy(), ordered, rtol=2e-7, atol=1e-9)
    np.testing.assert_allclose(
        np.take_along_axis(cosine, ids.numpy(), axis=1), ordered, rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("op", implementations("pair_scores"))
def test_pair_scores(op: Op, metric: str) -> None:
    queries, corpus = rows("heavy", 6, 19, torch.float32, 1), rows("heavy", 50, 19, torch.bfloat16, 2)
    corpus[3], corpus[4] = torch.nan, 0.0
    queries[5] = torch.inf
    ids = torch.randint(-1, 50, (6, 30))
    ids[:, :4] = torch.tensor([3, 4, -1, 49])
    truth = oracle.dense_scores(queries, corpus, metric)
    wanted = np.where(ids.numpy() < 0, -np.inf, np.take_along_axis(truth, ids.clamp(min=0).numpy(), axis=1))
    wanted = np.where(np.isnan(wanted), -np.inf, wanted)
    assert_same_bytes((op(queries, corpus, ids, metric),), (torch.from_numpy(wanted),))


# ------------------------------------------------------------------ sparse search


def codes(kind: str, count: int, latents: int, density: float, dtype: torch.dtype, seed: int) -> Tensor:
    kept = torch.rand(count, latents, generator=torch.Generator().manual_seed(seed)) < density
    return rows(kind, count, latents, dtype, seed) * kept


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_search(op: Op, kind: str, metric: str) -> None:
    for dtype in DTYPES:
        queries, corpus = codes(kind, 5, 50, 0.2, dtype, 8), codes(kind, 300, 50, 0.2, dtype, 9)
        queries[2], corpus[:4] = 0, 0  # rows without entries
        truth = oracle.sparse_scores(queries, corpus, metric)
        wanted = oracle.search(truth, 20, oracle.result_dtype(queries))
        assert_same_bytes(op(*csr(queries), *csr(corpus), 50, 20, metric), wanted, f"{kind} {dtype}")


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sparse_search_property(op: Op, data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(["cosine", "ip"]))
    kinds = data.draw(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
    dtypes = data.draw(st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)))
    count, latents, size = (data.draw(st.integers(0, n)) for n in (4, 60, 150))
    density, seed = data.draw(st.sampled_from([0.0, 0.05, 0.4, 1.0])), data.draw(st.integers(0, 2**20))
    k = data.draw(st.integers(0, 160))
    queries = codes(kinds[0], count, latents, density, dtypes[0], seed)
    corpus = codes(kinds[1], size, latents, density, dtypes[1], seed + 1)
    options: dict[str, Any] = {"id_offset": data.draw(st.sampled_from([0, 2**33]))}
    options["min_score"] = data.draw(st.sampled_from([None, 0.0, 0.3]))
    if data.draw(st.booleans()):
        options["mask"] = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 0.7
    if data.draw(st.booleans()):
        g = torch.Generator().manual_seed(seed)
        options["exclude"] = torch.randint(-1, size + 2, (count, 6), generator=g) + options["id_offset"]
    truth = oracle.sparse_scores(queries, corpus, metric)
    wanted = oracle.search(truth, k, oracle.result_dtype(queries, corpus), **options)
    assert_same_bytes(op(*csr(queries), *csr(corpus), latents, k, metric, **options), wanted)


@pytest.mark.parametrize("op", implementations("sparse_pair_scores"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_sparse_pair_scores(op: Op, metric: str) -> None:
    queries = codes("gaussian", 6, 40, 0.3, torch.float32, 1)
    corpus = codes("grid", 50, 40, 0.3, torch.float16, 2)
    corpus[3] = 0
    ids = torch.randint(-1, 50, (6, 30))
    truth = oracle.sparse_scores(queries, corpus, metric)
    wanted = np.where(ids.numpy() < 0, -np.inf, np.take_along_axis(truth, ids.clamp(min=0).numpy(), axis=1))
    assert_same_bytes((op(*csr(queries), *csr(corpus), 40, ids, metric),), (torch.from_numpy(wanted),))


# ------------------------------------------------------------------ pool_codes


@pytest.mark.parametrize("op", implementations("pool_codes"))
@pytest.mark.parametrize("reduce", ["mean", "max", "sum", "sqrt_mean", "count"])
@pytest.mark.parametrize("kind", ["gaussian", "grid", "heavy", "subnormal"])
def test_pooling(op: Op, reduce: str, kind: str) -> None:
    for dtype in DTYPES:
        values = rows(kind, 60, 7, dtype, 3)
        values[5, 2], values[6, 1] = torch.nan, torch.inf
        indices = torch.randint(0, 25, (60, 7))  # latents repeat inside tokens too
        offsets = torch.tensor([0, 0, 11, 12, 40, 40, 60, 60])
        for keep in (0, 1, 5, 40):
            wanted = oracle.pool(values, indices, offsets, reduce, keep)
            assert_same_bytes(op(values, indices, offsets, reduce, keep), wanted, f"{dtype} keep {keep}")


@pytest.mark.parametrize("op", implementations("pool_codes"))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pooling_property(op: Op, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 6), max_size=8))
    k, keep, latents = (data.draw(st.integers(low, high)) for low, high in ((0, 5), (0, 9), (1, 12)))
    seed, kind = data.draw(st.integers(0, 2**20)), data.draw(st.sampled_from(KINDS))
    reduce = data.draw(st.sampled_from(["mean", "max", "sum", "sqrt_mean", "count"]))
    values = rows(kind, sum(lengths), k, torch.float32, seed)
    indices = torch.randint(0, latents, values.shape, generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64)
    wanted = oracle.pool(values, indices, offsets, reduce, keep)
    assert_same_bytes(op(values, indices, offsets, reduce, keep), wanted)

"""The edges: nothing to do, more asked for than there is, NaN and infinity, zeros, subnormals, ids past 2³¹.

These are the inputs for which "the top k" has no obvious meaning, so the meaning is written down here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from support import oracle
from support.backends import implementations
from support.equivalence import assert_same_bytes
from support.rows import csr, rows

Op = Callable[..., Any]
INF = math.inf


# ------------------------------------------------------------------ topk_encode


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize(
    ("tokens", "width", "latents", "k"), [(0, 4, 5, 2), (3, 0, 5, 2), (3, 4, 0, 0), (3, 4, 5, 0)]
)
def test_encode_of_nothing(op: Op, tokens: int, width: int, latents: int, k: int) -> None:
    x, weight, bias = torch.randn(tokens, width), torch.randn(latents, width), torch.randn(latents)
    values, indices = op(x, weight, bias, k)
    assert values.shape == indices.shape == (tokens, k)
    assert_same_bytes((values, indices), oracle.encode(x, weight, bias, k))


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_encode_shows_what_is_not_finite(op: Op, bad: float) -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(30, 8), torch.randn(30)
    x[2, 3] = bad
    values, indices = op(x, weight, bias, 4)
    assert values[2].isnan().all()
    assert indices[2].tolist() == [0, 1, 2, 3]
    assert values[[0, 1, 3, 4]].isfinite().all()
    assert_same_bytes((values, indices), oracle.encode(x, weight, bias, 4))
    for side in (weight, bias):
        kept = side.clone()
        side[1] = bad
        values, indices = op(torch.randn(5, 8), weight, bias, 4)
        assert values.isnan().all()
        assert (indices == torch.arange(4)).all()
        side.copy_(kept)


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_encode_of_zeros(op: Op) -> None:
    values, indices = op(torch.zeros(3, 8), torch.randn(30, 8), None, 4)
    assert (values == 0).all()
    assert not values.signbit().any()
    assert (indices == torch.arange(4)).all()
    bias = torch.zeros(30)
    bias[11] = 2.0
    values, indices = op(torch.zeros(3, 8), torch.randn(30, 8), bias, 4)
    assert values.tolist() == [[2.0, 0.0, 0.0, 0.0]] * 3
    assert indices.tolist() == [[11, 0, 1, 2]] * 3


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_zeros_do_not_repeat_a_latent_that_fired(op: Op) -> None:
    weight, bias = torch.zeros(8, 2), torch.tensor([-1.0, 3.0, 0.0, 5.0, -2.0, 0.0, 1.0, -0.0])
    values, indices = op(torch.zeros(1, 2), weight, bias, 8)
    assert indices.tolist() == [[3, 1, 6, 0, 2, 4, 5, 7]]
    assert values.tolist() == [[5.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_a_positive_that_rounds_to_zero_still_comes_first(op: Op) -> None:
    x, weight = torch.tensor([[1e-30]]), torch.tensor([[0.0], [-1.0], [1e-30], [2e-30]])
    values, indices = op(x, weight, None, 3)
    assert indices.tolist() == [[3, 2, 0]]
    assert values.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_sums_that_overflow_float32(op: Op) -> None:
    """The screen overflows; the float64 score does not, and only its rounding to float32 may."""
    x, weight = rows("gaussian", 6, 40, torch.float32, 1) * 1e30, rows("gaussian", 200, 40, torch.float32, 2)
    for scale in (1.0, 1e8, 1e30):
        assert_same_bytes(op(x, weight * scale, None, 9), oracle.encode(x, weight * scale, None, 9))
    x, weight = x.double() * 1e100, weight.double() * 1e100
    assert_same_bytes(op(x, weight, None, 9), oracle.encode(x, weight, None, 9))


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_one_row_out_of_scale_does_not_disturb_the_others(op: Op) -> None:
    x, weight, bias = (
        rows("gaussian", 12, 40, torch.float32, 1),
        rows("gaussian", 300, 40, torch.float32, 2),
        torch.randn(300),
    )
    x[3] *= 1e36
    x[7] *= 1e-36
    weight[5] *= 1e-30
    bias[9] = -3e38
    assert_same_bytes(op(x, weight, bias, 10), oracle.encode(x, weight, bias, 10))
    weight[17] *= 1e20
    assert_same_bytes(op(x, weight, bias, 10), oracle.encode(x, weight, bias, 10))


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_ties_one_unit_apart(op: Op) -> None:
    """Scores that differ in the last of 53 bits are not ties, though float32 cannot tell them apart."""
    weight = torch.ones(400, 33)
    weight[:, 7] += torch.arange(400).flip(0) % 5 * 2.0**-23
    x = torch.rand(6, 33) + 0.5
    x[:, 7] = 2.0**-22
    assert_same_bytes(op(x, weight, None, 100), oracle.encode(x, weight, None, 100))


@pytest.mark.parametrize("op", implementations("topk_encode"))
def test_cancellation(op: Op) -> None:
    """Large terms cancel, so the screened scores are mostly rounding error."""
    x, weight = torch.randn(5, 64), torch.randn(300, 64)
    x[:, 0], x[:, 1] = 1e7, -1e7
    weight[:, 0] = weight[:, 1] = 1e3
    assert_same_bytes(op(x, weight, None, 20), oracle.encode(x, weight, None, 20))


# ------------------------------------------------------------------ search


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize(
    ("count", "width", "size", "k"), [(0, 4, 5, 2), (3, 4, 0, 2), (3, 0, 5, 2), (3, 4, 5, 0), (3, 4, 5, 9)]
)
def test_search_of_nothing_and_for_too_much(
    op: Op, metric: str, count: int, width: int, size: int, k: int
) -> None:
    queries, corpus = torch.randn(count, width), torch.randn(size, width)
    wanted = oracle.search(oracle.dense_scores(queries, corpus, metric), k, torch.float32)
    assert_same_bytes(op(queries, corpus, k, metric), wanted)
    if k > size:
        assert (wanted[1][:, size:] == -1).all()
        assert (wanted[0][:, size:] == -INF).all()


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_that_are_not_finite(op: Op, metric: str, dtype: torch.dtype) -> None:
    queries, corpus = rows("gaussian", 5, 20, dtype, 1), rows("gaussian", 200, 20, dtype, 2)
    corpus[3, 5], corpus[60, 0], corpus[199, 19] = math.nan, INF, -INF
    corpus[10] = 0
    queries[1, 2], queries[2, 0] = math.nan, INF
    queries[3] = 0
    scores, ids = op(queries, corpus, 200, metric)
    wanted = oracle.search(oracle.dense_scores(queries, corpus, metric), 200, oracle.result_dtype(queries))
    assert_same_bytes((scores, ids), wanted)
    assert (ids[1:3] == -1).all()
    assert not torch.isin(ids, torch.tensor([3, 60, 199])).any()
    assert (scores[3, :197] == 0).all()
    assert ids[3, :5].tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_cosine_does_not_depend_on_scale(op: Op) -> None:
    """Powers of two change no cosine, not even where squares leave the range of float32."""
    queries, corpus = torch.randn(4, 30), torch.randn(150, 30)
    wanted = op(queries, corpus, 20)
    scale = torch.exp2(torch.randint(-100, 100, (150, 1)).float())
    assert_same_bytes(op(queries * 2.0**-90, corpus * scale, 20), wanted)


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("scale", [1e-165, 1e-140, 1e140, 1e150])
def test_float64_beyond_the_range_of_squares(op: Op, scale: float) -> None:
    queries, corpus = torch.randn(4, 12, dtype=torch.float64), torch.randn(100, 12, dtype=torch.float64)
    corpus[::3] *= scale
    for metric in ("cosine", "ip"):
        truth = oracle.dense_scores(queries, corpus, metric)
        assert_same_bytes(op(queries, corpus, 11, metric), oracle.search(truth, 11, torch.float64))


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_ids_past_two_to_the_31(op: Op) -> None:
    queries, corpus, offset = torch.randn(2, 8), torch.randn(30, 8), 2**40 + 3
    scores, ids = op(queries, corpus, 40)
    exclude = ids[:, :1] + offset
    shifted = op(queries, corpus, 40, id_offset=offset, exclude=exclude)
    assert (shifted[1][:, :29] == ids[:, 1:30] + offset).all()
    assert (shifted[0][:, :29] == scores[:, 1:30]).all()
    assert (shifted[1][:, 29:] == -1).all()


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_filters(op: Op) -> None:
    queries, corpus = torch.randn(3, 8), torch.randn(50, 8)
    scores, ids = op(queries, corpus, 50)
    nobody = torch.zeros(50, dtype=torch.bool)
    assert (op(queries, corpus, 5, mask=nobody)[1] == -1).all()
    assert (op(queries, corpus, 5, exclude=torch.arange(50).repeat(3, 1))[1] == -1).all()
    assert_same_bytes(op(queries, corpus, 50, exclude=torch.full((3, 4), -1)), (scores, ids))
    assert_same_bytes(op(queries, corpus, 50, exclude=torch.empty(3, 0, dtype=torch.int64)), (scores, ids))
    least = float(scores[0, 6])  # a score just as it was returned is included
    assert int((op(queries, corpus, 50, min_score=least)[1][0] >= 0).sum()) == 7
    more = math.nextafter(least, INF)  # which float32 would round to the score
    assert int((op(queries, corpus, 50, min_score=more)[1][0] >= 0).sum()) == 6
    assert (op(queries, corpus, 50, min_score=INF)[1] == -1).all()
    assert (op(queries, corpus, 50, min_score=math.nan)[1] == -1).all()


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_adversarial_near_ties(op: Op) -> None:
    """Scores closer than the rounding error of a float32 product: screening decides nothing."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, 256, generator=g)
    corpus = base + base.abs() * torch.randint(-1, 2, (800, 256), generator=g) * 2.0**-23
    queries = torch.cat([base, -base, torch.randn(2, 256, generator=g)])
    for metric in ("cosine", "ip"):
        wanted = oracle.search(oracle.dense_scores(queries, corpus, metric), 25, torch.float32)
        assert_same_bytes(op(queries, corpus, 25, metric), wanted)


# ------------------------------------------------------------------ sparse


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
@pytest.mark.parametrize(
    ("count", "latents", "size", "k"), [(0, 6, 5, 2), (3, 6, 0, 2), (3, 0, 5, 2), (3, 6, 5, 0), (3, 6, 5, 9)]
)
def test_sparse_search_of_nothing_and_for_too_much(
    op: Op, count: int, latents: int, size: int, k: int
) -> None:
    queries, corpus = torch.randn(count, latents), torch.randn(size, latents)
    wanted = oracle.search(oracle.sparse_scores(queries, corpus, "cosine"), k, torch.float32)
    assert_same_bytes(op(*csr(queries), *csr(corpus), latents, k), wanted)


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_sparse_rows_that_are_not_finite(op: Op, metric: str) -> None:
    queries, corpus = torch.randn(4, 20).relu(), torch.randn(90, 20).relu()
    corpus[3, 5], corpus[60, 0] = math.nan, INF
    queries[1, 2] = math.nan
    corpus[10:40] = 0
    scores, ids = op(*csr(queries), *csr(corpus), 20, 90, metric)
    truth = oracle.sparse_scores(queries, corpus, metric)
    assert_same_bytes((scores, ids), oracle.search(truth, 90, torch.float32))
    assert (ids[1] == -1).all()
    assert not torch.isin(ids, torch.tensor([3, 60])).any()


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
def test_disjoint_codes_tie_at_zero(op: Op) -> None:
    """Most pairs of sparse codes share nothing; their scores are exactly 0 and ties go to the lower id."""
    queries, corpus = torch.zeros(2, 30), torch.zeros(500, 30)
    queries[:, :3] = torch.rand(2, 3)
    corpus[:, 3:] = torch.rand(500, 27)
    corpus[[40, 77], 1] = 1.0
    scores, ids = op(*csr(queries), *csr(corpus), 30, 100)
    assert_same_bytes(
        (scores, ids), oracle.search(oracle.sparse_scores(queries, corpus, "cosine"), 100, torch.float32)
    )
    assert ids[0, 2:7].tolist() == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------ sums


def test_decode_of_nothing() -> None:
    for op in (parameter.values[0] for parameter in implementations("sparse_decode")):
        bias = torch.randn(7)
        none = op(torch.empty(4, 0), torch.empty(4, 0, dtype=torch.int64), torch.randn(3, 7), bias)
        assert torch.equal(none, bias.expand(4, 7))
        assert op(torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64), torch.randn(3, 7), None).shape == (
            0,
            7,
        )
        nothing = torch.zeros(4, 2, dtype=torch.int64)
        assert op(torch.ones(4, 2), nothing, torch.randn(3, 0), None).shape == (4, 0)


def test_scatter_of_nothing() -> None:
    values, indices = torch.empty(4, 0), torch.empty(4, 0, dtype=torch.int64)
    for op in (parameter.values[0] for parameter in implementations("scatter_rows")):
        assert torch.equal(op(values, indices, torch.randn(4, 5), 6), torch.zeros(6, 5))
        assert op(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int64), torch.randn(4, 0), 6).shape == (
            6,
            0,
        )
    for op in (parameter.values[0] for parameter in implementations("scatter_values")):
        assert torch.equal(op(values, indices, 6), torch.zeros(6))


def test_a_latent_that_fires_for_every_token() -> None:
    values, indices, table = torch.randn(3000, 3), torch.randint(0, 50, (3000, 3)), torch.randn(3000, 4)
    indices[:, 1] = 49
    for op in (parameter.values[0] for parameter in implementations("scatter_rows")):
        got = op(values, indices, table, 50)
        dense = torch.zeros(3000, 50, dtype=torch.float64).scatter_add_(1, indices, values.double())
        torch.testing.assert_close(got, (dense.T @ table.double()).float(), rtol=1e-4, atol=1e-3)


def test_pooling_of_latents_past_two_to_the_32() -> None:
    values, offsets = torch.rand(6, 3), torch.tensor([0, 2, 6])
    indices = torch.randint(0, 4, (6, 3)) * 2**60
    for op in (parameter.values[0] for parameter in implementations("pool_codes")):
        for keep in (2, 5):
            assert_same_bytes(
                op(values, indices, offsets, "mean", keep),
                oracle.pool(values, indices, offsets, "mean", keep),
            )


def test_pooling_of_nothing() -> None:
    for op in (parameter.values[0] for parameter in implementations("pool_codes")):
        values, indices = torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int64)
        assert op(values, indices, torch.tensor([0]), "mean", 4)[0].shape == (0, 4)
        pooled, latents = op(values, indices, torch.tensor([0, 0, 0]), "mean", 4)
        assert torch.equal(pooled, torch.zeros(2, 4))
        assert torch.equal(latents, torch.full((2, 4), -1))
        negative = op(-torch.rand(5, 3), torch.zeros(5, 3, dtype=torch.int64), torch.tensor([0, 5]), "max", 2)
        assert_same_bytes(negative, (torch.zeros(1, 2), torch.full((1, 2), -1)))
        # Indices of entries that are dropped are padding and may be anything.
        padded = op(torch.tensor([[1.0, 0.0]]), torch.tensor([[5, -1]]), torch.tensor([0, 1]), "sum", 2)
        assert_same_bytes(padded, (torch.tensor([[1.0, 0.0]]), torch.tensor([[5, -1]])))

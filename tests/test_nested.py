"""The first ten of a hundred results are the ten results, and a row's result does not depend on its company.

Searches whose order depends on k, on the batch or on the machine can't be cached, compared or resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.backends import implementations
from support.equivalence import assert_same_bytes
from support.rows import csr, rows

KINDS = ["gaussian", "grid", "duplicates", "equal", "near", "mean"]


def _corpus(kind: str) -> tuple[Tensor, Tensor]:
    return rows(kind, 7, 24, torch.float32, 1), rows(kind, 900, 24, torch.float32, 2)


@pytest.mark.parametrize("op", implementations("cosine_topk"))
@pytest.mark.parametrize("kind", KINDS)
def test_search_is_nested_in_k(op: Callable[..., Any], kind: str) -> None:
    queries, corpus = _corpus(kind)
    for metric in ("cosine", "ip"):
        scores, ids = op(queries, corpus, 300, metric)
        for k in (1, 10, 100, 299):
            assert_same_bytes(op(queries, corpus, k, metric), (scores[:, :k], ids[:, :k]), f"k={k}")


@pytest.mark.parametrize("op", implementations("sparse_cosine_topk"))
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_search_is_nested_in_k(op: Callable[..., Any], kind: str) -> None:
    queries, corpus = (csr(side * (torch.rand(side.shape) < 0.3)) for side in _corpus(kind))
    scores, ids = op(*queries, *corpus, 24, 300)
    for k in (1, 10, 100):
        assert_same_bytes(op(*queries, *corpus, 24, k), (scores[:, :k], ids[:, :k]), f"k={k}")


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize("kind", KINDS)
def test_encode_is_nested_in_k(op: Callable[..., Any], kind: str) -> None:
    x, weight = _corpus(kind)
    bias = torch.randn(900)
    values, indices = op(x, weight, bias, 400)
    for k in (1, 32, 128):
        got = op(x, weight, bias, k)
        positive = got[0] > 0
        assert torch.equal(got[0], values[:, :k])
        assert torch.equal(got[1][positive], indices[:, :k][positive])
        assert_same_bytes(op(x, weight, bias, k), got, "again")


@pytest.mark.parametrize("op", implementations("topk_encode"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_encode_does_not_depend_on_the_batch(op: Callable[..., Any], dtype: torch.dtype) -> None:
    x, weight = rows("outliers", 90, 40, dtype, 3), rows("gaussian", 500, 40, dtype, 4)
    whole = op(x, weight, None, 16)
    for size in (1, 7, 64):
        parts = [op(part, weight, None, 16) for part in x.split(size)]
        assert_same_bytes(
            tuple(torch.cat(side) for side in zip(*parts, strict=True)), whole, f"batches of {size}"
        )


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_search_does_not_depend_on_the_batch(op: Callable[..., Any]) -> None:
    queries, corpus = rows("mean", 60, 33, torch.float32, 3), rows("mean", 700, 33, torch.float32, 4)
    whole = op(queries, corpus, 12)
    for size in (1, 9):
        parts = [op(part, corpus, 12) for part in queries.split(size)]
        assert_same_bytes(
            tuple(torch.cat(side) for side in zip(*parts, strict=True)), whole, f"batches of {size}"
        )


@pytest.mark.parametrize("op", implementations("cosine_topk"))
def test_screen_changes_nothing(op: Callable[..., Any]) -> None:
    queries, corpus = rows("outliers", 20, 64, torch.float32, 5), rows("outliers", 900, 64, torch.float32, 6)
    wanted = op(queries, corpus, 20, "cosine", "none")
    for screen in ("auto", "int8", "bf16", "float32"):
        assert_same_bytes(op(queries, corpus, 20, "cosine", screen), wanted, screen)

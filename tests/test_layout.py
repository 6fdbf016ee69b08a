"""Strides, offsets and alignment are how a tensor is stored, not what it holds.

Views, transposes, expanded and misaligned tensors must give the bytes of their contiguous copies, and no
operation may write to what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.backends import implementations
from support.equivalence import assert_same_bytes
from support.rows import csr

LAYOUTS = ["transposed", "strided", "misaligned", "expanded"]


def stored(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers, stored differently."""
    if layout == "transposed":
        order = list(range(tensor.dim()))[::-1]
        out = tensor.permute(order).contiguous().permute(order)
    elif layout == "strided":
        out = tensor.new_zeros([2 * size for size in tensor.shape])
        out = out[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)
    elif layout == "misaligned":
        out = tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    else:
        out = tensor
    assert torch.equal(out, tensor)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["topk_encode", "sparse_decode", "sampled_dot", "scatter_rows", "scatter_values"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_encode_and_decode(name: str, layout: str, dtype: torch.dtype) -> None:
    x, weight, values = (
        torch.randn(6, 13).to(dtype),
        torch.randn(50, 13).to(dtype),
        torch.randn(6, 4).to(dtype),
    )
    indices = torch.randint(0, 50, (6, 4))
    if layout == "expanded":
        x, values, indices = x[:1].expand(6, -1), values[:1].expand(6, -1), indices[:, :1].expand(-1, 4)
        weight = weight[:1].expand(50, -1)
    args: dict[str, tuple[Any, ...]] = {
        "topk_encode": (x, weight, weight[:, 0], 5),
        "sparse_decode": (values, indices, weight, weight[0]),
        "sampled_dot": (x, indices, weight),
        "scatter_rows": (values, indices, x, 50),
        "scatter_values": (values, indices, 50),
    }
    _check(name, args[name], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["cosine_topk", "pair_scores", "pool_codes", "sparse_cosine_topk"])
def test_search_and_pooling(name: str, layout: str) -> None:
    queries, corpus, mask = torch.randn(6, 13), torch.randn(50, 13), torch.rand(50) < 0.9
    ids, offsets = torch.randint(0, 50, (6, 4)), torch.tensor([0, 2, 6])
    if layout == "expanded":
        queries, corpus, mask = queries[:1].expand(6, -1), corpus[:, :1].expand(-1, 13), mask[:1].expand(50)
        ids = ids[:, :1].expand(-1, 4)
    args: dict[str, tuple[Any, ...]] = {
        "cosine_topk": (queries, corpus, 5, "cosine", "auto", -0.5, ids, mask),
        "pair_scores": (queries, corpus, ids),
        "pool_codes": (queries[:, :4], ids, offsets, "mean", 3),
        "sparse_cosine_topk": (
            *csr(queries.relu()),
            *csr(corpus.relu()),
            13,
            5,
            "ip",
            "auto",
            None,
            ids,
            mask,
        ),
    }
    _check(name, args[name], layout)


def _check(name: str, args: tuple[Any, ...], layout: str) -> None:
    plain = tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)
    for parameter in implementations(name):
        op: Callable[..., Any] = parameter.values[0]
        wanted = op(*(value.clone() if isinstance(value, Tensor) else value for value in plain))
        odd = tuple(stored(value, layout) if isinstance(value, Tensor) else value for value in args)
        got = op(*odd)
        outputs = [(out,) if isinstance(out, Tensor) else tuple(out) for out in (got, wanted)]
        assert_same_bytes(outputs[0], outputs[1], f"{name} {parameter.id}")
        for given, original in zip(odd, plain, strict=True):
            if isinstance(given, Tensor):
                assert torch.equal(given, original), f"{name} wrote to an input"


def test_results_are_contiguous_and_own_their_memory() -> None:
    values, indices = torch.ops.finescope.topk_encode(torch.randn(6, 13), torch.randn(50, 13), None, 5)
    scores, ids = torch.ops.finescope.cosine_topk(torch.randn(6, 13), torch.randn(50, 13), 5)
    for out in (values, indices, scores, ids):
        assert out.is_contiguous()
        assert out.untyped_storage().nbytes() == out.numel() * out.itemsize

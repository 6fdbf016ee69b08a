"""Schemas, fakes, autograd registration and tracing, as torch checks them; compilation without breaks.

A fake that disagrees with the body, or an operation that writes to an input, shows up here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from finescope import ops
from finescope.codes import SparseCodes

# opcheck of torch 2.14 looks at gradients of what is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def _op(name: str) -> Any:
    return getattr(torch.ops.finescope, name).default


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_encode(dtype: torch.dtype) -> None:
    x, weight, bias = (_leaf(*shape, dtype=dtype) for shape in ((5, 9), (20, 9), (20,)))
    opcheck(_op("topk_encode"), (x, weight, bias, 4))
    opcheck(_op("topk_encode"), (x.detach(), weight, None, 0, "int8"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_and_its_backward(dtype: torch.dtype) -> None:
    values, weight, bias = (_leaf(*shape, dtype=dtype) for shape in ((5, 3), (20, 9), (9,)))
    rows, indices = _leaf(5, 9, dtype=dtype), torch.randint(0, 20, (5, 3))
    opcheck(_op("sparse_decode"), (values, indices, weight, bias))
    opcheck(_op("sparse_decode"), (values, indices, weight, None))
    opcheck(_op("sampled_dot"), (rows, indices, weight))
    opcheck(_op("scatter_rows"), (values, indices, rows, 20))
    opcheck(_op("scatter_values"), (values, indices, 20))
    detached = [tensor.detach() for tensor in (values, weight, rows)]
    opcheck(_op("decode_grads"), (detached[0], indices, *detached[1:]))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_training_step(dtype: torch.dtype, k: int) -> None:
    values, weight, bias, x = (torch.randn(*shape, dtype=dtype) for shape in ((5, 3), (20, 9), (9,), (5, 9)))
    indices = torch.randint(0, 20, (5, 3))
    opcheck(_op("decode_residual"), (values, indices, weight, bias, x, k))
    opcheck(_op("decode_residual"), (values, indices, weight, None, x, k))
    opcheck(_op("weight_grads"), (values, values, indices, x, torch.stack([x, x]), k, 20))
    moments = torch.zeros_like(weight), torch.zeros_like(weight)
    adam = (weight, weight.clone(), *moments, 1, 0.1, 0.9, 0.999, 1e-8, True)
    opcheck(_op("sae_adam_step_"), adam)
    opcheck(_op("sae_adam_step_"), (*adam, torch.tensor([0.1, 1e-8], dtype=torch.float64)))


@pytest.mark.parametrize("reduce", ["mean", "max", "sum", "sqrt_mean", "count"])
def test_pool(reduce: str) -> None:
    values, indices = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 9, (12, 4))
    opcheck(_op("pool_codes"), (values, indices, torch.tensor([0, 5, 5, 12]), reduce, 6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_dense_search(metric: str, dtype: torch.dtype) -> None:
    queries, corpus = torch.randn(3, 9).to(dtype), torch.randn(40, 9).to(dtype)
    options = {
        "min_score": 0.1,
        "exclude": torch.randint(-1, 40, (3, 2)),
        "mask": torch.rand(40) < 0.8,
        "id_offset": 100,
    }
    opcheck(_op("cosine_topk"), (queries, corpus, 7, metric), options)
    opcheck(_op("pair_scores"), (queries, corpus, torch.randint(-1, 40, (3, 7)), metric))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_sparse_search(dtype: torch.dtype) -> None:
    sides: list[Tensor] = []
    for count in (3, 40):
        codes = SparseCodes.from_dense((torch.randn(count, 15) * (torch.rand(count, 15) < 0.4)).to(dtype))
        sides += [codes.indptr, codes.indices.to(torch.int32), codes.values]
    exclude, mask = torch.randint(-1, 40, (3, 2)), torch.rand(40) < 0.8
    opcheck(_op("sparse_cosine_topk"), (*sides, 15, 7), {"exclude": exclude, "mask": mask})
    opcheck(_op("sparse_pair_scores"), (*sides, 15, torch.randint(-1, 40, (3, 7))))


def test_compiles_without_graph_breaks() -> None:
    def step(x: Tensor, weight: Tensor, bias: Tensor, decoder: Tensor) -> Tensor:
        values, indices = ops.topk_encode(x, weight, bias, 5)
        out = ops.sparse_decode(values, indices, decoder, x[0])
        return (out - x).square().sum()

    leaves = [_leaf(*shape, dtype=torch.float32) for shape in ((6, 9), (30, 9), (30,), (30, 9))]
    step(*leaves).backward()
    wanted = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    compiled(*leaves).backward()
    for leaf, grad in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_search_and_pooling_compile_without_graph_breaks() -> None:
    def job(queries: Tensor, corpus: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        values, indices = ops.topk_encode(x, weight, None, 4)
        pooled = ops.pool_codes(values, indices, torch.tensor([0, 2, 6]), reduce="max", keep=3)
        return (*ops.cosine_topk(queries, corpus, 3, min_score=0.0), *pooled)

    args = (torch.randn(2, 8), torch.randn(20, 8), torch.randn(6, 8), torch.randn(30, 8))
    compiled = torch.compile(job, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(compiled(*args), job(*args), strict=True):
        assert torch.equal(got, wanted)


def test_compiles_for_changing_batch_sizes() -> None:
    weight = torch.randn(30, 9)
    compiled = torch.compile(
        lambda x: ops.topk_encode(x, weight, None, 5), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for batch in (3, 4, 11):
        x = torch.randn(batch, 9)
        assert torch.equal(compiled(x)[1], ops.topk_encode(x, weight, None, 5)[1])

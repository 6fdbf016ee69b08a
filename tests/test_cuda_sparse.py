"""What only the CUDA kernels on codes can get wrong: wide and narrow loads, strips of columns, searches that
run out of room, filters on the device.

Runs on a GPU, and on the kernels compiled for the CPU (``test_cuda_on_cpu.py`` starts it there).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from support import decode_oracle, oracle, training_oracle
from support.backends import op
from support.equivalence import assert_same_bytes
from support.rows import csr

ON_CPU = bool(os.environ.get("FINESCOPE_TEST_CUDA_ON_CPU"))
pytestmark = [] if ON_CPU else [pytest.mark.requires_cuda]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _where() -> Any:
    op.device = "cpu" if ON_CPU else "cuda"
    yield
    op.device = "cpu"


def waits() -> dict[str, int]:
    """How often threads waited, by kernel; only known on the CPU."""
    return sys.modules["_C_cuda_on_cpu"].waits() if ON_CPU else {}


# One strip and a part of the next, for every vector: 16 bytes a thread, two vectors, and elements one by one.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [520, 600, 523, 130])
def test_strips(width: int, dtype: torch.dtype) -> None:
    values = torch.randn(3, 6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    indices = torch.randint(0, 5, (3, 6))
    weight, rows = torch.randn(5, width).to(dtype), torch.randn(3, width).to(dtype)
    bias = torch.randn(width).to(dtype)
    wanted = decode_oracle.sparse_decode(values, indices, weight, bias)
    assert_same_bytes((op.sparse_decode(values, indices, weight, bias),), (wanted,))
    wanted = decode_oracle.sampled_dot(rows, indices, weight)
    assert_same_bytes((op.sampled_dot(rows, indices, weight),), (wanted,))
    wanted = decode_oracle.scatter_rows(values, indices, rows, 5)
    assert_same_bytes((op.scatter_rows(values, indices, rows, 5),), (wanted,))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("width", [300, 515])
def test_strips_of_a_training_step(width: int, dtype: torch.dtype) -> None:
    values, grad_values = torch.randn(2, 4, 6, dtype=dtype)
    indices = torch.randint(0, 5, (4, 6))
    weight, x, grad = (torch.randn(*shape, width, dtype=dtype) for shape in ((5,), (4,), (2, 4)))
    for k in (6, 2):
        args: Any = (values, indices, weight, weight[0], x, k)
        assert_same_bytes(op.decode_residual(*args), tuple(training_oracle.decode_residual(*args)))
        args = (grad_values, values, indices, x, grad, k, 5)
        assert_same_bytes(op.weight_grads(*args), tuple(training_oracle.weight_grads(*args)))


def test_rows_that_are_not_aligned() -> None:
    values, indices = torch.randn(3, 4), torch.randint(0, 5, (3, 4))
    weight, rows = torch.randn(5, 133)[:, 1:129], torch.randn(3, 131)[:, 3:]
    wanted = decode_oracle.sparse_decode(values, indices, weight, None)
    assert_same_bytes((op.sparse_decode(values, indices, weight, None),), (wanted,))
    wanted = decode_oracle.sampled_dot(rows, indices, weight)
    assert_same_bytes((op.sampled_dot(rows, indices, weight),), (wanted,))


@pytest.mark.parametrize("width", [40, 13000])
def test_adam_of_rows_that_shared_memory_holds_and_does_not(width: int) -> None:
    w = torch.nn.functional.normalize(torch.randn(2, width))
    g, m, v = torch.randn(2, width), torch.randn(2, width), torch.rand(2, width)
    options = (3, 0.01, 0.9, 0.999, 1e-8, True)
    wanted = training_oracle.adam_step(w, g, m, v, *options)
    op.sae_adam_step_(w, g, m, v, *options)
    assert_same_bytes((w, m, v), tuple(wanted))


@pytest.mark.parametrize("reduce", ["mean", "count"])
def test_pooling_more_than_a_block_holds(reduce: str) -> None:
    """Documents longer than a block's pass, with more ties than are kept."""
    values = torch.randint(0, 4, (300, 5)).float()
    indices, offsets = torch.randint(0, 700, (300, 5)), torch.tensor([0, 1, 250, 250, 300])
    for keep in (3, 200, 2000):
        wanted = oracle.pool(values, indices, offsets, reduce, keep)
        assert_same_bytes(op.pool_codes(values, indices, offsets, reduce, keep), wanted, f"keep {keep}")


# ------------------------------------------------------------------ sparse search


def rising(count: int, latents: int) -> Tensor:
    """Codes whose cosine with the first latent rises from row to row."""
    dense = torch.zeros(count, latents)
    dense[:, 0] = torch.linspace(0.1, 1.0, count)
    dense[torch.arange(count), torch.arange(count) % (latents - 2) + 2] = 1.0
    return dense


def check(queries: Tensor, corpus: Tensor, k: int, metric: str = "cosine", **options: Any) -> None:
    truth = oracle.sparse_scores(queries, corpus, metric)
    wanted = oracle.search(truth, k, oracle.result_dtype(queries, corpus), **options)
    got = op.sparse_cosine_topk(*csr(queries), *csr(corpus), queries.shape[1], k, metric, **options)
    assert_same_bytes(got, wanted, metric)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("k", [1, 7])
def test_slabs(k: int, metric: str) -> None:
    corpus = torch.rand(3000, 60) * (torch.rand(3000, 60) < 0.2)
    queries = torch.rand(5, 60) * (torch.rand(5, 60) < 0.2)
    waits()
    check(queries, corpus, k, metric)
    if ON_CPU:
        waited = waits()
        assert waited["sparse screen"] > 0
        assert waited["sparse rescan"] == 0


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_slab_that_holds_more_than_there_is_room_for(metric: str) -> None:
    """The rows that are visited first are worse than all others: the first threshold lets those through."""
    queries = torch.zeros(2, 40)
    queries[0, 0], queries[1, 1] = 1.0, 1.0
    tiles, step = 100, 640007  # in tiles of 16 rows, as sparse_plan.h has it; 256 rows are a first slab
    first = torch.tensor([place * step % tiles for place in range(16)])
    corpus = rising(1600, 40)
    corpus.view(tiles, 16, 40)[first, :, 0] *= 0.01
    waits()
    for k in (1, 9):
        check(queries, corpus, k, metric)
    if ON_CPU:
        assert waits()["sparse rescan"] > 0


def test_filters_where_the_search_runs_out_of_room() -> None:
    corpus, queries = rising(1600, 40), torch.zeros(3, 40)
    queries[:, 0], queries[1, 3] = 1.0, 0.5
    mask = torch.rand(1600) < 0.7
    exclude = torch.randint(-1, 1600, (3, 50)) + 9
    for k in (1, 30):
        check(queries, corpus, k, mask=mask, exclude=exclude, id_offset=9, min_score=0.3)


def test_more_queries_than_a_panel_and_more_results_than_shared_memory() -> None:
    corpus = torch.rand(4000, 30) * (torch.rand(4000, 30) < 0.3)
    check(corpus[:70], corpus, 3)
    check(corpus[:2], corpus, 3500)


def test_queries_that_share_nothing_with_the_corpus() -> None:
    """All scores are 0: the lowest rows, without a look at every row."""
    corpus = rising(2000, 40)
    corpus[::7] = 0.0
    # One that no row has, none, and one that is 0.
    few = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0], dtype=torch.int32), torch.tensor([1.0, 0.0])
    got = op.sparse_cosine_topk(*few, *csr(corpus), 40, 5)
    assert torch.equal(got[0], torch.zeros(3, 5))
    assert torch.equal(got[1], torch.arange(5).expand(3, 5))


@pytest.mark.parametrize("latents", [31, 32, 33, 200_000])
def test_words_of_latents(latents: int) -> None:
    """The last word may be part empty; beyond 180 000 latents the words stay out of shared memory."""
    corpus = [torch.randperm(latents)[:5].sort().values for _ in range(80)]
    indptr = torch.arange(0, 401, 5)
    indices, values = torch.cat(corpus).to(torch.int32), torch.rand(400)
    indices[4], indices[9] = latents - 1, latents - 1
    rows = (indptr, indices, values)
    queries = (indptr[:4], indices[:15], values[:15])
    scores, ids = op.sparse_cosine_topk(*queries, *rows, latents, 4)
    pairs = op.sparse_pair_scores(*queries, *rows, latents, torch.arange(80).expand(3, 80))
    best = sorted(range(80), key=lambda n: (-pairs[1, n].item(), n))[:4]
    assert ids[1].tolist() == best
    assert torch.equal(scores, pairs.gather(1, ids).float())
    assert ids[:, 0].tolist() == [0, 1, 2]

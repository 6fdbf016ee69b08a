"""torch.set_flush_denormal must not reach results: it is per thread, so they would depend on the thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from finescope import SparseCodes, ops

pytestmark = pytest.mark.requires_native

B, D, F, K = 70, 96, 1800, 5
Work = Callable[[], tuple[Tensor, ...]]


@pytest.fixture
def flush() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


def data(size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(B, D, generator=generator) * size,
        torch.randn(F, D, generator=generator),
    )


def encode(screen: str | None) -> Work:
    x, weight = data(1e-40)
    return lambda: ops.topk_encode(x, weight, None, K, screen=screen)


def encode_with(bias: float) -> Work:
    """Biases that float32 holds only as subnormal numbers are numbers."""
    x, weight = data(1e-40)
    biases = torch.full((F,), bias)
    return lambda: ops.topk_encode(x, weight, biases, K)


def above(screen: str | None) -> Work:
    x, weight = data(1e-40)
    threshold = torch.full((F,), 2e-39)

    def work() -> tuple[Tensor, ...]:
        codes = ops.threshold_encode(x, weight, None, threshold, screen=screen)
        assert 0 < codes.nnz < B * F / 4
        return codes.values, codes.indices, codes.indptr

    return work


def search(screen: str | None, metric: str) -> Work:
    x, corpus = data(1e-40)
    corpus = corpus * 1e-5
    return lambda: ops.cosine_topk(x, corpus, K, metric=metric, screen=screen)


def decode() -> Work:
    x, weight = data(1.0)
    values, latents = ops.topk_encode(x, weight, None, K)
    small = values * 1e-40
    above = torch.ones(B, D)

    def work() -> tuple[Tensor, ...]:
        codes, decoder = small.clone().requires_grad_(), weight.clone().requires_grad_()
        y = ops.sparse_decode(codes, latents, decoder, None)
        y.backward(above)
        assert codes.grad is not None
        assert decoder.grad is not None
        return y.detach(), codes.grad, decoder.grad

    return work


def pool() -> Work:
    x, weight = data(1e-40)
    values, latents = ops.topk_encode(x, weight, None, K)
    return lambda: ops.pool_codes(values, latents, torch.tensor([0, 30, 70]), reduce="mean", keep=20)


def sparse_search() -> Work:
    _, weight = data(1.0)
    values, latents = ops.topk_encode(weight[:300], weight, None, K)
    corpus = SparseCodes.from_dense(torch.zeros(300, F).scatter(1, latents, values * 1e-40))
    queries = SparseCodes.from_dense(torch.zeros(9, F).scatter(1, latents[:9], values[:9]))
    return lambda: ops.sparse_cosine_topk(queries, corpus, K, metric="ip")


@pytest.mark.parametrize(
    "work",
    [
        *(
            pytest.param(encode(screen), id=f"encode-{screen}")
            for screen in ("auto", "int8", "bf16", "float32", "none")
        ),
        pytest.param(encode_with(-1e-39), id="encode-bias"),
        *(pytest.param(above(screen), id=f"above-{screen}") for screen in ("auto", "float32", "none")),
        *(
            pytest.param(search(screen, metric), id=f"{metric}-{screen}")
            for screen in ("auto", "float32", "none")
            for metric in ("cosine", "ip")
        ),
        pytest.param(decode(), id="decode"),
        pytest.param(pool(), id="pool"),
        pytest.param(sparse_search(), id="sparse"),
    ],
)
@pytest.mark.usefixtures("flush")
def test_results_are_those_without_it(work: Work) -> None:
    wanted = work()
    torch.set_flush_denormal(True)
    found = work()
    kept = torch.tensor([1e-30]).mul(1e-10).item() == 0.0
    torch.set_flush_denormal(False)
    assert kept, "the mode that the caller set is there no longer"
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()

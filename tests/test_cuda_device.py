"""On a GPU the operations on codes leave the host alone: they never wait for the device, can be captured in a
graph, run on the stream and the device that torch has current, and do not see autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.config import SaeConfig
from finescope.optim import SaeAdam
from finescope.sae import SparseAutoencoder, losses

pytestmark = pytest.mark.requires_cuda
B, K, F, D = 64, 8, 500, 96


def calls(device: str) -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Each operation with arguments for it on a device."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    values, indices = draw(B, K), torch.randint(0, F, (B, K), generator=generator).to(device)
    weight, x, grad = draw(F, D), draw(B, D), draw(2, B, D)
    offsets = torch.tensor([0, 10, 10, B]).to(device)

    def codes(count: int) -> list[Tensor]:
        held = torch.rand(count, F, generator=generator) < 0.05
        made = SparseCodes.from_dense(torch.rand(count, F, generator=generator) * held)
        return [side.to(device) for side in (made.indptr, made.indices, made.values)]

    queries, corpus = codes(70), codes(9000)
    ids = torch.randint(-1, 9000, (70, 5), generator=generator).to(device)
    exclude, mask = ids + 3, (torch.rand(9000, generator=generator) < 0.8).to(device)
    op = torch.ops.finescope
    return {
        "sparse_decode": (op.sparse_decode, [values, indices, weight, x[0]]),
        "sampled_dot": (op.sampled_dot, [x, indices, weight]),
        "scatter_rows": (op.scatter_rows, [values, indices, x, F]),
        "scatter_values": (op.scatter_values, [values, indices, F]),
        "decode_residual": (op.decode_residual, [values, indices, weight, x[0], x, 3]),
        "weight_grads": (op.weight_grads, [values, values, indices, x, grad, 3, F]),
        "pool_codes": (op.pool_codes, [values, indices, offsets, "mean", 20]),
        "sparse_cosine_topk": (
            op.sparse_cosine_topk,
            [*queries, *corpus, F, 10, "cosine", "auto", 0.1, exclude, mask, 3],
        ),
        "sparse_pair_scores": (op.sparse_pair_scores, [*queries, *corpus, F, ids]),
    }


NAMES = [
    "sparse_decode",
    "sampled_dot",
    "scatter_rows",
    "scatter_values",
    "decode_residual",
    "weight_grads",
    "pool_codes",
    "sparse_cosine_topk",
    "sparse_pair_scores",
]


def run(device: str, name: str) -> list[Tensor]:
    operation, arguments = calls(device)[name]
    out = operation(*arguments)
    return [out] if isinstance(out, Tensor) else list(out)


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    for left, right in zip(got, wanted, strict=True):
        assert torch.equal(left.cpu(), right.cpu())


@pytest.mark.parametrize("name", NAMES)
def test_never_waits_and_sees_no_autocast(name: str) -> None:
    operation, arguments = calls("cuda")[name]
    operation(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            out = operation(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal([out] if isinstance(out, Tensor) else list(out), run("cpu", name))


@pytest.mark.parametrize("name", NAMES)
def test_graph(name: str) -> None:
    operation, arguments = calls("cuda")[name]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        operation(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operation(*arguments)
    results = [out] if isinstance(out, Tensor) else list(out)
    for result in results:
        result.fill_(7)
    graph.replay()
    graph.replay()
    assert_equal(results, run("cpu", name))


@pytest.mark.parametrize("name", NAMES)
def test_side_stream(name: str) -> None:
    """The arguments are made late on the side stream: whoever reads them on another one reads zeros."""
    operation, arguments = calls("cuda")[name]
    wanted = run("cpu", name)
    late = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    for value in late:
        if isinstance(value, Tensor) and value.is_floating_point():
            value.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for value, source in zip(late, arguments, strict=True):
            if isinstance(value, Tensor):
                value.copy_(source)
        out = operation(*late)
    torch.cuda.synchronize()
    assert_equal([out] if isinstance(out, Tensor) else list(out), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_second_device(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    assert_equal(run("cuda:1", name), run("cpu", name))
    assert torch.cuda.current_device() == 0


def test_a_training_step_never_waits() -> None:
    sae = SparseAutoencoder(D, SaeConfig(num_latents=F, k=K), device="cuda")
    optimiser = SaeAdam([{"params": [sae.W_dec], "unit_norm": True}, {"params": [sae.b_dec]}])
    x = torch.randn(B, D, device="cuda")
    for step in range(3):
        if step == 2:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            losses.total(sae(x), "fvu", 1e-3, 1 / 32).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_adam_gives_the_bytes_of_the_cpu() -> None:
    state = [torch.nn.functional.normalize(torch.randn(50, D)), torch.randn(50, D), *torch.rand(2, 50, D)]
    moved = [tensor.cuda() for tensor in state]
    options = (3, 0.01, 0.9, 0.999, 1e-8, True)
    torch.ops.finescope.sae_adam_step_(*state, *options)
    torch.ops.finescope.sae_adam_step_(*moved, *options)
    assert_equal(moved, state)

"""torch.compile takes every operation, and an autoencoder, without breaking the graph, on every device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finescope import SaeConfig
from finescope.sae import SparseAutoencoder
from support.cuda_calls import CALLS, arguments, every_call, run
from support.equivalence import assert_same_bytes

PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@PLACES
@every_call
def test_an_operation(call: str, place: str) -> None:
    operation = getattr(torch.ops.finescope, CALLS[call][0]).default

    def job(*args: Any) -> Any:
        return operation(*args)

    wanted = tuple(tensor.clone() for tensor in run(call, arguments(call, device=place)))
    args = arguments(call, device=place)
    out = torch.compile(job, backend="aot_eager", fullgraph=True)(*args)
    got = (args[0], args[2], args[3]) if out is None else (out,) if isinstance(out, Tensor) else tuple(out)
    assert_same_bytes(tuple(t.cpu() for t in got), tuple(t.cpu() for t in wanted), call)


# Dynamo makes an instance of the function whose methods it traces, which torch itself warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@PLACES
@pytest.mark.parametrize("multi_topk", [False, True])
def test_the_loss_of_an_autoencoder(place: str, multi_topk: bool) -> None:
    sae = SparseAutoencoder(24, SaeConfig(num_latents=1500, k=8, multi_topk=multi_topk), device=place)
    x = torch.randn(40, 24, device=place)

    def loss(batch: Tensor) -> Tensor:
        terms = sae(batch)
        return terms.fvu + terms.multi_topk_fvu / 8 + terms.l1_loss / 100

    loss(x).backward()
    wanted = [parameter.grad.clone() for parameter in sae.parameters()]
    sae.zero_grad(set_to_none=True)
    torch.compile(loss, backend="aot_eager", fullgraph=True)(x).backward()
    for parameter, grad in zip(sae.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


# The compiler's own modules warn, of deprecated parts of torch for one, when they are first loaded.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.requires_cuda
def test_inductor_keeps_the_bytes() -> None:
    """With the compiler that users get: what stands around the operations is fused, they are not."""
    weight, bias = torch.randn(3000, 64, device="cuda"), torch.randn(3000, device="cuda")
    x = torch.randn(50, 64, device="cuda")

    def job(batch: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = torch.ops.finescope.topk_encode(batch.relu(), weight, bias, 9)
        return values * 2, indices

    got = torch.compile(job, fullgraph=True)(x)
    assert_same_bytes(tuple(t.cpu() for t in got), tuple(t.cpu() for t in job(x)))

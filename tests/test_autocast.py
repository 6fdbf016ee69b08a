"""Autocast, which rounds matrix products to bfloat16, never reaches the operations."""

from __future__ import annotations

import pytest
import torch

from finescope import Index, SaeConfig
from finescope.sae import SparseAutoencoder
from support.cuda_calls import CALLS, arguments, every_call, run
from support.equivalence import assert_same_bytes

PLACES = pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.requires_cuda)])


@PLACES
@every_call
def test_an_operation(call: str, place: str) -> None:
    wanted = tuple(tensor.clone() for tensor in run(call, arguments(call, device=place)))
    args = arguments(call, device=place)
    with torch.autocast(place, torch.bfloat16):
        got = run(call, args)
    assert_same_bytes(tuple(t.cpu() for t in got), tuple(t.cpu() for t in wanted), CALLS[call][0])


@PLACES
def test_codes_of_an_autoencoder_and_a_search(place: str) -> None:
    sae = SparseAutoencoder(32, SaeConfig(num_latents=1500, k=8), device=place)
    x, corpus = torch.randn(20, 32, device=place), torch.randn(3000, 32, device=place)
    for _ in range(3):  # the encoder's packed copy is made on a later call
        with torch.no_grad():
            plain = (*sae.encode(x), *Index(corpus).search(x, 10))
            with torch.autocast(place, torch.bfloat16):
                got = (*sae.encode(x), *Index(corpus).search(x, 10))
        assert_same_bytes(tuple(t.cpu() for t in got), tuple(t.cpu() for t in plain))


@PLACES
def test_gradients_keep_their_dtype(place: str) -> None:
    weight = torch.randn(1500, 32, device=place, requires_grad=True)
    x = torch.randn(20, 32, device=place)
    with torch.autocast(place, torch.bfloat16):
        values, _ = torch.ops.finescope.topk_encode(x, weight, None, 8)
    (grad,) = torch.autograd.grad(values.square().sum(), weight)
    plain, _ = torch.ops.finescope.topk_encode(x, weight, None, 8)
    (wanted,) = torch.autograd.grad(plain.square().sum(), weight)
    assert_same_bytes((grad.cpu(),), (wanted.cpu(),))

"""Gradients: against finite differences, against dense autograd, and only where they are owed.

A sparse backward that forgets a repeated latent, or lets a latent that did not fire learn, still trains; only
worse.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from finescope import ops
from finescope.ops.schemas import call
from support.backends import Watch


def _leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def test_encode_gradcheck() -> None:
    x, weight, bias = _leaf(6, 11), _leaf(25, 11), _leaf(25)
    assert gradcheck(lambda x, w, b: ops.topk_encode(x, w, b, 5)[0], (x, weight, bias))
    assert gradcheck(lambda x, w: ops.topk_encode(x, w, None, 25)[0], (x, weight))
    assert gradgradcheck(lambda x, w, b: ops.topk_encode(x, w, b, 5)[0], (x, weight, bias))


def test_decode_gradcheck() -> None:
    values, weight, bias = _leaf(6, 4), _leaf(9, 7), _leaf(7)
    indices = torch.randint(0, 9, (6, 4))
    indices[0] = 3  # the same latent four times in one row
    assert gradcheck(lambda v, w, b: ops.sparse_decode(v, indices, w, b), (values, weight, bias))
    assert gradgradcheck(lambda v, w, b: ops.sparse_decode(v, indices, w, b), (values, weight, bias))


def test_helpers_gradcheck() -> None:
    rows, weight, values = _leaf(6, 7), _leaf(9, 7), _leaf(6, 4)
    indices = torch.randint(0, 9, (6, 4))
    assert gradcheck(lambda r, w: call("sampled_dot", r, indices, w), (rows, weight))
    assert gradcheck(lambda v, r: call("scatter_rows", v, indices, r, 9), (values, rows))
    assert gradcheck(lambda v: call("scatter_values", v, indices, 9), (values,))


def test_encode_matches_dense_autograd() -> None:
    x, weight, bias = _leaf(40, 16), _leaf(120, 16), _leaf(120)
    values, indices = ops.topk_encode(x, weight, bias, 9)
    weights = torch.randn_like(values)
    sparse = torch.autograd.grad((values * weights).sum(), (x, weight, bias))
    dense = torch.relu(x @ weight.T + bias).gather(1, indices)
    for got, wanted in zip(
        sparse, torch.autograd.grad((dense * weights).sum(), (x, weight, bias)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_autoencoder_matches_dense_autograd() -> None:
    x, weight, decoder, centre = _leaf(30, 12), _leaf(60, 12), _leaf(60, 12), _leaf(12)
    values, indices = ops.topk_encode(x - centre, weight, None, 6)
    loss = (ops.sparse_decode(values, indices, decoder, centre) - x).square().mean()
    got = torch.autograd.grad(loss, (x, weight, decoder, centre))
    dense = torch.relu((x - centre) @ weight.T)
    kept = torch.zeros_like(dense).scatter(1, indices, dense.gather(1, indices))
    wanted = torch.autograd.grad((kept @ decoder + centre - x).square().mean(), (x, weight, decoder, centre))
    for left, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(left, right)


def test_latents_that_did_not_fire_get_no_gradient() -> None:
    x, weight = _leaf(5, 8), _leaf(40, 8)
    bias = torch.full((40,), -1e3, dtype=torch.float64)
    bias[7] = 50.0
    bias.requires_grad_()
    values, indices = ops.topk_encode(x, weight, bias, 6)
    assert (values[:, 1:] == 0).all()
    assert (indices[:, 0] == 7).all()
    values.sum().backward()
    assert bias.grad is not None
    assert weight.grad is not None
    others = torch.arange(40) != 7
    assert (bias.grad[others] == 0).all()
    assert (weight.grad[others] == 0).all()
    assert bias.grad[7] == 5
    torch.testing.assert_close(x.grad, weight[7].detach().expand(5, -1))


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_only_the_gradients_that_are_needed(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from finescope.ops import autograd

    called: list[str] = []

    def record(name: str, *args: object) -> Tensor:
        called.append(name)
        return call(name, *args)

    monkeypatch.setattr(autograd, "call", record)
    leaves = {"x": torch.randn(5, 8), "weight": torch.randn(30, 8), "bias": torch.randn(30)}
    leaves[needed].requires_grad_()
    ops.topk_encode(*leaves.values(), 4)[0].sum().backward()
    assert called == [{"x": "sparse_decode", "weight": "scatter_rows", "bias": "scatter_values"}[needed]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_have_the_dtypes_of_their_inputs(dtype: torch.dtype) -> None:
    x, weight, bias = _leaf(6, 16, dtype=dtype), _leaf(50, 16, dtype=dtype), _leaf(50, dtype=torch.float32)
    values, indices = ops.topk_encode(x, weight, bias, 5)
    assert values.dtype == torch.float32
    ops.sparse_decode(values, indices, weight).float().square().sum().backward()
    for leaf in (x, weight, bias):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype


def test_a_backward_never_holds_one_row_for_each_kept_entry() -> None:
    """[B,k,D] would be 32 times the output here; nothing near that may exist even for a moment."""
    x, weight = _leaf(512, 128, dtype=torch.float32), _leaf(2048, 128, dtype=torch.float32)
    with Watch() as watch:
        values, indices = ops.topk_encode(x, weight, None, 64)
        ops.sparse_decode(values, indices, weight).square().sum().backward()
    assert watch.seen > 100
    assert watch.largest <= 2048 * 512 < 512 * 64 * 128
    assert weight.grad is not None


def test_gradients_are_the_same_bytes_for_any_thread_count() -> None:
    threads = torch.get_num_threads()
    grads = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            x, weight, bias = (_leaf(*shape, dtype=torch.float32) for shape in ((300, 32), (90, 32), (90,)))
            values, indices = ops.topk_encode(x, weight, bias, 20)
            ops.sparse_decode(values, indices, weight, bias[:32]).square().sum().backward()
            grads.append([leaf.grad for leaf in (x, weight, bias)])
    finally:
        torch.set_num_threads(threads)
    for other in grads[1:]:
        for left, right in zip(grads[0], other, strict=True):
            assert left is not None
            assert torch.equal(left, right)


def test_searches_and_pooling_have_no_gradient() -> None:
    """Their results must say so, instead of claiming one that torch then warns about."""
    x, values = _leaf(6, 4), _leaf(6, 2)
    latents, offsets = torch.randint(0, 9, (6, 2)), torch.tensor([0, 2, 6])
    sides = (torch.arange(7), torch.zeros(6, dtype=torch.int32), _leaf(6))
    for result in (
        ops.cosine_topk(x, x, 3),
        ops.pool_codes(values, latents, offsets, keep=3),
        (ops.pair_scores(x, x, torch.zeros(6, 1, dtype=torch.int64)),),
        call("sparse_cosine_topk", *sides, *sides, 1, 3),
        (call("sparse_pair_scores", *sides, *sides, 1, torch.zeros(6, 1, dtype=torch.int64)),),
    ):
        assert not any(part.requires_grad for part in result)

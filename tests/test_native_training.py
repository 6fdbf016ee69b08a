"""Every instruction set's training kernels against definitions written out in NumPy, byte for byte.

A wrong tail loop, a fused multiply-add or a reordered sum shows only at some widths and on some instruction
sets, and would make runs on two machines part ways.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finescope.ops.registry import DEFAULTS
from support import training_oracle as oracle
from support.backends import op
from support.equivalence import same_bytes

pytestmark = pytest.mark.requires_native

WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257]
DTYPES = [torch.float32, torch.float64]


def code(B: int, K: int, F: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    values, indices = torch.randn(B, K, dtype=dtype), torch.randint(0, F, (B, K))
    return (
        values,
        indices,
        torch.randn(F, D, dtype=dtype),
        torch.randn(D, dtype=dtype),
        torch.randn(B, D, dtype=dtype),
    )


def check_all(got: tuple[Tensor, ...], wanted: list[Tensor], where: object) -> None:
    assert len(got) == len(wanted)
    for number, (left, right) in enumerate(zip(got, wanted, strict=True)):
        assert same_bytes(left, right), (where, number)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_residual_at_every_width(isa: str, dtype: torch.dtype) -> None:
    for D in WIDTHS:
        values, indices, weight, bias, target = code(3, 5, 11, D, dtype)
        for k, added in ((5, bias), (2, bias), (0, None)):
            args = (values, indices, weight, added, target, k)
            check_all(op.decode_residual(*args), oracle.decode_residual(*args), (D, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_grads_at_every_width(isa: str, dtype: torch.dtype) -> None:
    for D in WIDTHS:
        values, indices, _, _, x = code(7, 5, 6, D, dtype)
        grad, grad_values = torch.randn(2, 7, D, dtype=dtype), torch.randn_like(values)
        for R, k in ((1, 5), (2, 2), (2, 0), (2, 5)):
            args = (grad_values, values, indices, x, grad[:R], k, 6)
            check_all(op.weight_grads(*args), oracle.weight_grads(*args), (D, R, k))


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adam_at_every_width(isa: str, dtype: torch.dtype, unit_norm: bool) -> None:
    for D in WIDTHS:
        w, g, m = (torch.randn(5, D, dtype=dtype) for _ in range(3))
        v = torch.rand(5, D, dtype=dtype)
        w[2] = g[2] = m[2] = v[2] = 0.0
        if unit_norm:
            w = torch.nn.functional.normalize(w)
        options = (3, 0.01, 0.9, 0.999, 1e-8, unit_norm)
        wanted = oracle.adam_step(w, g, m, v, *options)
        op.sae_adam_step_(w, g, m, v, *options)
        check_all((w, m, v), wanted, D)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_adam_with_scales_is_adam_with_what_they_stand_for(isa: str, unit_norm: bool) -> None:
    state = [torch.nn.functional.normalize(torch.randn(5, 40)), *torch.rand(3, 5, 40)]
    twin = [tensor.clone() for tensor in state]
    root2 = math.sqrt(1 - 0.999**7)
    scales = torch.tensor([0.01 * root2 / (1 - 0.9**7), 1e-8 * root2], dtype=torch.float64)
    op.sae_adam_step_(*state, 7, 0.01, 0.9, 0.999, 1e-8, unit_norm)
    op.sae_adam_step_(*twin, 1, 0.0, 0.9, 0.999, 0.0, unit_norm, scales)
    check_all(tuple(twin), state, "scales")


def test_defaults_are_the_same_operations(device: str) -> None:
    values, indices, weight, bias, x = code(40, 8, 30, 33, torch.float32)
    args = (values, indices, weight, bias, x, 2)
    check_all(op.decode_residual(*args), list(DEFAULTS["decode_residual"](*args)), "decode")
    grads = (torch.randn_like(values), values, indices, x, torch.randn(2, 40, 33), 2, 30)
    check_all(op.weight_grads(*grads), list(DEFAULTS["weight_grads"](*grads)), "grads")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_adam_default_and_kernel_agree_to_rounding(device: str, dtype: torch.dtype) -> None:
    state = [
        torch.randn(300, 40).to(dtype),
        torch.randn(300, 40).to(dtype),
        *torch.rand(2, 300, 40).to(dtype),
    ]
    twin = [tensor.clone() for tensor in state]
    op.sae_adam_step_(*state, 2, 0.01, 0.9, 0.999, 1e-8, False)
    DEFAULTS["sae_adam_step_"](*twin, 2, 0.01, 0.9, 0.999, 1e-8, False)
    # The default rounds to 16 bits after every operation, the kernel once.
    bounds = {"rtol": 0.02, "atol": 0.01} if dtype.itemsize == 2 else {}
    for left, right in zip(state, twin, strict=True):
        torch.testing.assert_close(left, right, **bounds)


def test_threads_change_nothing() -> None:
    values, indices, weight, bias, x = code(300, 16, 500, 96, torch.float32)
    indices[:, 0] = 7  # one latent that every token has
    grads = (torch.randn_like(values), values, indices, x, torch.randn(2, 300, 96), 4, 500)
    state = [torch.nn.functional.normalize(weight), torch.randn(500, 96), *torch.rand(2, 500, 96)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            moved = [tensor.clone() for tensor in state]
            op.sae_adam_step_(*moved, 2, 0.01, 0.9, 0.999, 1e-8, True)
            results.append(
                [*op.decode_residual(values, indices, weight, bias, x, 4), *op.weight_grads(*grads), *moved]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        check_all(tuple(other), results[0], "threads")


def test_other_layouts_are_read_and_written_in_place() -> None:
    values, indices, weight, bias, x = code(6, 4, 9, 10, torch.float32)
    wanted = oracle.decode_residual(values, indices, weight, bias, x, 2)
    twisted = [t.t().contiguous().t() for t in (values, indices, weight, x)]
    got = op.decode_residual(twisted[0], twisted[1], twisted[2], bias, twisted[3], 2)
    check_all(got, wanted, "strides")
    state = [weight.clone(), torch.randn(9, 10), torch.randn(9, 10), torch.rand(9, 10)]
    expected = oracle.adam_step(*state, 1, 0.1, 0.9, 0.999, 1e-8, True)
    turned = [t.t().contiguous().t() for t in state]
    op.sae_adam_step_(*turned, 1, 0.1, 0.9, 0.999, 1e-8, True)
    check_all((turned[0], *turned[2:]), expected, "adam")


@pytest.mark.names_bad_data
@pytest.mark.parametrize("bad", [-1, 6, 2**62])
def test_index_out_of_range_is_named(bad: int) -> None:
    values, indices, weight, bias, x = code(3, 4, 6, 5, torch.float32)
    indices[1, 2] = bad
    decodings = op.decode_residual, DEFAULTS["decode_residual"]
    for decode, grads in zip(decodings, (op.weight_grads, DEFAULTS["weight_grads"]), strict=True):
        with pytest.raises(IndexError, match=str(bad)):
            decode(values, indices, weight, bias, x, 2)
        with pytest.raises(IndexError, match=str(bad)):
            grads(values, values, indices, x, x[None], 4, 6)


@pytest.mark.parametrize("name", ["dispatched", "default"])
def test_bad_arguments_are_refused_before_anything_is_read(name: str) -> None:
    def run(operation: str, *args: object) -> object:
        return (getattr(op, operation) if name == "dispatched" else DEFAULTS[operation])(*args)

    values, indices, weight, bias, x = code(3, 4, 6, 5, torch.float32)
    with pytest.raises(ValueError, match="k must lie in"):
        run("decode_residual", values, indices, weight, bias, x, 5)
    with pytest.raises(ValueError, match="target"):
        run("decode_residual", values, indices, weight, bias, x[:2], 2)
    with pytest.raises((TypeError, ValueError), match="weight must be"):
        run("decode_residual", values, indices, weight.double(), bias, x, 2)
    with pytest.raises(ValueError, match="grad must have shape"):
        run("weight_grads", values, values, indices, x, torch.zeros(3, 3, 5), 4, 6)
    with pytest.raises(ValueError, match="exp_avg must have shape"):
        run("sae_adam_step_", weight, weight, x, weight, 1, 0.1, 0.9, 0.999, 1e-8, False)
    with pytest.raises(ValueError, match="step"):
        run("sae_adam_step_", weight, weight, weight, weight, 0, 0.1, 0.9, 0.999, 1e-8, False)
    for scales in (torch.ones(2), torch.ones(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="scales must be"):
            run("sae_adam_step_", weight, weight, weight, weight, 1, 0.1, 0.9, 0.999, 1e-8, False, scales)
    with pytest.raises(ValueError, match="matrix"):
        run("sae_adam_step_", bias, bias, bias, bias, 1, 0.1, 0.9, 0.999, 1e-8, True)


def test_empty_inputs() -> None:
    values, indices, weight, bias, x = code(0, 4, 6, 5, torch.float32)
    out, residual, dots, errors = op.decode_residual(values, indices, weight, bias, x, 2)
    assert [t.shape for t in (out, residual, dots, errors)] == [(0, 5), (2, 0, 5), (2, 0, 4), (2, 0)]
    encoder, offset, decoder = op.weight_grads(values, values, indices, x, x[None], 4, 6)
    assert not any(tensor.any() for tensor in (encoder, offset, decoder))
    op.sae_adam_step_(x, x, x, x, 1, 0.1, 0.9, 0.999, 1e-8, True)

"""threshold_encode: the latents that are kept, and their values, are those of the fixed order in float64.

A screen that drops what lies just above its threshold, a rounding between a sum and its comparison, a row
that overflows its buffer and is lost: each is a byte that differs from a loop in NumPy. Thresholds are
therefore put where they hurt: on the pre-activations themselves, and one unit in the last place beside them.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from finescope import SparseCodes, ops
from finescope.ops import PackedMatrix
from finescope.ops.registry import DEFAULTS
from support import hard, oracle
from support.backends import CPU, Watch, implementations, op
from support.equivalence import assert_same_bytes

SCREENS = ("auto", "int8", "bf16", "float32", "none")
Codes = tuple[Tensor, Tensor, Tensor]


def wanted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Codes:
    """The definition, in NumPy."""
    dots = oracle.fixed_dots(oracle.array(x), oracle.array(weight))
    added = dots if bias is None else dots + oracle.array(bias)
    kept = added > oracle.array(threshold)
    values = added
    if scale is not None and offset is not None:
        values = oracle.array(scale) * dots + oracle.array(offset)
    row, latent = np.nonzero(kept)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return (
        torch.from_numpy(values[row, latent]).to(oracle.result_dtype(x, weight, bias)),
        torch.from_numpy(latent.astype(np.int32)),
        torch.from_numpy(indptr),
    )


def cut(
    x: Tensor, weight: Tensor, bias: Tensor | None, kept: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Thresholds on pre-activations of the latents: on every second one exactly, else just below."""
    dots = oracle.fixed_dots(oracle.array(x), oracle.array(weight))
    pre = torch.from_numpy(dots if bias is None else dots + oracle.array(bias))
    at = pre.sort(dim=0, descending=True).values[min(kept, len(x) - 1)].to(dtype)
    beside = torch.nextafter(at, torch.full_like(at, -math.inf))
    return torch.where(torch.arange(len(at)) % 2 == 0, at, beside)


def codes(found: Codes, latents: int) -> SparseCodes:
    values, indices, indptr = found
    return SparseCodes(indptr, indices, values, latents)


@pytest.mark.parametrize("width", [3, 70, 192])
@pytest.mark.parametrize("kind", hard.ENCODED)
def test_hard_data_with_thresholds_on_its_values(isa: str, kind: str, width: int) -> None:
    x, weight, bias = hard.encoding(kind, 9, 1300, width)
    for b in (bias, None):
        threshold = cut(x, weight, b, 3)
        truth = wanted(x, weight, b, threshold)
        assert truth[1].numel()
        for screen in SCREENS:
            got = op.threshold_encode(x, weight, b, threshold, None, None, screen)
            assert_same_bytes(got, truth, f"{screen} {kind} bias={b is not None}")


@pytest.mark.parametrize("w_type", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x_type", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_types(isa: str, x_type: torch.dtype, w_type: torch.dtype) -> None:
    x, weight = torch.randn(7, 40).to(x_type), torch.randn(300, 40).to(w_type)
    for bias_type in (torch.float32, torch.float64, torch.bfloat16):
        bias = torch.randn(300).to(bias_type)
        for kind in (torch.float32, torch.bfloat16, torch.float64):
            threshold = cut(x, weight, bias, 2, kind)
            assert_same_bytes(
                op.threshold_encode(x, weight, bias, threshold), wanted(x, weight, bias, threshold)
            )


@pytest.mark.parametrize("run", implementations("threshold_encode"))
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 15, 64, 65, 300])
@pytest.mark.parametrize(("latents", "width"), [(0, 4), (1, 1), (47, 16), (255, 33), (256, 64), (1000, 100)])
def test_sizes(run: Any, tokens: int, latents: int, width: int) -> None:
    x, weight, bias = torch.randn(tokens, width), torch.randn(latents, width), torch.randn(latents)
    threshold = torch.rand(latents) * math.sqrt(width)
    assert_same_bytes(run(x, weight, bias, threshold), wanted(x, weight, bias, threshold))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [3, 150, 700])
def test_from_no_latents_to_all(isa: str, tokens: int, share: float) -> None:
    x, weight = torch.randn(tokens, 48), torch.randn(3000, 48)
    scores = (x @ weight.T).flatten().sort(descending=True).values
    held = int(share * len(scores))
    limit = 1e6 if held == 0 else -1e6 if held == len(scores) else float(scores[held])
    threshold = torch.full((3000,), limit)
    truth = wanted(x, weight, None, threshold)
    for screen in ("auto", "int8", "float32"):
        assert_same_bytes(op.threshold_encode(x, weight, None, threshold, None, None, screen), truth, screen)


def test_one_token_that_holds_far_more_than_the_others(isa: str) -> None:
    x, weight = torch.randn(200, 64), torch.randn(6000, 64)
    x[77], weight[:, 0] = 0.0, weight[:, 0].abs() + 1
    x[77, 0] = 50.0
    threshold = torch.full((6000,), 25.0)
    truth = wanted(x, weight, None, threshold)
    lengths = truth[2].diff()
    assert lengths[77] > 5000
    assert lengths[78] < 100
    for screen in ("auto", "int8"):
        assert_same_bytes(op.threshold_encode(x, weight, None, threshold, None, None, screen), truth, screen)


@pytest.mark.parametrize("run", implementations("threshold_encode"))
@pytest.mark.parametrize("tokens", [5, 120])
def test_thresholds_beyond_all_numbers(run: Any, tokens: int) -> None:
    x, weight, bias = torch.randn(tokens, 20), torch.randn(600, 20), torch.randn(600)
    threshold = torch.randn(600) * 5
    threshold[::3], threshold[1::7], threshold[5::11] = math.inf, math.nan, 3e38
    assert_same_bytes(run(x, weight, bias, threshold), wanted(x, weight, bias, threshold))
    threshold[2::50], threshold[4::50] = -math.inf, -3e38
    assert_same_bytes(run(x, weight, bias, threshold), wanted(x, weight, bias, threshold))


@pytest.mark.parametrize("run", implementations("threshold_encode"))
def test_zero_is_not_above_zero_and_large_biases_do_not_hide_small_dots(run: Any) -> None:
    x, weight = torch.randn(130, 12), torch.randn(400, 12)
    x[3], weight[7] = 0.0, 0.0
    for size in (0.0, 1e-30, 1.0, 1e6, 1e15, 1e30):
        bias = torch.full((400,), size)
        # The dot decides whether their sum is above the bias itself.
        assert_same_bytes(run(x, weight, bias, bias), wanted(x, weight, bias, bias), f"{size}")
        tiny = x * 1e-20
        assert_same_bytes(run(tiny, weight, bias, bias), wanted(tiny, weight, bias, bias), f"{size}")


@pytest.mark.parametrize("tokens", [4, 90])
def test_values_by_another_affine_form(isa: str, tokens: int) -> None:
    x, weight, bias = torch.randn(tokens, 30), torch.randn(500, 30), torch.randn(500)
    threshold, scale, offset = torch.zeros(500), torch.randn(500).double().exp(), torch.randn(500)
    for given in ((scale, offset), (scale.float(), offset.double()), (-scale, offset)):
        got = op.threshold_encode(x, weight, bias, threshold + 3, *given)
        assert got[0].dtype == torch.float32
        assert_same_bytes(got, wanted(x, weight, bias, threshold + 3, *given))


@pytest.mark.parametrize("run", implementations("threshold_encode"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [6, 130])
def test_rows_that_are_not_finite_hold_one_nan_and_spoil_no_other(
    run: Any, dtype: torch.dtype, tokens: int
) -> None:
    x, weight, bias = torch.randn(tokens, 24).to(dtype), torch.randn(700, 24).to(dtype), torch.randn(700)
    threshold = torch.full((700,), 4.0)
    good = codes(run(x, weight, bias, threshold), 700)
    x[2, 1], x[4, 0], x[5, 7] = math.nan, math.inf, -math.inf
    got = codes(run(x, weight, bias, threshold), 700)
    for row in range(tokens):
        if row not in (2, 4, 5):
            assert got[row] == good[row]
            continue
        assert got[row].indices.tolist() == [0]
        assert got[row].values.isnan().all()
    for spoilt in ("weight", "bias"):
        bad_weight, bad_bias = weight.clone(), bias.clone()
        if spoilt == "weight":
            bad_weight[-1, 3] = math.inf
        else:
            bad_bias[7] = math.nan
        values, indices, indptr = run(x, bad_weight, bad_bias, threshold)
        assert indptr.tolist() == list(range(tokens + 1))
        assert not indices.any()
        assert values.isnan().all()


@pytest.mark.parametrize("run", implementations("threshold_encode"))
def test_threads_and_splits_of_the_batch(run: Any) -> None:
    x, weight, bias = torch.randn(500, 64), torch.randn(900, 64), torch.randn(900)
    threshold = cut(x, weight, bias, 8, torch.float32)
    truth = wanted(x, weight, bias, threshold)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert_same_bytes(run(x, weight, bias, threshold), truth)
    finally:
        torch.set_num_threads(before)
    for step in (1, 3, 50, 123):
        parts = [codes(run(part, weight, bias, threshold), 900) for part in x[:150].split(step)]
        assert SparseCodes.cat(parts) == codes(truth, 900)[:150]


@pytest.mark.requires_native
@pytest.mark.parametrize("screen", ["auto", "int8", "bf16", "float32", None])
def test_packed_for_any_instruction_set(screen: str | None) -> None:
    assert CPU is not None
    x, weight, bias = torch.randn(150, 80), torch.randn(1100, 80), torch.randn(1100)
    threshold, scale = cut(x, weight, bias, 6), torch.rand(1100)
    truth, other = wanted(x, weight, bias, threshold), wanted(x, weight, bias, threshold, scale, bias)
    before = CPU.active_isa()
    try:
        for isa in CPU.usable_isas():
            CPU.set_isa(isa)
            packed = PackedMatrix(weight, metric="encode", screen=screen)
            for at in {isa, before, CPU.usable_isas()[0]}:
                CPU.set_isa(at)
                for rows in (150, 3, 0):
                    got = packed.threshold_encode(x[:rows], bias, threshold)
                    assert got == codes(truth, 1100)[:rows]
                got = packed.threshold_encode(x, bias, threshold, scale=scale, offset=bias)
                assert got == codes(other, 1100)
    finally:
        CPU.set_isa(before)


def test_views(isa: str) -> None:
    x, weight = torch.randn(90, 60), torch.randn(800, 60)
    threshold = torch.full((800,), 9.0)
    for a, b in (
        (x[:, :33], weight[:, 20:53]),
        (x.T[:40].T, weight[::2, :40]),
        (x[::3, 1:50:2], weight.T[1:50:2].T),
    ):
        limits = threshold[: len(b)]
        assert_same_bytes(op.threshold_encode(a, b, None, limits), wanted(a, b, None, limits))


def test_one_number_for_all() -> None:
    x, weight = torch.randn(40, 16), torch.randn(90, 16)
    held = ops.threshold_encode(x, weight, None, torch.full((90,), 1.3, dtype=torch.float64))
    assert ops.threshold_encode(x, weight, None, 1.3) == held
    assert ops.threshold_encode(x, weight, None, torch.tensor(1.3, dtype=torch.float64)) == held
    stored = torch.tensor(1.3, dtype=torch.bfloat16)  # which is 1.296875
    assert ops.threshold_encode(x, weight, None, stored) == ops.threshold_encode(x, weight, None, 1.296875)
    held.validate()


def _loss(x: Tensor, weight: Tensor, bias: Tensor, *more: Tensor) -> Tensor:
    scale, offset = more if more else (None, None)
    held = ops.threshold_encode(x, weight, bias, 0.5, scale=scale, offset=offset)
    return (held.values * torch.arange(1, held.nnz + 1)).sum()


def test_gradients() -> None:
    x, weight, bias = (
        torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((6, 5), (90, 5), (90,))
    )
    scale, offset = (torch.randn(90, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert gradcheck(_loss, (x, weight, bias))
    assert gradcheck(_loss, (x, weight, bias.detach(), scale, offset))
    # Against autograd through the dense matrix.
    held = ops.threshold_encode(x, weight, bias, 0.5)
    grad = torch.randn(held.nnz, dtype=torch.float64)
    got = torch.autograd.grad(held.values, (x, weight, bias), grad)
    pre = x @ weight.T + bias
    truth = torch.autograd.grad(pre[pre > 0.5], (x, weight, bias), grad)
    for left, right in zip(got, truth, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_narrow_types_with_empty_and_long_rows(dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, 12).to(dtype), torch.randn(400, 12).to(dtype)
    x[2] = 0.0
    x, weight = x.requires_grad_(), weight.requires_grad_()
    held = ops.threshold_encode(x, weight, None, 1.0)
    lengths = held.indptr.diff()
    assert lengths[2] == 0
    assert lengths.max() > 64
    grad = torch.randn(held.nnz)
    found = torch.autograd.grad(held.values, (x, weight), grad)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    pre = wide[0] @ wide[1].T
    for got, truth in zip(found, torch.autograd.grad(pre[pre > 1.0], wide, grad.double()), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), truth, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2
        )


def test_the_mark_of_a_bad_row_passes_no_gradient() -> None:
    x, weight = torch.randn(4, 8), torch.randn(30, 8).requires_grad_()
    bias = torch.zeros(30, requires_grad=True)
    x[1, 0] = math.nan
    held = ops.threshold_encode(x, weight, bias, 0.0)
    held.values.nan_to_num().sum().backward()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()


def test_torch_checks_it() -> None:
    x, weight, bias = (torch.randn(*s).requires_grad_() for s in ((5, 9), (40, 9), (40,)))
    opcheck(torch.ops.finescope.threshold_encode.default, (x, weight, bias, torch.zeros(40)))
    more = (torch.randn(40), torch.randn(40))
    opcheck(torch.ops.finescope.threshold_encode.default, (x, weight, None, torch.ones(40), *more))
    packed = torch.zeros(0, dtype=torch.uint8)
    flat = x.detach(), weight.detach(), bias.detach()
    opcheck(torch.ops.finescope.threshold_encode_packed.default, (*flat, torch.zeros(40), packed))


def test_what_users_are_told() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6)
    with pytest.raises(ValueError, match="scale and offset belong together, and offset is None"):
        ops.threshold_encode(x, weight, bias, 0.0, scale=bias)
    with pytest.raises(ValueError, match=r"threshold must have shape \[F\] with F=6, got \[5\]"):
        ops.threshold_encode(x, weight, bias, bias[:5])
    with pytest.raises(TypeError, match="threshold must be float16, bfloat16, float32 or float64"):
        ops.threshold_encode(x, weight, bias, bias > 0)
    with pytest.raises(ValueError, match="was packed for metric 'cosine', not for 'encode'"):
        PackedMatrix(weight).threshold_encode(x, bias, 0.0)


def test_the_default_body_needs_little_memory() -> None:
    x, weight = torch.randn(2000, 32), torch.randn(5000, 32)
    with Watch() as watch:
        DEFAULTS["threshold_encode"](x, weight, None, torch.full((5000,), 22.0))
    assert watch.seen
    assert watch.largest <= 1 << 19  # of the ten million scores


_MEMORY = """
import torch
from pathlib import Path
from finescope import ops

def peak():  # ru_maxrss would count that of the parent too
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

torch.manual_seed(0)
B, D, F = 4096, 256, 32768
x, weight, limits = torch.randn(B, D), torch.randn(F, D), torch.full((F,), {limit})
packed = ops.PackedMatrix(weight, metric="encode")

def run(rows):
    if {packed}:
        return packed.threshold_encode(rows, None, limits)
    return ops.threshold_encode(rows, weight, None, limits)

run(x[:16])
before = peak()
codes = run(x)
room = 0 if {packed} else packed.packed.numel() / 2**20
print(peak() - before - room, codes.nnz * 8 / 2**20, codes.nnz / B)
"""


@pytest.mark.requires_native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("limit", "least"), [(48.0, 10), (16.0, 3000)])
@pytest.mark.parametrize("packed", [True, False])
def test_peak_memory(packed: bool, limit: float, least: int) -> None:
    """64 MiB, what is returned, and the packed weights (made before); never the 512 MiB of [B,F]."""
    command = [sys.executable, "-c", _MEMORY.format(packed=packed, limit=limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, result, held = map(float, done.stdout.split())
    assert held > least
    assert peak < 64 + result, done.stdout

"""Whatever the CPU engine screens with, and on whatever data, the answer is the oracle's bytes.

Small problems are scanned exactly; these are just large enough to be screened, in every precision on every
instruction set of this machine. The kinds of data are those that make a screen useless (ties, duplicates,
rows that differ in the last place), stretch its bounds (outliers, a common mean, rows of very different
sizes) or leave the range of its arithmetic (huge, tiny, subnormal).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finescope import ops
from finescope.ops import native
from support import hard, oracle
from support.equivalence import assert_same_bytes
from support.rows import KINDS, rows

pytestmark = pytest.mark.requires_native

CPU = native.module("cpu")
USABLE = CPU.usable_isas() if CPU is not None else []
SCREENS = ("auto", "int8", "bf16", "float32", None)


@pytest.fixture(autouse=True)
def _restore_isa() -> Iterator[None]:
    before = CPU.active_isa()
    yield
    CPU.set_isa(before)


@pytest.mark.parametrize("width", [3, 70, 192])
@pytest.mark.parametrize("kind", hard.ENCODED)
def test_encode(kind: str, width: int) -> None:
    x, weight, bias = hard.encoding(kind, 9, 1300, width)
    for b in (bias, None):
        wanted = oracle.encode(x, weight, b, 17)
        for isa in USABLE:
            CPU.set_isa(isa)
            for screen in SCREENS:
                assert_same_bytes(ops.topk_encode(x, weight, b, 17, screen=screen), wanted, f"{isa} {screen}")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_search(kind: str, metric: str) -> None:
    given = hard.search(kind, metric, 7, 1500)
    sides = given.queries, given.corpus, 20
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            found = ops.cosine_topk(*sides, metric=metric, screen=screen)
            assert_same_bytes(found, given.plain, f"{isa} {screen}")
            found = ops.cosine_topk(*sides, metric=metric, screen=screen, **given.options)
            assert_same_bytes(found, given.restricted, f"{isa} {screen} with options")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x, weight = rows("gaussian", 8, 130, dtype, 1), rows("outliers", 1400, 130, dtype, 2)
    encoded = oracle.encode(x, weight, None, 9)
    found = oracle.search(oracle.dense_scores(x, weight, "cosine"), 9, oracle.result_dtype(x))
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            assert_same_bytes(ops.topk_encode(x, weight, None, 9, screen=screen), encoded, f"{isa} {screen}")
            assert_same_bytes(ops.cosine_topk(x, weight, 9, screen=screen), found, f"{isa} {screen}")


def test_on_the_bound() -> None:
    x, weight = hard.on_the_bound()
    wanted = oracle.encode(x, weight, None, 32)
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            assert_same_bytes(ops.topk_encode(x, weight, None, 32, screen=screen), wanted, f"{isa} {screen}")


def test_scores_far_below_zero() -> None:
    """Rows that point away from every query, and no others may be returned: sums near the least."""
    away = rows("gaussian", 1, 64, torch.float32, 1)
    x, weight = (away + 0.3 * rows("gaussian", n, 64, torch.float32, n) for n in (60, 3000))
    mask = torch.arange(3000) % 2 == 0
    weight[mask] *= -1  # half of them, so that no mean is taken out of all
    wanted = oracle.search(oracle.dense_scores(x, weight, "ip"), 20, torch.float32, mask=mask)
    assert wanted[0].max() < 0
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            found = ops.cosine_topk(x, weight, 20, metric="ip", mask=mask, screen=screen)
            assert_same_bytes(found, wanted, f"{isa} {screen}")

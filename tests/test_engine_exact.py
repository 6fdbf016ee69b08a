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
from support import oracle
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
@pytest.mark.parametrize("kind", [*KINDS, "sparse", "zeros"])
def test_encode(kind: str, width: int) -> None:
    base = "gaussian" if kind in ("sparse", "zeros") else kind
    x, weight = rows(base, 9, width, torch.float32, 1), rows(base, 1300, width, torch.float32, 2)
    if kind == "sparse":
        x, weight = (side * (torch.rand(side.shape) < 0.1) for side in (x, weight))
    if kind == "zeros":
        x[::3], weight[::2] = 0, 0
    bias = rows("heavy", 1, 1300, torch.float32, 3)[0] * x.abs().amax()
    for b in (bias, None):
        wanted = oracle.encode(x, weight, b, 17)
        for isa in USABLE:
            CPU.set_isa(isa)
            for screen in SCREENS:
                assert_same_bytes(ops.topk_encode(x, weight, b, 17, screen=screen), wanted, f"{isa} {screen}")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", KINDS)
def test_search(kind: str, metric: str) -> None:
    queries, corpus = rows(kind, 7, 72, torch.float32, 1), rows(kind, 1500, 72, torch.float32, 2)
    corpus[3], corpus[10, 5], corpus[11, 71], queries[2, 1] = 0, float("nan"), float("inf"), float("-inf")
    scores = oracle.dense_scores(queries, corpus, metric)
    plain = oracle.search(scores, 20, torch.float32)
    options = {
        "exclude": torch.stack([plain[1][:, 0] + 5, plain[1][:, 3] + 5, torch.full((7,), -1)], dim=1),
        "mask": torch.rand(1500) < 0.6,
        "id_offset": 5,
    }
    low = oracle.search(scores, 20, torch.float32, **options)[0][0, 9].item()
    wanted = oracle.search(scores, 20, torch.float32, **options, min_score=low)
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            found = ops.cosine_topk(queries, corpus, 20, metric=metric, screen=screen)
            assert_same_bytes(found, plain, f"{isa} {screen}")
            found = ops.cosine_topk(
                queries, corpus, 20, metric=metric, screen=screen, min_score=low, **options
            )
            assert_same_bytes(found, wanted, f"{isa} {screen} with options")


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
    """Scores at the edge of the k best differ by far less than any screen can tell apart."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(256, generator=generator)
    weight = torch.randn(3000, 256, generator=generator) * 0.01
    # Twice as many rows as are asked for, all within a few units in the last place of one another.
    crowd = torch.randperm(3000, generator=generator)[:64]
    weight[crowd] = direction * (1 + torch.randint(-3, 4, (64, 1), generator=generator) * 2.0**-23)
    x = torch.stack([direction, direction * 0.37, direction + 0.01 * torch.randn(256, generator=generator)])
    x = torch.cat([x, torch.randn(20, 256, generator=generator)])
    wanted = oracle.encode(x, weight, None, 32)
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in SCREENS:
            assert_same_bytes(ops.topk_encode(x, weight, None, 32, screen=screen), wanted, f"{isa} {screen}")

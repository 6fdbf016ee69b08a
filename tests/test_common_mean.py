"""Rows that have nearly everything in common: what they share is taken out before they are screened.

The screen then works on small differences of large numbers, so results are held against the oracle where
these differences are ordinary, where they are a few units in the last place, where they are nothing at all,
and where there is no mean that float32 holds.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from finescope import ops
from finescope.ops import PackedMatrix, native
from support import oracle
from support.equivalence import assert_same_bytes

pytestmark = pytest.mark.requires_native

CPU = native.module("cpu")
USABLE = CPU.usable_isas() if CPU is not None else []
WIDTH, ROWS, K = 80, 1500, 20
DATA = ("1", "10", "100", "1e4", "1e6", "ties", "equal", "huge", "overflow", "tiny", "sizes", "no-mean-in-x")


@pytest.fixture(autouse=True)
def _restore_isa() -> Iterator[None]:
    before = CPU.active_isa()
    yield
    CPU.set_isa(before)


def shifted(kind: str) -> tuple[Tensor, Tensor]:
    """Rows x and w with a mean in common."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(120, WIDTH, generator=generator)
    w = torch.randn(ROWS, WIDTH, generator=generator)
    mean = torch.randn(WIDTH, generator=generator)
    if kind == "ties":  # a third of all rows twice, differences on a grid of units in the last place
        w = mean * 64.0 + torch.randint(-2, 3, w.shape, generator=generator) * 2.0**-18
        w[::3] = w[1::3]
        return x + mean * 64.0, w
    if kind == "equal":
        return x + mean, mean.expand(ROWS, WIDTH).clone()
    if kind == "huge":  # the squares of the mean are beyond float32
        return (x + 30 * mean) * 1e25, (w + 30 * mean) * 1e25
    if kind == "overflow":  # and so is the sum of the rows
        return x + mean, (w * 0.01 + mean.sign()) * 3e38 / 1.05
    if kind == "tiny":
        return (x + 30 * mean) * 1e-40, (w + 30 * mean) * 1e-40
    if kind == "sizes":
        size = torch.exp2(torch.randint(-6, 7, (ROWS, 1), generator=generator).float())
        return x + 30 * mean, (w + 30 * mean) * size
    if kind == "no-mean-in-x":
        return x, w + 30 * mean
    return x + float(kind) * mean, w + float(kind) * mean


@pytest.mark.parametrize("kind", DATA)
def test_encode(kind: str) -> None:
    x, weight = shifted(kind)
    # Half of all scores of a typical row are positive, and some rows have fewer than k that are.
    bias = -(weight.double() @ x.double().mean(dim=0)).float()
    bias = bias.nan_to_num(0.0, 0.0, 0.0)
    for b in (bias, None):
        wanted = oracle.encode(x, weight, b, K)
        for isa in USABLE:
            CPU.set_isa(isa)
            for screen in ("auto", "int8", "bf16", "float32"):
                name = f"{isa} {screen}"
                assert_same_bytes(ops.topk_encode(x, weight, b, K, screen=screen), wanted, name)
                packed = PackedMatrix(weight, metric="encode", screen=screen)
                for rows in (slice(0, 120), slice(3, 8)):
                    part = tuple(side[rows] for side in wanted)
                    assert_same_bytes(packed.topk_encode(x[rows], b, K), part, f"{name} packed")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
@pytest.mark.parametrize("kind", DATA)
def test_search(kind: str, metric: str) -> None:
    queries, corpus = shifted(kind)
    queries, corpus = queries[:, ::2], corpus[:, ::2]  # rows that are not contiguous
    corpus[5], corpus[77, 3], queries[1] = 0.0, float("nan"), 0.0
    scores = oracle.dense_scores(queries, corpus, metric)
    plain = oracle.search(scores, K, torch.float32)
    options = {
        "exclude": torch.stack([plain[1][:, 0] + 5, plain[1][:, 3] + 5, torch.full((120,), -1)], dim=1),
        "mask": torch.arange(ROWS) % 3 != 0,
        "id_offset": 5,
    }
    low = oracle.search(scores, K, torch.float32, **options)[0][0, 9].item()
    wanted = oracle.search(scores, K, torch.float32, **options, min_score=low)
    for isa in USABLE:
        CPU.set_isa(isa)
        for screen in ("auto", "int8", "bf16", "float32"):
            name = f"{isa} {screen}"
            found = ops.cosine_topk(queries, corpus, K, metric=metric, screen=screen)
            assert_same_bytes(found, plain, name)
            packed = PackedMatrix(corpus, metric=metric, screen=screen)
            for rows in (slice(0, 120), slice(0, 5)):
                some = {**options, "exclude": options["exclude"][rows]}
                found = packed.search(queries[rows], K, min_score=low, **some)
                part = tuple(side[rows] for side in wanted)
                assert_same_bytes(found, part, f"{name} packed")


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_more_than_there_are(metric: str) -> None:
    queries, corpus = shifted("100")
    wanted = oracle.search(oracle.dense_scores(queries, corpus, metric), ROWS + 7, torch.float32)
    found = PackedMatrix(corpus, metric=metric).search(queries, ROWS + 7)
    assert_same_bytes(found, wanted)


def test_what_is_kept_of_it() -> None:
    """A copy holds the mean, and a number for each row, only where there is a mean worth taking out."""
    _, w = shifted("10")
    plain = PackedMatrix(torch.randn(ROWS, WIDTH)).packed.numel()
    extra = PackedMatrix(w).packed.numel() - plain
    assert 4 * (ROWS + WIDTH) <= extra <= 4 * (ROWS + WIDTH) + 256
    assert PackedMatrix(torch.randn(ROWS, WIDTH) + 0.1).packed.numel() == plain


def test_cosines_of_rows_whose_products_leave_float32() -> None:
    generator = torch.Generator().manual_seed(6)
    x, w = torch.randn(120, 40, generator=generator), torch.randn(ROWS, 40, generator=generator)
    w += x[0]  # many rows near each other, so that there are candidates to choose from
    for x_size, w_size in ((1e25, 1e25), (1e-25, 1e-25), (1.0, 3e37)):
        size = torch.exp2(torch.randint(-8, 1, (ROWS, 1), generator=generator).float())
        queries, corpus = x * x_size, w * size * w_size
        wanted = oracle.search(oracle.dense_scores(queries, corpus, "cosine"), K, torch.float32)
        for isa in USABLE:
            CPU.set_isa(isa)
            for screen in ("auto", "int8", "bf16", "float32"):
                found = PackedMatrix(corpus, screen=screen).search(queries, K)
                assert_same_bytes(found, wanted, f"{isa} {screen} {x_size}")

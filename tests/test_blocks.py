"""Blocks, threads and library settings never change a byte of the result; memory is bounded.

The second pass (ties at the edge, an untrustworthy matrix product) is rare on good data, so it is forced
here.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from finescope.ops import decode, dense, engine, fixed_order, pooling, sparse
from finescope.ops.registry import DEFAULTS
from support import oracle
from support.backends import Watch
from support.equivalence import assert_same_bytes
from support.rows import csr, rows

BLOCKS = [
    pytest.param(engine, "BLOCK_ELEMENTS", (1, 97, 4096), id="block"),
    pytest.param(engine, "WIDE_ELEMENTS", (1, 97, 4096), id="wide"),
    pytest.param(engine, "MIN_ROWS", (1, 3), id="rows"),
    pytest.param(fixed_order, "PAIR_ELEMENTS", (1, 50, 4096), id="pairs"),
    pytest.param(sparse, "_ENTRIES", (1, 50, 777), id="entries"),
]


@pytest.mark.parametrize(("module", "name", "sizes"), BLOCKS)
@pytest.mark.parametrize("kind", ["gaussian", "duplicates", "grid"])
def test_block_sizes(
    module: Any, name: str, sizes: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = rows(kind, 7, 20, torch.float32, 1), rows(kind, 150, 20, torch.float32, 2)
    bias = torch.randn(150)
    query, corpus = csr(x * (x > 0)), csr(weight * (weight > 0))

    def answers() -> tuple[Tensor, ...]:
        return (
            *DEFAULTS["topk_encode"](x, weight, bias, 9),
            *DEFAULTS["cosine_topk"](x, weight, 9),
            *DEFAULTS["cosine_topk"](x, weight.bfloat16(), 9, "ip", mask=bias > -1),
            *DEFAULTS["sparse_cosine_topk"](*query, *corpus, 20, 9),
        )

    wanted = answers()
    assert_same_bytes(wanted[:2], oracle.encode(x, weight, bias, 9))
    for size in sizes:
        monkeypatch.setattr(module, name, size)
        assert_same_bytes(answers(), wanted, f"{name}={size}")


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_block_sizes_of_sums(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, indices, table = torch.randn(50, 6), torch.randint(0, 40, (50, 6)), torch.randn(50, 12)
    offsets = torch.tensor([0, 3, 3, 40, 50])

    def answers() -> tuple[Tensor, ...]:
        return (
            DEFAULTS["sparse_decode"](values, indices, table, None),
            DEFAULTS["scatter_rows"](values, indices, table, 40),
            DEFAULTS["scatter_values"](values, indices, 40),
            *DEFAULTS["pool_codes"](values, indices, offsets, "mean", 5),
        )

    wanted = answers()
    monkeypatch.setattr(decode, "_BLOCK_ELEMENTS", size)
    monkeypatch.setattr(pooling, "_BLOCK_ENTRIES", size)
    assert_same_bytes(answers(), wanted)


# ------------------------------------------------------------------ the second pass


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each second pass was asked to redo."""
    asked: list[int] = []
    original = engine._second_pass

    def record(problem: engine.Problem, rows_: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
        asked.append(rows_.shape[0])
        return original(problem, rows_, known, k)

    monkeypatch.setattr(engine, "_second_pass", record)
    return asked


def test_good_data_needs_no_second_pass(passes: list[int]) -> None:
    x, weight = torch.randn(300, 256), torch.randn(4000, 256)
    DEFAULTS["topk_encode"](x, weight, torch.randn(4000), 32)
    DEFAULTS["cosine_topk"](x[:50], weight, 100)
    DEFAULTS["topk_encode"](torch.zeros(4, 256), weight, None, 32)  # padding tokens
    assert not passes


def test_ties_at_the_edge_are_settled_by_a_second_pass(passes: list[int]) -> None:
    weight = rows("gaussian", 40, 16, torch.float32, 1).repeat(20, 1)
    x = torch.randn(30, 16)
    assert_same_bytes(DEFAULTS["topk_encode"](x, weight, None, 10), oracle.encode(x, weight, None, 10))
    assert sum(passes) == 30


@pytest.mark.parametrize("setting", ["bf16", "tf32"])
def test_library_settings_that_lower_the_precision(setting: str) -> None:
    """``set_float32_matmul_precision`` lets torch multiply in bfloat16, for which the bound does not hold."""
    x, weight = torch.randn(64, 256), torch.randn(3000, 256)
    wanted = DEFAULTS["topk_encode"](x, weight, None, 20)
    assert dense._has_ieee_float32(x.device)
    library = torch.backends.mkldnn.matmul
    before = library.fp32_precision
    library.fp32_precision = setting
    try:
        assert not dense._has_ieee_float32(x.device)
        assert_same_bytes(DEFAULTS["topk_encode"](x, weight, None, 20), wanted)
    finally:
        library.fp32_precision = before


def test_a_product_that_lies_about_its_precision_is_caught(
    passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are held against the bound, so a library that rounds in secret can't spoil the result."""
    x, weight = torch.randn(64, 256), torch.randn(3000, 256)
    wanted = DEFAULTS["topk_encode"](x, weight, None, 20)
    honest = dense.Encode.screen

    def rough(self: dense.Encode, rows_: slice, cols: slice) -> Tensor:
        return honest(self, rows_, cols).bfloat16().float()

    monkeypatch.setattr(dense.Encode, "screen", rough)
    assert_same_bytes(DEFAULTS["topk_encode"](x, weight, None, 20), wanted)
    assert sum(passes) > 50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype, passes: list[int]) -> None:
    x, weight = torch.randn(64, 256), torch.randn(3000, 256)
    wanted = DEFAULTS["topk_encode"](x, weight, None, 20)
    with torch.autocast("cpu", dtype=dtype):
        assert_same_bytes(DEFAULTS["topk_encode"](x, weight, None, 20), wanted)
        assert_same_bytes(tuple(torch.ops.finescope.topk_encode(x, weight, None, 20)), wanted)
    assert not passes


def test_threads() -> None:
    threads = torch.get_num_threads()
    x, weight = torch.randn(300, 64), torch.randn(2000, 64)
    query, corpus = csr(x[:20].relu()), csr(weight.relu())
    seen = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            seen.append(
                (
                    *DEFAULTS["topk_encode"](x, weight, None, 16),
                    *DEFAULTS["cosine_topk"](x[:20], weight, 16),
                    *DEFAULTS["sparse_cosine_topk"](*query, *corpus, 64, 16),
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert_same_bytes(seen[1], seen[0])
    assert_same_bytes(seen[2], seen[0])


def test_square_roots_are_correctly_rounded() -> None:
    """Norms are part of a score's bytes; vector libraries are often one unit off."""
    numbers = torch.rand(50_000, dtype=torch.float64) * torch.exp2(
        torch.randint(-300, 300, (50_000,)).double()
    )
    roots = fixed_order.sqrt(numbers)
    assert roots.tolist() == [math.sqrt(number) for number in numbers.tolist()]


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("kind", ["gaussian", "equal"])
def test_the_score_matrix_never_exists(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the data, no tensor is larger than the block or an operand. "equal" needs the second pass."""
    monkeypatch.setattr(engine, "BLOCK_ELEMENTS", 1 << 14)
    monkeypatch.setattr(engine, "WIDE_ELEMENTS", 1 << 12)
    monkeypatch.setattr(engine, "MIN_ROWS", 16)
    monkeypatch.setattr(fixed_order, "PAIR_ELEMENTS", 1 << 12)
    monkeypatch.setattr(sparse, "_ENTRIES", 1 << 13)
    x, weight = rows(kind, 90, 16, torch.float32, 1), rows(kind, 3000, 16, torch.float32, 2)
    query, corpus = csr(x[:40].relu()), csr(weight.relu())
    jobs = {
        "encode": lambda: torch.ops.finescope.topk_encode(x, weight, None, 8),
        "bfloat16": lambda: torch.ops.finescope.topk_encode(x.bfloat16(), weight.bfloat16(), None, 8),
        "search": lambda: torch.ops.finescope.cosine_topk(x, weight, 8),
        "sparse": lambda: torch.ops.finescope.sparse_cosine_topk(*query, *corpus, 16, 8),
    }
    for name, job in jobs.items():
        with Watch() as watch:
            job()
        assert watch.seen > 20
        assert watch.largest <= max(1 << 14, weight.numel()), f"{name}: {watch.largest} elements"
    assert weight.numel() * 4 < 90 * 3000

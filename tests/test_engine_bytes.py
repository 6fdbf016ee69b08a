"""Threads, batch splits, layouts and the size of k never change a byte of what the CPU engine returns.

How work is split decides which thresholds a screen happens to have when, and so which candidates it lets
through; none of that may be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from finescope import ops
from finescope.ops import native
from support.equivalence import assert_same_bytes
from support.rows import rows

pytestmark = pytest.mark.requires_native

CPU = native.module("cpu")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, isa = torch.get_num_threads(), CPU.active_isa()
    yield
    torch.set_num_threads(threads)
    CPU.set_isa(isa)


def _in_parts(x: Tensor, size: int, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    parts = [run(part) for part in x.split(size)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("screen", ["int8", "bf16", "float32", None])
def test_threads_and_splits(screen: str | None) -> None:
    x, weight = rows("gaussian", 260, 96, torch.float32, 1), rows("heavy", 4000, 96, torch.float32, 2)

    def encode(part: Tensor) -> tuple[Tensor, Tensor]:
        return ops.topk_encode(part, weight, None, 24, screen=screen)

    def search(part: Tensor) -> tuple[Tensor, Tensor]:
        return ops.cosine_topk(part, weight, 24, screen=screen)

    for run in (encode, search):
        wanted = run(x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for size in (260, 101, 13, 1):
                # A row at a time takes another way through the engine; a few of them will do.
                part = x[:9] if size == 1 else x
                got = _in_parts(part, size, run)
                assert_same_bytes(got, (wanted[0][: len(part)], wanted[1][: len(part)]), f"{threads} {size}")


def test_nested() -> None:
    x, weight = rows("grid", 40, 64, torch.float32, 1), rows("grid", 6000, 64, torch.float32, 2)
    values, indices = ops.topk_encode(x, weight, None, 300)
    scores, ids = ops.cosine_topk(x, weight, 300)
    for k in (1, 7, 100):
        assert_same_bytes(ops.topk_encode(x, weight, None, k), (values[:, :k], indices[:, :k]), f"k={k}")
        assert_same_bytes(ops.cosine_topk(x, weight, k), (scores[:, :k], ids[:, :k]), f"k={k}")


def test_layouts() -> None:
    """Strided, expanded, transposed and misaligned inputs are read in place or copied, never misread."""
    wide, tall = torch.randn(20, 131), torch.randn(2600, 70)
    storage = torch.randn(1 + 20 * 64)
    for x, weight in [
        (wide[:, 1:65], tall[:, 3:67]),
        (wide[:, ::2][:, :64], tall[:, :64]),
        (wide[:1, :64].expand(20, 64), tall[:1, :64].expand(2600, 64)),
        (torch.randn(64, 20).T, torch.randn(64, 2600).T),
        (storage[1:].view(20, 64), tall[::2, 6:]),
    ]:
        for screen in ("int8", "float32", None):
            wanted = ops.topk_encode(
                x.clone().contiguous(), weight.clone().contiguous(), None, 9, screen=screen
            )
            assert_same_bytes(ops.topk_encode(x, weight, None, 9, screen=screen), wanted)


def test_degenerate() -> None:
    weight = torch.randn(3000, 12)
    for screen in ("auto", "int8", None):
        values, indices = ops.topk_encode(torch.randn(0, 12), weight, None, 4, screen=screen)
        assert values.shape == indices.shape == (0, 4)
        assert ops.topk_encode(torch.randn(3, 12), weight, None, 0, screen=screen)[0].shape == (3, 0)
        scores, ids = ops.cosine_topk(torch.randn(3, 12), weight, 3007, screen=screen)
        assert (ids[:, 3000:] == -1).all()
        assert (scores[:, 3000:] == -torch.inf).all()
        assert torch.equal(ids[:, :3000].sort(dim=1).values, torch.arange(3000).expand(3, -1))
        assert (ops.cosine_topk(torch.randn(3, 12), weight[:0], 2, screen=screen)[1] == -1).all()
        scores, ids = ops.cosine_topk(torch.zeros(8, 12), weight, 2, screen=screen)
        assert (scores == 0).all()
        assert (ids == torch.tensor([0, 1])).all()


def test_ids_beyond_32_bits() -> None:
    queries, corpus = torch.randn(8, 40), torch.randn(2000, 40)
    scores, ids = ops.cosine_topk(queries, corpus, 5)
    far = ops.cosine_topk(queries, corpus, 5, id_offset=1 << 40, exclude=ids[:, :1] + (1 << 40))
    assert torch.equal(far[1][:, :4], ids[:, 1:] + (1 << 40))
    assert torch.equal(far[0][:, :4], scores[:, 1:])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["gaussian", "grid", "duplicates", "outliers", "heavy", "mean", "near"]),
    tokens=st.integers(1, 40),
    width=st.integers(1, 150),
    latents=st.integers(1100, 2500),
    k=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_any_shape(kind: str, tokens: int, width: int, latents: int, k: int, seed: int) -> None:
    """Screened and scanned are two programs that share little; on any shape they agree."""
    x, weight = (
        rows(kind, tokens, width, torch.float32, seed),
        rows(kind, latents, width, torch.float32, seed + 1),
    )
    bias = rows("gaussian", 1, latents, torch.float32, seed)[0]
    wanted = ops.topk_encode(x, weight, bias, k, screen=None), ops.cosine_topk(x, weight, k, screen=None)
    for isa in CPU.usable_isas():
        CPU.set_isa(isa)
        for screen in ("int8", "bf16", "float32"):
            assert_same_bytes(
                ops.topk_encode(x, weight, bias, k, screen=screen), wanted[0], f"{isa} {screen}"
            )
            assert_same_bytes(ops.cosine_topk(x, weight, k, screen=screen), wanted[1], f"{isa} {screen}")

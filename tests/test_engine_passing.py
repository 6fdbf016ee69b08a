"""A matrix that is packed for one call: its panels are made while they are read, and never held as a whole.

What comes out must be what a packed matrix gives, which other tests hold against the oracle; among the inputs
are those that show only when the last panel has been read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finescope import ops
from finescope.ops import PackedMatrix
from support import oracle
from support.equivalence import assert_same_bytes

pytestmark = pytest.mark.requires_native

F = 6000  # so many that the candidates of all rows take less than the packed matrix would


def problem(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, width, generator=generator) for n in (rows, F))
    w *= torch.logspace(-1, 0, F)[torch.randperm(F, generator=generator)][:, None]
    return x, w, torch.randn(F, generator=generator)


@pytest.mark.parametrize("screen", ["int8", "bf16", "float32"])
@pytest.mark.parametrize(("rows", "width"), [(64, 300), (130, 1000)])
def test_encoding_is_that_of_a_packed_matrix(isa: str, screen: str, rows: int, width: int) -> None:
    x, w, bias = problem(rows, width)
    packed = PackedMatrix(w, metric="encode", screen=screen)
    for k in (1, 5):
        for given in (bias, None):
            found = ops.topk_encode(x, w, given, k, screen=screen)
            assert_same_bytes(found, packed.topk_encode(x, given, k), f"k={k}")


def test_encoding_is_that_of_the_oracle() -> None:
    x, w, bias = problem(40, 256)
    for screen in ("int8", "bf16", "float32"):
        found = ops.topk_encode(x, w, bias, 4, screen=screen)
        assert_same_bytes(found, oracle.encode(x, w, bias, 4), screen)


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_search_is_that_of_a_packed_matrix(isa: str, metric: str) -> None:
    x, w, _ = problem(64, 512)
    w[17, 3], w[F - 1, 5], w[40] = torch.nan, torch.inf, 0.0
    mask = torch.rand(F) < 0.9
    exclude = torch.randint(-1, F, (64, 2))
    for screen in ("int8", "bf16"):
        packed = PackedMatrix(w, metric=metric, screen=screen)
        for options in ({}, {"mask": mask}, {"exclude": exclude}, {"min_score": 0.1}):
            found = ops.cosine_topk(x, w, 3, metric=metric, screen=screen, **options)
            assert_same_bytes(found, packed.search(x, 3, **options), str(list(options)))


@pytest.mark.parametrize("screen", ["int8", "bf16"])
@pytest.mark.parametrize("size", [1e35, 1e-42])
@pytest.mark.parametrize("at", [0, F - 1])
def test_rows_beyond_the_range_of_a_screen(size: float, at: int, screen: str) -> None:
    x, w, bias = problem(64, 512)
    w[at] = size
    found = ops.topk_encode(x, w, bias, 3, screen=screen)
    assert_same_bytes(found, ops.topk_encode(x, w, bias, 3, screen="none"), "w")
    bias[at] = 1e30
    found = ops.topk_encode(x, w, bias, 3, screen=screen)
    assert_same_bytes(found, ops.topk_encode(x, w, bias, 3, screen="none"), "bias")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, F - 1])
def test_one_bad_latent_is_that_of_all_rows(at: int, bad: float) -> None:
    x, w, bias = problem(64, 512)
    w[at, 100] = bad
    values, _ = ops.topk_encode(x, w, bias, 3, screen="bf16")
    assert bool(values.isnan().all())


def test_ties_that_no_screen_separates() -> None:
    x, w, _ = problem(64, 512)
    w[1000:5000] = w[:1]
    for screen in ("int8", "bf16"):
        found = ops.topk_encode(x, w, None, 5, screen=screen)
        assert_same_bytes(found, ops.topk_encode(x, w, None, 5, screen="none"), screen)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_workers_have_no_say(threads: int) -> None:
    x, w, bias = problem(100, 700)
    wanted = ops.topk_encode(x, w, bias, 4, screen="none")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for screen in ("int8", "bf16"):
            assert_same_bytes(ops.topk_encode(x, w, bias, 4, screen=screen), wanted, screen)
    finally:
        torch.set_num_threads(before)


def test_thresholds_are_exceeded_as_with_a_packed_matrix(isa: str) -> None:
    x, w, bias = problem(100, 700)
    threshold = torch.full((F,), 60.0)
    threshold[::7] = torch.inf
    wanted = ops.threshold_encode(x.double(), w.double(), bias, threshold)
    found = ops.threshold_encode(x, w, bias, threshold)
    assert found.nnz > 100
    assert torch.equal(found.indptr, wanted.indptr)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.values, wanted.values.float())


_SCRIPT = """
import torch
from pathlib import Path
from finescope import ops

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

x, w, bias = torch.randn(256, 2048), torch.randn(16384, 2048), torch.zeros(16384)
ops.topk_encode(x, w[:2048], bias[:2048], 16, screen="bf16")
before = peak()
ops.topk_encode(x, w, bias, 16, screen="bf16")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_what_is_packed_is_not_held() -> None:
    """It would be 64 MiB."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40

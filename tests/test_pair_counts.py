"""What is said of the pairs that a screen let through is true.

Fails if: a pair scored in float64 isn't counted, or one that was ruled out is; where nothing can be ruled out
less than all are counted, or more than the answer where all else can; a thread's share is lost; the counts of
one block hold another's calls; without the compiled operations a number is given all the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from finescope import SparseCodes, ops
from finescope.diagnostics import Pairs, count_pairs
from finescope.ops import native

pytestmark = pytest.mark.requires_native

CPU = native.module("cpu")
SCREENS = ("auto", "int8", "bf16", "float32")
Q, N, D, K = 12, 6000, 64, 10


@pytest.fixture(params=CPU.usable_isas() if CPU is not None else [], autouse=True)
def _isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before, threads = CPU.active_isa(), torch.get_num_threads()
    CPU.set_isa(request.param)
    yield
    CPU.set_isa(before)
    torch.set_num_threads(threads)


def counted(call: Callable[[], object]) -> Pairs:
    with count_pairs() as pairs:
        call()
    return pairs


def gaussian(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def apart(n: int) -> tuple[Tensor, Tensor]:
    """Queries, and a corpus of which K rows spread over it are near to all of them and the others far."""
    queries, corpus = 1 + 0.01 * gaussian(Q, 1), -1 + 0.5 * gaussian(n, 2)
    corpus[:: n // K] = 1 + 0.01 * gaussian(K, 3)
    return queries, corpus


def calls(queries: Tensor, corpus: Tensor) -> dict[str, Callable[[], object]]:
    """Every way to search that has a screen."""
    packed = ops.PackedMatrix(corpus)
    q, c = SparseCodes.from_dense(queries), SparseCodes.from_dense(corpus)
    turned = ops.PackedCodes(c)
    return {
        **{
            f"screen={screen}": lambda screen=screen: ops.cosine_topk(queries, corpus, K, screen=screen)
            for screen in SCREENS
        },
        "packed": lambda: packed.search(queries, K),
        "one query": lambda: [packed.search(row[None], K) for row in queries],
        "encode": lambda: ops.topk_encode(queries, corpus, None, K),
        "sparse": lambda: ops.sparse_cosine_topk(q, c, K),
        "sparse, packed": lambda: turned.search(q, K),
        "one sparse query": lambda: [ops.sparse_cosine_topk(q[i : i + 1], c, K) for i in range(Q)],
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_far_apart_is_ruled_out(threads: int) -> None:
    torch.set_num_threads(threads)
    for name, call in calls(*apart(N)).items():
        pairs = counted(call)
        assert pairs.all == Q * N, name
        assert pairs.passed == pairs.exact == Q * K, (name, pairs)


@pytest.mark.parametrize("threads", [1, 3])
def test_of_equal_rows_none_is_ruled_out(threads: int) -> None:
    torch.set_num_threads(threads)
    queries = gaussian(Q, 1)
    corpus = queries.sum(dim=0).repeat(N, 1)
    for name, call in calls(queries, corpus).items():
        pairs = counted(call)
        assert pairs.all == Q * N, name
        assert pairs.exact >= Q * N, (name, pairs)


@pytest.mark.parametrize("threads", [1, 3])
def test_without_a_screen_every_pair_is_scored_once(threads: int) -> None:
    torch.set_num_threads(threads)
    queries, corpus = gaussian(Q, 1), gaussian(N, 2)
    for one in (
        lambda: ops.cosine_topk(queries, corpus, K, screen=None),
        lambda: ops.cosine_topk(queries.double(), corpus, K),
        lambda: ops.topk_encode(queries, corpus, None, K, screen=None),
        lambda: ops.threshold_encode(queries, corpus, None, torch.zeros(N), screen=None),
    ):
        assert counted(one) == Pairs(Q * N, Q * N, Q * N)


def test_the_second_screen_works_on_what_the_first_left() -> None:
    queries, corpus = gaussian(Q, 1), gaussian(N, 2)
    for name, call in calls(queries, corpus).items():
        pairs = counted(call)
        assert Q * K <= pairs.exact <= pairs.passed < Q * N / 100, (name, pairs)


@pytest.mark.parametrize("screen", ["auto", None])
def test_encoders_by_threshold(screen: str | None) -> None:
    """Ones that some latents reach, and one that all do."""
    x, weight = apart(N)
    reached = counted(lambda: ops.threshold_encode(x, weight, None, 32.0, screen=screen))
    assert reached.all == Q * N
    assert reached.exact == (Q * K if screen else Q * N)
    assert counted(lambda: ops.threshold_encode(x, weight, None, -1e9, screen=screen)).exact >= Q * N


def test_a_block_counts_what_is_called_in_it() -> None:
    queries, corpus = gaussian(Q, 1), gaussian(N, 2)
    search = lambda: ops.cosine_topk(queries, corpus, K, screen=None)  # noqa: E731
    search()
    with count_pairs() as outer:
        search()
        inner = counted(search)
    search()
    assert counted(lambda: None) == Pairs(0, 0, 0)
    assert (inner.exact, outer.exact) == (Q * N, 2 * Q * N)


def test_without_the_compiled_operations_there_is_no_number() -> None:
    code = "from finescope.diagnostics import count_pairs\nwith count_pairs(): print('never')"
    environment = {**os.environ, "FINESCOPE_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: only the compiled CPU operations count pairs: hidden by FINESCOPE_NATIVE=0. "
        "unset FINESCOPE_NATIVE"
    )

"""Results may not depend on how the work was split: 1, 2 and 3 threads must give the same bytes.

Shapes are large enough that the native kernels really split, and skewed enough that the parts are unequal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import finescope.ops  # noqa: F401  registers the operations

op = torch.ops.finescope


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _cases() -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(7)
    B, K, F, D = 501, 9, 700, 65
    values = torch.randn(B, K, generator=generator)
    # Most pairs belong to a few latents, and many latents to none.
    indices = (torch.rand(B, K, generator=generator) ** 4 * F).long()
    weight, rows = torch.randn(F, D, generator=generator), torch.randn(B, D, generator=generator)
    return {
        "sparse_decode": lambda: op.sparse_decode(values, indices, weight, rows[0]),
        "sampled_dot": lambda: op.sampled_dot(rows, indices, weight),
        "scatter_rows": lambda: op.scatter_rows(values, indices, rows, F),
        "decode_grads, values": lambda: op.decode_grads(values, indices, weight, rows)[0],
        "decode_grads, weight": lambda: op.decode_grads(values, indices, weight, rows)[1],
        "scatter_values": lambda: op.scatter_values(values, indices, F),
    }


@pytest.mark.parametrize("name", list(_cases()))
def test_same_bytes_for_every_thread_count(name: str) -> None:
    call = _cases()[name]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(call().view(torch.uint8))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])

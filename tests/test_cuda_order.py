"""Runs repeat to the byte: no sum depends on which block or thread came first."""

from __future__ import annotations

import pytest
import torch

from finescope import ops
from support import cuda_calls
from support.cuda_calls import arguments, every_call, poison, run
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.MARKS


@every_call
def test_repeats(call: str) -> None:
    wanted = tuple(tensor.cpu().clone() for tensor in run(call, arguments(call)))
    for _ in range(4):
        poison()
        assert_same_bytes(tuple(t.cpu() for t in run(call, arguments(call))), wanted, call)


@pytest.mark.requires_cuda
def test_repeats_beside_other_work() -> None:
    """Blocks are scheduled otherwise while another stream keeps part of the device busy."""
    x, weight = torch.randn(2000, 256, device="cuda"), torch.randn(40_000, 256, device="cuda")
    indices = torch.randint(0, 500, (2000, 32), device="cuda")
    values = torch.randn(2000, 32, device="cuda")

    def work() -> tuple[torch.Tensor, ...]:
        found = ops.topk_encode(x, weight, None, 48)
        return *found, torch.ops.finescope.scatter_rows(values, indices, x, 500)

    wanted = tuple(tensor.cpu() for tensor in work())
    left = torch.randn(4096, 4096, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(side):
            for _ in range(20):
                left @ left
        assert_same_bytes(tuple(tensor.cpu() for tensor in work()), wanted)
    torch.cuda.synchronize()


def test_batches_give_the_same_bytes() -> None:
    device = cuda_calls.DEVICE
    x, weight = torch.randn(70, 40, device=device), torch.randn(3000, 40, device=device)
    whole = ops.topk_encode(x, weight, None, 9)
    for size in (1, 17, 69):
        parts = [ops.topk_encode(part, weight, None, 9) for part in x.split(size)]
        joined = tuple(torch.cat(side).cpu() for side in zip(*parts, strict=True))
        assert_same_bytes(joined, tuple(side.cpu() for side in whole), f"{size}")

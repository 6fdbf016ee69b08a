"""On a GPU every operation has a kernel, and gives the bytes that it gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from finescope.ops import native
from support import cuda_calls
from support.cuda_calls import DEVICE, ON_CPU, OPERATIONS, arguments, every_call, poison, reference, run
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.MARKS


@pytest.mark.parametrize("name", OPERATIONS)
def test_there_is_a_kernel(name: str) -> None:
    """Without one, the default body runs: correct, slow, and with waits for the device."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"finescope::{name}", DEVICE.upper())


@every_call
def test_same_bytes_as_on_the_cpu(call: str) -> None:
    if "adam" in call and (ON_CPU or native.module("cpu") is None):
        pytest.skip("the optimiser's body in pure torch agrees to rounding only")
    for seed in (1, 2):
        wanted = reference(call, seed)
        poison()
        got = run(call, arguments(call, seed))
        assert all(tensor.device.type == DEVICE for tensor in got)
        assert_same_bytes(tuple(tensor.cpu() for tensor in got), wanted, call)


@every_call
def test_other_layouts_give_the_same_bytes(call: str) -> None:
    """Rows with a stride, columns that are not next to each other, and a start in mid-line."""
    wanted = tuple(tensor.clone() for tensor in run(call, arguments(call)))

    def twist(value: object) -> object:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        wide = torch.zeros(*value.shape[:-1], value.shape[-1] + 3, dtype=value.dtype, device=value.device)
        view = wide[..., 1 : 1 + value.shape[-1]]
        return view.copy_(value)

    args = tuple(twist(value) for value in arguments(call))
    assert_same_bytes(tuple(t.cpu() for t in run(call, args)), tuple(t.cpu() for t in wanted), call)

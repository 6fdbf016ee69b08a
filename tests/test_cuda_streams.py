"""Operations are queued on the stream that is current, on the device that their tensors lie on."""

from __future__ import annotations

import pytest
import torch

from support import cuda_calls
from support.cuda_calls import arguments, every_call, reference, run
from support.equivalence import assert_same_bytes

pytestmark = cuda_calls.ONLY_CUDA

# About a tenth of a second on any GPU of these years.
LONG = 200_000_000


@every_call
def test_a_side_stream(call: str) -> None:
    """The inputs are only there after a while on that stream: a kernel on another one would read zeros."""
    held = arguments(call)
    run(call, arguments(call))  # whatever is done once, such as loading kernels, is done
    expected = tuple(tensor.cpu() for tensor in run(call, arguments(call)))
    args = tuple(torch.zeros_like(value) if isinstance(value, torch.Tensor) else value for value in held)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(LONG)
        for place, value in zip(args, held, strict=True):
            if isinstance(place, torch.Tensor):
                place.copy_(value)
        got = run(call, args)
    side.synchronize()
    assert_same_bytes(tuple(tensor.cpu() for tensor in got), expected, call)


@every_call
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one(call: str) -> None:
    assert torch.cuda.current_device() == 0
    got = run(call, arguments(call, 3, "cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda", 1) for tensor in got)
    torch.cuda.synchronize(1)
    assert_same_bytes(tuple(tensor.cpu() for tensor in got), reference(call, 3), call)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_operands_on_two_devices_are_refused() -> None:
    x, weight, *rest = arguments("encode")
    with pytest.raises((RuntimeError, ValueError), match="device"):
        run("encode", (x, weight.to("cuda:1"), *rest))

"""The implementations of an operation in this process: what the dispatcher picks, on every device, and the
default body."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import finescope.ops  # noqa: F401  registers the operations
from finescope.ops import native
from finescope.ops.registry import DEFAULTS


def has_kernel(name: str) -> bool:
    """Whether a kernel of the CPU hides the default body of an operation."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"finescope::{name}", "CPU")


def has_cuda(name: str) -> bool:
    """Whether there is a GPU, and a kernel of an operation for it."""
    kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"finescope::{name}", "CUDA")
    return kernel and torch.cuda.is_available()


DEVICES = [
    "cpu",
    *([pytest.param("cuda", marks=pytest.mark.requires_cuda)] if has_cuda("sparse_decode") else []),
]
CPU = native.module("cpu")
# What a kernel of the CPU can be forced to; one entry where the kernels are CUDA's, compiled for the CPU.
ISAS = [*(CPU.usable_isas() if CPU is not None else ["emulated"]), *DEVICES[1:]]


def run_on(device: str, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run an operation on copies of CPU tensors on another device; results and what it wrote come back."""

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    moved = [move(value) for value in args]
    out = operation(*moved, **{name: move(value) for name, value in kwargs.items()})
    for number, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            args[number].copy_(moved[number])
    if isinstance(out, torch.Tensor):
        return out.cpu()
    return None if out is None else tuple(tensor.cpu() for tensor in out)


class Operations:
    """``torch.ops.finescope`` for CPU tensors, run on ``device``."""

    def __init__(self) -> None:
        self.device = "cpu"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(torch.ops.finescope, name).default
        return operation if self.device == "cpu" else functools.partial(run_on, self.device, operation)


op = Operations()


def implementations(name: str) -> list[Any]:
    """pytest parameters: the dispatched operation, and its default body where a kernel hides it."""
    dispatched: Callable[..., Any] = getattr(torch.ops.finescope, name).default
    parameters = [pytest.param(dispatched, id="dispatched")]
    if has_kernel(name):
        parameters.append(pytest.param(DEFAULTS[name], id="default"))
    if has_cuda(name):
        on_device = functools.partial(run_on, "cuda", dispatched)
        parameters.append(pytest.param(on_device, id="cuda", marks=pytest.mark.requires_cuda))
    return parameters


class Watch(TorchDispatchMode):
    """Remembers the largest tensor that any operation inside the default bodies makes, and how many did."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "finescope":
            # The mode is off while it handles a call; look into the body as well.
            with self:
                return DEFAULTS[func.__name__.split(".")[0]](*args, **kwargs)
        out = func(*args, **kwargs)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            # Views (an expanded tensor) take no room.
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.itemsize)
                self.seen += 1
        return out

"""The implementations of an operation in this process: what the dispatcher picks, and the default body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import finescope.ops  # noqa: F401  registers the operations
from finescope.ops.registry import DEFAULTS


def implementations(name: str) -> list[Any]:
    """pytest parameters: the dispatched operation, and its default body where a kernel hides it."""
    dispatched: Callable[..., Any] = getattr(torch.ops.finescope, name).default
    parameters = [pytest.param(dispatched, id="dispatched")]
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"finescope::{name}", "CPU"):
        parameters.append(pytest.param(DEFAULTS[name], id="default"))
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

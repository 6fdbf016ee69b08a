"""How fakes and pure-torch bodies are registered for the operations that ``schemas`` defines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Body = TypeVar("Body", bound=Callable[..., Any])

#: The default implementations by name, for comparing them with a compiled kernel in the same process.
DEFAULTS: dict[str, Callable[..., Any]] = {}


@functools.cache
def has_float64(device_type: str) -> bool:
    """Whether a kind of device can compute in float64; the exactness contract needs it."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device_type)
    except (RuntimeError, TypeError):
        return False
    return True


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value


def _completed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the order of the schema; torch leaves out those that have their defaults."""
    arguments = getattr(torch.ops.finescope, name).default._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in arguments)]


def fake(name: str) -> Callable[[Body], Body]:
    """Register what ``finescope::<name>`` returns for tensors without data.

    The function gets every argument by position.
    """

    def wrap(body: Body) -> Body:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            return body(*_completed(name, args, kwargs))

        torch.library.register_fake(f"finescope::{name}")(run)
        return body

    return wrap


def default(name: str, *, cpu_only: bool = False, in_place: bool = False) -> Callable[[Body], Body]:
    """Register a function as the default implementation of ``finescope::<name>``.

    The body gets every argument by position. It runs without autograd and outside autocast: inside an
    autocast region the matrix products that the bounds of the screening speak about would silently become
    bfloat16.

    Args:
        name: the operation.
        cpu_only: the body relies on the order in which CPU kernels add; tensors of other devices are copied
            to the CPU and the result is copied back. Devices without float64 always are.
        in_place: the body writes to its arguments and needs no float64: it always runs where they are.
    """

    def wrap(body: Body) -> Body:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = _completed(name, args, kwargs)
            device = next(value.device for value in given if isinstance(value, Tensor))
            moves = device.type != "cpu" and not in_place
            if moves and (cpu_only or not has_float64(device.type)):
                operation = getattr(torch.ops.finescope, name).default
                return _moved(operation(*(_moved(value, "cpu") for value in given)), device)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                return body(*given)

        DEFAULTS[name] = run
        torch.library.impl(f"finescope::{name}", "default")(run)
        return body

    return wrap

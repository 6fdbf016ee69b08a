"""Arguments are checked in ``finescope/ops/checks.py`` and in ``csrc/bindings``: both must refuse the same.

A hole in the kernels' checks is memory read out of bounds for whoever calls ``torch.ops.finescope`` directly;
one in Python's is a message without the words users know. So every argument of every operation is spoilt in
every way that its kind allows, and the fake, the default body and the kernel are asked. Whoever adds an
operation adds a good call of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from finescope.ops.registry import DEFAULTS
from support.backends import has_kernel

X, W, BIAS = torch.randn(3, 4), torch.randn(6, 4), torch.randn(6)
VALUES, INDICES = torch.rand(3, 2), torch.tensor([[0, 5], [1, 2], [3, 4]])
WIDE, OUTER = torch.rand(3, 4), torch.randn(4)
Q = (torch.tensor([0, 1, 2]), torch.tensor([2, 0]), torch.tensor([1.0, 2.0]))
C = (torch.tensor([0, 1, 2, 4]), torch.tensor([2, 3, 0, 4]), torch.tensor([1.0, 2.0, 0.5, 1.0]))
EXCLUDE, MASK = torch.zeros(3, 1, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
NOTHING = torch.zeros(0, dtype=torch.uint8)
SPARSE_FILTERS = (None, torch.zeros(2, 1, dtype=torch.int64), torch.ones(3, dtype=torch.bool), 0)

#: A good call of each operation, every argument given.
GOOD: dict[str, tuple[Any, ...]] = {
    "topk_encode": (X, W, BIAS, 2, "auto"),
    "topk_encode_packed": (X, W, BIAS, NOTHING, 2),
    "threshold_encode": (X, W, BIAS, BIAS, BIAS, BIAS, "auto"),
    "threshold_encode_packed": (X, W, BIAS, BIAS, NOTHING, BIAS, BIAS),
    "sparse_decode": (VALUES, INDICES, W, OUTER),
    "sampled_dot": (X, INDICES, W),
    "scatter_rows": (VALUES, INDICES, X, 6),
    "scatter_values": (VALUES, INDICES, 6),
    "decode_grads": (VALUES, INDICES, W, X),
    "decode_residual": (VALUES, INDICES, W, OUTER, X, 1),
    "weight_grads": (VALUES, VALUES, INDICES, X, X[None], 2, 6),
    "sae_adam_step_": (
        *(W.clone(), W, W.clone(), W.abs(), 1, 1e-3, 0.9, 0.99, 1e-8, True),
        torch.rand(2, dtype=torch.float64),
    ),
    "pool_codes": (VALUES, INDICES, torch.tensor([0, 1, 3]), "mean", 2),
    "cosine_topk": (X, W, 2, "cosine", "auto", 0.1, EXCLUDE, MASK, 0),
    "cosine_topk_packed": (X, W, NOTHING, 2, "cosine", 0.1, EXCLUDE, MASK, 0),
    "pair_scores": (X, W, INDICES, "cosine"),
    "pack_rows": (W, "encode", "auto"),
    "sparse_cosine_topk": (*Q, *C, 5, 2, "cosine", "auto", *SPARSE_FILTERS),
    "sparse_cosine_topk_packed": (*Q, *C, 5, NOTHING, 2, "cosine", *SPARSE_FILTERS),
    "sparse_pair_scores": (*Q, *C, 5, torch.zeros(2, 1, dtype=torch.int64), "cosine"),
    "pack_sparse_rows": (*C, 5),
    "sparse_matmul": (*C, torch.randn(5, 2, dtype=torch.float64)),
    "sparse_products": (*Q[:2], Q[2].double(), *C, 5),
}


def _spoilt(value: Any, *, first: bool) -> Iterator[tuple[str, Any]]:
    """Other values of an argument, most of which no operation can take, and what was done to them."""
    if isinstance(value, Tensor):
        for dtype in (torch.bool, torch.int8, torch.int32, torch.int64, torch.float16, torch.float64):
            yield f"as {dtype}", value.to(dtype)
        yield "in one more dimension", value[None]
        yield "in one more dimension, the last", value[..., None]
        if value.dim():
            yield "flat", value.reshape(-1)
        for dim in range(value.dim()):
            yield f"shorter in {dim}", value.narrow(dim, 0, max(0, value.shape[dim] - 1))
            yield f"longer in {dim}", torch.cat([value, value.narrow(dim, 0, min(1, value.shape[dim]))], dim)
            yield f"empty in {dim}", value.narrow(dim, 0, 0)
        if not first:
            yield "on another device", value.to("meta")
    elif isinstance(value, str):
        yield "another word", "nonsense"
        yield "no word", ""
    elif isinstance(value, int) and not isinstance(value, bool):
        yield "negative", -1
        yield "far too low", -(2**40)


def _copies(args: tuple[Any, ...]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in args]


def _asked(call: Callable[[], Any]) -> tuple[bool | None, str]:
    """Whether a call is refused, and the words; None for a complaint about data, which fakes don't have."""
    try:
        call()
    except DynamicOutputShapeException:  # a good call, whose result has a size that fakes can't know
        return False, "taken"
    except (ValueError, TypeError) as error:
        return None if re.search("must (rise|run) from", str(error)) else True, str(error)
    except IndexError as error:
        return None, str(error)
    except RuntimeError as error:  # how a CUDA kernel complains about data
        assert "a kernel stopped" in str(error), error  # noqa: PT017
        return None, str(error)
    return False, "taken"


def test_every_operation_is_here() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("finescope::")}
    assert {name.removeprefix("finescope::") for name in registered} == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_good_calls_are_good(name: str) -> None:
    operation = getattr(torch.ops.finescope, name).default
    assert len(GOOD[name]) == len(operation._schema.arguments)
    for run in (operation, DEFAULTS[name]):
        run(*_copies(GOOD[name]))


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, args in GOOD.items() for number in range(len(args))]
)
def test_all_refuse_the_same(name: str, number: int) -> None:
    operation = getattr(torch.ops.finescope, name).default
    for how, changed in _spoilt(GOOD[name][number], first=number == 0):
        args = (*GOOD[name][:number], changed, *GOOD[name][number + 1 :])

        def fake(args: tuple[Any, ...] = args) -> None:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                operation(*(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in args))

        asked = {"the fake": _asked(fake)}
        asked["the default body"] = _asked(lambda args=args: DEFAULTS[name](*_copies(args)))  # type: ignore[misc]
        # Of tensors on different devices the dispatcher asks another kernel than that of the CPU.
        if has_kernel(name) and how != "on another device":
            asked["the kernel"] = _asked(lambda args=args: operation(*_copies(args)))  # type: ignore[misc]
        assert len({refused for refused, _ in asked.values()} - {None}) <= 1, (how, asked)

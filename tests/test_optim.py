"""SaeAdam cuts its update into blocks and folds constants; it must still be Adam on the sphere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from finescope import optim
from finescope.ops import adam
from finescope.ops.registry import DEFAULTS
from finescope.optim import SaeAdam, normalise_rows_


def unfused(w: Tensor, m: Tensor, v: Tensor, g: Tensor, step: int, lr: float, eps: float, unit: bool) -> None:
    """The textbook update, one formula per line, in place on float64 tensors."""
    if unit:
        g = g - (g * w).sum(1, keepdim=True) * w
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g**2)
    w -= lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + eps)
    if unit:
        w /= w.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(
    "block", [None, 1, 40, 10**6], ids=["dispatched", "row-by-row", "ragged-blocks", "one-block"]
)
def test_equals_the_unfused_formula(monkeypatch: pytest.MonkeyPatch, unit: bool, block: int | None) -> None:
    if block is not None:
        monkeypatch.setattr(optim, "call", lambda name, *args: DEFAULTS[name](*args))
        monkeypatch.setattr(adam, "_BLOCK_ELEMENTS", block)
    parameter = torch.nn.Parameter(normalise_rows_(torch.randn(23, 11, dtype=torch.float64)))
    expected = parameter.detach().clone()
    m, v = torch.zeros_like(expected), torch.zeros_like(expected)
    optimiser = SaeAdam([parameter], lr=0.05, eps=1e-3, unit_norm=unit)
    for step in range(1, 6):
        parameter.grad = torch.randn_like(parameter)
        parameter.grad[3] = 0.0  # a latent without a gradient moves on by its moments
        before = parameter.grad.clone()
        optimiser.step()
        unfused(expected, m, v, before, step, 0.05, 1e-3, unit)
        assert torch.equal(parameter.grad, before)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)


def test_without_constraint_equals_torch_adam_for_every_shape() -> None:
    shapes = [(5,), (300, 70), (3, 4, 5), ()]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    optimisers = SaeAdam(ours, lr=1e-2, eps=1e-8), torch.optim.Adam(theirs, lr=1e-2, eps=1e-8)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_rows_stay_on_the_sphere_and_ignore_radial_gradients() -> None:
    parameter = torch.nn.Parameter(normalise_rows_(torch.randn(50, 16)))
    start = parameter.detach().clone()
    optimiser = SaeAdam([parameter], lr=0.1, unit_norm=True)
    parameter.grad = torch.randn(50, 16)
    optimiser.step()
    torch.testing.assert_close(parameter.norm(dim=1), torch.ones(50))
    assert not torch.allclose(parameter, start, atol=1e-3)

    # A gradient along the rows is no reason to move. (eps keeps rounding noise from being scaled up.)
    still = torch.nn.Parameter(start.clone())
    still.grad = 3.0 * start
    SaeAdam([still], lr=0.1, eps=1.0, unit_norm=True).step()
    torch.testing.assert_close(still.detach(), start)


def test_a_backward_that_saved_the_parameter_notices_the_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    loss = (parameter**2).sum()
    parameter.grad = torch.ones(3)
    SaeAdam([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_zero_rows_do_not_become_nan() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    parameter.grad = torch.zeros(4, 3)
    SaeAdam([parameter], unit_norm=True).step()
    assert torch.equal(parameter.detach(), torch.zeros(4, 3))


def test_noncontiguous_parameters_are_updated_in_place() -> None:
    base = normalise_rows_(torch.randn(8, 6)).t().contiguous()
    twisted, plain = torch.nn.Parameter(base.t()), torch.nn.Parameter(base.t().contiguous())
    twisted.grad = torch.randn(8, 6)
    plain.grad = twisted.grad.clone()
    for parameter in (twisted, plain):
        SaeAdam([parameter], unit_norm=True).step()
    torch.testing.assert_close(twisted, plain)


def test_state_dict_round_trip_continues_to_the_bit() -> None:
    gradients = [torch.randn(9, 7) for _ in range(6)]
    start = normalise_rows_(torch.randn(9, 7))

    def run(steps: list[Tensor], parameter: torch.nn.Parameter, optimiser: SaeAdam) -> None:
        for gradient in steps:
            parameter.grad = gradient
            optimiser.step()

    whole = torch.nn.Parameter(start.clone())
    run(gradients, whole, SaeAdam([whole], lr=0.03, unit_norm=True))

    first = torch.nn.Parameter(start.clone())
    optimiser = SaeAdam([first], lr=0.03, unit_norm=True)
    run(gradients[:3], first, optimiser)
    second = torch.nn.Parameter(first.detach().clone())
    restored = SaeAdam([second], lr=1.0)
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    run(gradients[3:], second, restored)
    assert torch.equal(whole, second)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("native", [False, True])
def test_a_step_counted_on_the_device_is_the_same_step(
    monkeypatch: pytest.MonkeyPatch, unit: bool, native: bool
) -> None:
    if not native:
        monkeypatch.setattr(optim, "call", lambda name, *args: DEFAULTS[name](*args))
    start = normalise_rows_(torch.randn(9, 7))
    plain, counted = (torch.nn.Parameter(start.clone()) for _ in range(2))
    rate = torch.tensor(0.03, dtype=torch.float64)
    left = SaeAdam([plain], lr=0.03, unit_norm=unit)
    right = SaeAdam([counted], lr=rate, unit_norm=unit, capturable=True)
    for step in range(12):
        plain.grad = torch.randn(9, 7)
        counted.grad = plain.grad.clone()
        left.param_groups[0]["lr"] = 0.03 / (step + 1)
        rate.fill_(0.03 / (step + 1))
        left.step()
        right.step()
        if step == 5:  # on from a copy, whose number of steps is a tensor as well
            state = copy.deepcopy(right.state_dict())
            right = SaeAdam([counted], lr=rate)
            right.load_state_dict(state)
            right.param_groups[0]["lr"] = rate
    assert right.state[counted]["step"].item() == 12
    torch.testing.assert_close(counted, plain, rtol=1e-6, atol=1e-7)


def test_capturable_may_be_set_on_the_way() -> None:
    plain, turned = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    left, right = SaeAdam([plain], lr=0.1), SaeAdam([turned], lr=0.1)
    for step in range(4):
        plain.grad = torch.randn(3)
        turned.grad = plain.grad.clone()
        right.param_groups[0]["capturable"] = step >= 2
        left.step()
        right.step()
    torch.testing.assert_close(turned, plain, rtol=1e-6, atol=0)


def test_state_dicts_of_before_capturable_are_read() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = SaeAdam([parameter])
    state = copy.deepcopy(optimiser.state_dict())
    del state["param_groups"][0]["capturable"]
    optimiser.load_state_dict(state)
    parameter.grad = torch.ones(3)
    optimiser.step()
    assert optimiser.state[parameter]["step"] == 1


def test_the_closure_is_run_with_gradients_and_its_value_returned() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = SaeAdam([parameter], lr=0.1)

    def closure() -> float:
        loss = (parameter**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimiser.step(closure) == 3.0
    assert bool((parameter < 1).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": -1e-9}, "eps"),
        ({"unit_norm": True}, "matrix"),
    ],
)
def test_refuses_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaeAdam([torch.nn.Parameter(torch.zeros(3))], **options)  # type: ignore[arg-type]


def test_refuses_half_precision_spheres_and_sparse_gradients() -> None:
    with pytest.raises(ValueError, match="float32"):
        SaeAdam([torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.bfloat16))], unit_norm=True)
    parameter = torch.nn.Parameter(torch.zeros(3, 3))
    parameter.grad = torch.zeros(3, 3).to_sparse()
    with pytest.raises(ValueError, match="dense"):
        SaeAdam([parameter]).step()

"""A checker that accepts everything proves nothing: the helpers must reject answers that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from support.equivalence import assert_same_bytes, assert_topk_equivalent

TRUTH = np.array([[0.5, 0.25, 0.25, 0.125, -1.0, -np.inf], [1.0, 3.0, 2.0, 2.0, 2.0, -np.inf]])
SCORES = torch.tensor([[0.5, 0.25, 0.25], [3.0, 2.0, 2.0]])
IDS = torch.tensor([[0, 1, 2], [1, 2, 3]])


def test_accepts_the_right_answer() -> None:
    assert_topk_equivalent(SCORES, IDS, TRUTH, 3)
    assert_topk_equivalent(SCORES.double(), IDS, TRUTH, 3)


def _changed(tensor: Tensor, where: tuple[int, int], value: float) -> Tensor:
    out = tensor.clone()
    out[where] = value
    return out


@pytest.mark.parametrize(
    ("scores", "ids"),
    [
        pytest.param(SCORES, _changed(IDS, (1, 2), 4), id="a tie at the edge goes to the later id"),
        pytest.param(SCORES, IDS[:, [0, 2, 1]], id="a tie out of order"),
        pytest.param(SCORES, _changed(IDS, (0, 2), 1), id="an id twice"),
        pytest.param(_changed(SCORES, (0, 2), 0.125), _changed(IDS, (0, 2), 3), id="a better row left out"),
        pytest.param(_changed(SCORES, (0, 1), 0.2500001), IDS, id="a score that is not that of the id"),
        pytest.param(SCORES, _changed(IDS, (0, 2), 5), id="a row that may not be returned"),
        pytest.param(SCORES, _changed(IDS, (0, 2), -1), id="padding where there are results"),
        pytest.param(SCORES, _changed(IDS, (0, 2), 6), id="an id outside the corpus"),
        pytest.param(SCORES[:, :2], IDS[:, :2], id="too few results"),
        pytest.param(SCORES[:, [1, 0, 2]], IDS[:, [1, 0, 2]], id="scores that rise"),
        pytest.param(torch.full_like(SCORES, torch.nan), IDS, id="nan scores"),
    ],
)
def test_rejects_a_wrong_answer(scores: Tensor, ids: Tensor) -> None:
    with pytest.raises(AssertionError):
        assert_topk_equivalent(scores, ids, TRUTH, 3)


def test_rejects_missing_padding() -> None:
    scores, ids = torch.cat([SCORES, SCORES], dim=1), torch.cat([IDS, IDS], dim=1)
    with pytest.raises(AssertionError):
        assert_topk_equivalent(scores, ids, TRUTH, 6)


def test_bytes_tell_apart_what_comparison_does_not() -> None:
    zero, nan = torch.zeros(3), torch.full((3,), torch.nan)
    assert_same_bytes((zero, nan), (zero.clone(), nan.clone()))
    for other in (-zero, zero.double(), zero[:2], zero + 1e-45):
        with pytest.raises(AssertionError):
            assert_same_bytes((other,), (zero,))
    with pytest.raises(AssertionError):
        assert_same_bytes((zero,), (zero, zero))

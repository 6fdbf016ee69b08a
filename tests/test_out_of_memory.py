"""Running out of memory is said in words, whichever backend an operation runs on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.backends import implementations


@pytest.mark.parametrize("op", implementations("scatter_values"))
def test_a_result_that_no_machine_holds(op: Any) -> None:
    values, indices = torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        op(values, indices, 1 << 50)
    assert op(values, indices, 4).tolist() == [6.0, 0.0, 0.0, 0.0]

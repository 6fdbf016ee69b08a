"""A model that its loader has placed is used where it is, and an adapter is not taken for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finescope import InputError
from finescope.activations import load_model, load_tokenizer
from finescope.activations.models import moved


class Placed(nn.Linear):
    """Refuses to be moved, as models in 8 bits and dispatched ones do."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("already where it belongs")


@pytest.mark.parametrize("sign", ["on the device", "quantised", "dispatched"])
def test_a_placed_model_is_not_moved(sign: str) -> None:
    model = Placed(2, 2)
    device = torch.device("cpu" if sign == "on the device" else "meta")
    if sign == "quantised":
        model.is_quantized = True  # type: ignore[assignment]
    elif sign == "dispatched":
        model.hf_device_map = {"": 0}  # type: ignore[assignment]
    assert moved(model.train(), device) is model
    assert not model.training


def test_any_other_model_is_moved() -> None:
    assert moved(nn.Linear(2, 2), torch.device("meta")).weight.device.type == "meta"


@pytest.mark.parametrize("base", ["someone/base", None])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_an_adapter_is_named_with_its_base(tmp_path: Path, load: Any, base: str | None) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA"} | ({"base_model_name_or_path": base} if base else {}))
    )
    with pytest.raises(InputError, match="adapter") as caught:
        load(tmp_path)
    assert (base or "doesn't name") in str(caught.value)
    assert "merge_and_unload" in str(caught.value)

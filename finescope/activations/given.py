"""What a tap is given, as objects or by name: a model, its device, its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finescope.activations import models
from finescope.device import usable_device
from finescope.errors import InputError

# Parts of a configuration that change no activation: saving and loading a model sets them.
_NO_MATTER = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def name_of(model: Any) -> str:
    """Return what a model is called: what it was loaded by, where it says that, else its class."""
    if not isinstance(model, nn.Module):
        return str(model)
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)


def device_of(model: Any, device: str | torch.device | None) -> torch.device:
    if device in (None, "auto") and isinstance(model, nn.Module):
        return next(model.parameters()).device
    return usable_device(device or "auto")


def model_of(model: Any, device: torch.device, dtype: Any, options: dict[str, Any]) -> nn.Module:
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if dtype != "auto" and not isinstance(found, torch.dtype):
            raise InputError(f"dtype {dtype!r} is unknown; name float32, bfloat16, float16 or auto")
        dtype = found if dtype != "auto" else None
    elif dtype is None and device.type == "cpu":
        dtype = torch.float32
    if isinstance(model, nn.Module):
        return models.moved(model, device)
    return models.load_model(model, device=device, dtype=dtype, **options)


def tokenizer_of(model: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    if tokenizer is None:
        if isinstance(model, nn.Module):
            raise InputError("a model that is already loaded needs its tokenizer: pass tokenizer=")
        tokenizer = model
    if isinstance(tokenizer, (str, bytes)) or hasattr(tokenizer, "__fspath__"):
        trust = {name: value for name, value in options.items() if name in ("trust_remote_code", "revision")}
        return models.load_tokenizer(tokenizer, **trust)
    return tokenizer


def stable_config(config: Any) -> Any:
    if config is None:
        return None
    plain = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    return {key: value for key, value in plain.items() if key not in _NO_MATTER}

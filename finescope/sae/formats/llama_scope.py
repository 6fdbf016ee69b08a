"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``, a JumpReLU with one threshold t
for all.

encoder.weight [F,D], encoder.bias [F], decoder.weight [D,F], decoder.bias [D]. Activations are scaled to the
norm √D on average, x' = s x with s = √D / n; relu(p) · [p > s t] with p = W x' + b; the reconstruction is
divided by s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, read_json, read_tensors, whole
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

CONFIG_NAME = "hyperparams.json"
WEIGHTS_NAME = "checkpoints/final.safetensors"


# What their trainer also could do, and none of the released ones does.
_ALWAYS = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "apply_decoder_bias_to_pre_encoder": False,
    "use_glu_encoder": False,
}


def refuse_other_ways(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that isn't that of a released SAE.

    Raises:
        InputError: names the key.
    """
    for name, value in _ALWAYS.items():
        said = config.get(name, value)
        if (said.lower() if isinstance(said, str) else said) != value:
            raise InputError(f"{path} says {name}={said!r}; SAEs of Llama Scope have {value!r}")


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE of Llama Scope."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    config = read_json(path)
    refuse_other_ways(path, config)
    d_in, num_latents = whole(path, config, "d_model"), whole(path, config, "d_sae")
    norm = (config.get("dataset_average_activation_norm") or {}).get("in")
    limit = config.get("jump_relu_threshold")
    for name, value, low in (
        ("dataset_average_activation_norm.in", norm, 0.0),
        ("jump_relu_threshold", limit, -1.0),
    ):
        if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > low):
            raise StoreError(f"{path}: {name} must be a positive number, got {value!r}")
    shapes: Shapes = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "decoder.weight": (d_in, num_latents),
        "decoder.bias": (d_in,),
    }
    found = check_tensors(weights, read_tensors(weights), shapes, format="Llama Scope", said_by=CONFIG_NAME)
    scale = math.sqrt(d_in) / float(norm)  # type: ignore[arg-type]
    tensors = {
        "encoder.weight": found["encoder.weight"],
        "encoder.bias": found["encoder.bias"],
        "threshold": torch.full((num_latents,), float(limit) * scale),  # type: ignore[arg-type]
        "W_dec": found["decoder.weight"].T.contiguous(),
        "b_dec": found["decoder.bias"],
    }
    hook = config.get("hook_point_in")
    hook_out = config.get("hook_point_out")
    origin = Origin(
        "llama_scope",
        model="meta-llama/Llama-3.1-8B" if d_in == 4096 else None,
        hook=hook,
        hook_out=None if hook_out == hook else hook_out,
        bos=True,
    )
    frame = Frame(subtract_b_dec=False, scale=scale, scale_out=scale)
    return Checkpoint(
        "jumprelu", tensors, {"num_latents": num_latents, "normalize_decoder": False}, frame, origin
    )


FORMAT = Format("llama_scope", WEIGHTS_NAME, read, beside=(CONFIG_NAME,))

"""circuit-tracer: ``layer_N.safetensors`` for every layer of a model, beside one ``config.yaml``:
transcoders.

W_enc [F,D], b_enc [F], W_dec [F,D], b_dec [D]; activation_function.threshold [F], W_skip [D,D]. p = W_enc x +
b_enc; the code is relu(p), or p · [p > threshold] without relu; x · W_skipᵀ is added to the reconstruction.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from finescope.errors import StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_tensors
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

CONFIG_NAME = "config.yaml"

_THRESHOLD = "activation_function.threshold"


def _recognises(path: Path) -> bool:
    return re.fullmatch(r"layer_\d+\.safetensors", path.name) is not None


def read(path: Path, facts: Facts) -> Checkpoint:
    """Read the transcoder of one layer."""
    held = read_tensors(path)
    if "W_enc" not in held or held["W_enc"].dim() != 2:
        raise StoreError(f"{path} has no matrix W_enc; it has {', '.join(sorted(held))}")
    num_latents, d_in = held["W_enc"].shape
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (num_latents, d_in),
        "b_enc": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
    }
    if _THRESHOLD in held:
        shapes[_THRESHOLD] = (num_latents,)
    if "W_skip" in held:
        shapes["W_skip"] = (d_in, d_in)
    found = check_tensors(path, held, shapes, format="circuit-tracer", said_by="W_enc")
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", _THRESHOLD: "threshold"}
    tensors = {names.get(name, name): tensor for name, tensor in found.items()}
    layer = re.search(r"_(\d+)\.", path.name)
    said = _config(path.parent / CONFIG_NAME)
    hooks = [
        f"blocks.{layer[1]}.{said[side]}" if layer and said.get(side) else None
        for side in ("feature_input_hook", "feature_output_hook")
    ]
    origin = Origin("circuit_tracer", model=said.get("model_name"), hook=hooks[0], hook_out=hooks[1])
    architecture = "signed_jumprelu" if "threshold" in tensors else "relu"
    options = {"num_latents": num_latents, "normalize_decoder": False}
    return Checkpoint(architecture, tensors, options, Frame(subtract_b_dec=False), origin)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StoreError(f"{path} can't be read as YAML: {error}") from error
    return said if isinstance(said, dict) else {}


FORMAT = Format(
    "circuit_tracer",
    "layer_*.safetensors",
    read,
    _recognises,
    single=True,
    beside=(CONFIG_NAME,),
)

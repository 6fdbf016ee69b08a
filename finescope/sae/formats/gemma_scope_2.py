"""Gemma Scope 2: ``params.safetensors``, and a ``config.json`` that may be absent.

w_enc [D,F], b_enc [F], threshold [F], w_dec [F,D_out], b_dec [D_out], for transcoders affine_skip_connection
[D,D_out]; relu(p) · [p > threshold] with p = w_enc x + b_enc, and x · affine_skip_connection added to the
reconstruction.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_tensors
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "params.safetensors"

_SKIP = "affine_skip_connection"


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE or transcoder of Gemma Scope 2."""
    path = folder / WEIGHTS_NAME
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    kind = config.get("architecture", "jump_relu")
    if kind != "jump_relu":
        raise InputError(
            f"{folder / CONFIG_NAME} says architecture={kind!r}; Gemma Scope 2 has jump_relu only"
        )
    held = read_tensors(path)
    for name in ("w_enc", "w_dec"):
        if name not in held:
            raise StoreError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(held))}")
    if held["w_dec"].dim() == 3:
        raise InputError(
            f"{path} is a cross-layer transcoder, which writes to several layers; that isn't supported"
        )
    if held["w_enc"].dim() != 2 or held["w_dec"].dim() != 2:
        raise StoreError(f"{path}: w_enc and w_dec must be matrices")
    (d_in, num_latents), d_out = held["w_enc"].shape, held["w_dec"].shape[1]
    skips = config.get("affine_connection")
    if skips is not None and skips != (_SKIP in held):
        raise StoreError(
            f"{folder / CONFIG_NAME} says affine_connection={skips}, but {path.name} says otherwise"
        )
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc": (d_in, num_latents),
        "b_enc": (num_latents,),
        "threshold": (num_latents,),
        "w_dec": (num_latents, d_out),
        "b_dec": (d_out,),
    }
    if _SKIP in held:
        shapes[_SKIP] = (d_in, d_out)
    found = check_tensors(path, held, shapes, format="Gemma Scope 2", said_by="w_enc and w_dec")
    tensors = {
        "encoder.weight": found["w_enc"].T.contiguous(),
        "encoder.bias": found["b_enc"],
        "threshold": found["threshold"],
        "W_dec": found["w_dec"],
        "b_dec": found["b_dec"],
    }
    if _SKIP in found:
        tensors["W_skip"] = found[_SKIP].T.contiguous()
    hook, hook_out = _hooks(folder.resolve().as_posix(), config)
    origin = Origin("gemma_scope_2", model=_model(config), hook=hook, hook_out=hook_out, bos=True)
    options = {"num_latents": num_latents, "normalize_decoder": False}
    return Checkpoint("jumprelu", tensors, options, Frame(subtract_b_dec=False), origin)


def _hooks(place: str, config: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return where the SAE reads and, if that is another place, writes."""
    if config.get("hf_hook_point_in"):
        hook, hook_out = config["hf_hook_point_in"], config.get("hf_hook_point_out")
        return hook, None if hook_out == hook else hook_out
    layer = re.search(r"layer_(\d+)", place)
    if layer is None:
        return None, None
    block = f"model.layers.{layer[1]}"
    if "transcoder" in place:
        return f"{block}.pre_feedforward_layernorm.output", f"{block}.post_feedforward_layernorm.output"
    for part, hook in (
        ("resid_post", f"{block}.output"),
        ("attn_out", f"{block}.self_attn.o_proj.input"),
        ("mlp_out", f"{block}.post_feedforward_layernorm.output"),
    ):
        if part in place:
            return hook, None
    return None, None


def _model(config: dict[str, Any]) -> str | None:
    name = config.get("model_name")
    if not isinstance(name, str):
        return None
    name = name.replace("-v3", "-3")
    return name if "/" in name else f"google/{name}"


FORMAT = Format("gemma_scope_2", WEIGHTS_NAME, read, beside=(CONFIG_NAME,))

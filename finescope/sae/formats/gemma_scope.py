"""Gemma Scope: ``params.npz``, a JumpReLU SAE or transcoder without a configuration.

W_enc [D,F], b_enc [F], threshold [F], W_dec [F,D], b_dec [D]; relu(p) · [p > threshold] with p = W_enc x +
b_enc. Those of token embeddings (a folder ``embedding``) were trained on embeddings without Gemma's factor
√D.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from finescope.errors import StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, read_arrays
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

WEIGHTS_NAME = "params.npz"

_MODEL = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE or transcoder of Gemma Scope. Whether it is of embeddings, the path says, or
    ``embedding=True``."""
    path = folder / WEIGHTS_NAME
    held = read_arrays(path)
    if "W_enc" not in held or held["W_enc"].dim() != 2:
        raise StoreError(f"{path} has no matrix W_enc; it has {', '.join(sorted(held))}")
    d_in, num_latents = held["W_enc"].shape
    shapes: Shapes = {
        "W_enc": (d_in, num_latents),
        "b_enc": (num_latents,),
        "threshold": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
    }
    found = check_tensors(path, held, shapes, format="Gemma Scope", said_by="W_enc")
    place = folder.resolve().as_posix()
    # With what the hub has below it: another folder of that name says nothing.
    named = re.search(r"/embedding/width_[^/]+(/|$)", place) is not None
    embedding = facts.get("embedding", bool, named)
    # W_enc/√D and W_dec·√D in the library; b_enc and the thresholds belong to what comes out of that.
    root = math.sqrt(d_in) if embedding else 1.0
    tensors = {
        "encoder.weight": (found["W_enc"].T / root).contiguous(),
        "encoder.bias": found["b_enc"],
        "threshold": found["threshold"],
        "W_dec": found["W_dec"] * root,
        "b_dec": found["b_dec"],
    }
    options = {"num_latents": num_latents, "normalize_decoder": False}
    return Checkpoint(
        "jumprelu", tensors, options, Frame(subtract_b_dec=False), _origin(place, bool(embedding))
    )


def _origin(place: str, embedding: bool) -> Origin:
    """Return what the path says, where it has the names of the hub."""
    named, layer = _MODEL.search(place), re.search(r"/layer_(\d+)(?:/|$)", place)
    l0 = re.search(r"/average_l0_(\d+)(?:/|$)", place)
    hook = hook_out = None
    if embedding:
        hook = "hook_embed"
    elif layer and named:
        hook = {
            "res": f"blocks.{layer[1]}.hook_resid_post",
            "mlp": f"blocks.{layer[1]}.hook_mlp_out",
            "att": f"blocks.{layer[1]}.attn.hook_z",
            "transcoders": f"model.layers.{layer[1]}.pre_feedforward_layernorm.output",
        }[named[3]]
        hook_out = f"blocks.{layer[1]}.hook_mlp_out" if named[3] == "transcoders" else None
    model = None
    if named:
        model = f"google/gemma-2-{named[1]}" + ("-it" if named[2] == "it" else "")
    return Origin(
        "gemma_scope", model=model, hook=hook, hook_out=hook_out, bos=True, l0=float(l0[1]) if l0 else None
    )


FORMAT = Format("gemma_scope", WEIGHTS_NAME, read)

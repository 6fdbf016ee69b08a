"""Llama-Scope-R1-Distill: ``config.json`` and ``sae_weights.safetensors``, a JumpReLU whose thresholds are
logarithms.

Tensors as in Llama Scope, and log_jumprelu_threshold [F]: relu(p) · [p > exp(log_jumprelu_threshold)] with p
= W x' + b. The scale of the activations, x' = s x, isn't in these files.
"""

from __future__ import annotations

from pathlib import Path

from finescope.errors import StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, names_in, read_json, read_tensors, whole
from finescope.sae.formats.format import Facts, Format
from finescope.sae.formats.llama_scope import refuse_other_ways
from finescope.sae.frame import Frame

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "sae_weights.safetensors"


def _recognises(folder: Path) -> bool:
    if not (folder / CONFIG_NAME).is_file():
        return False
    return "log_jumprelu_threshold" in names_in(folder / WEIGHTS_NAME)


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE of Llama-Scope-R1-Distill; ``norm_scaling_factor`` is s."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    config = read_json(path)
    refuse_other_ways(path, config)
    d_in = whole(path, config, "d_model")
    factor = config.get("expansion_factor")
    if not isinstance(factor, (int, float)) or d_in * factor != int(d_in * factor) or factor <= 0:
        raise StoreError(f"{path}: expansion_factor must give a whole number of latents, got {factor!r}")
    num_latents = int(d_in * factor)
    shapes: Shapes = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "decoder.weight": (d_in, num_latents),
        "decoder.bias": (d_in,),
        "log_jumprelu_threshold": (num_latents,),
    }
    found = check_tensors(
        weights, read_tensors(weights), shapes, format="Llama-Scope-R1", said_by=CONFIG_NAME
    )
    scale = facts.need(
        "norm_scaling_factor",
        float,
        folder,
        "the factor that its activations were scaled by (√D / their mean norm)",
    )
    tensors = {
        "encoder.weight": found["encoder.weight"],
        "encoder.bias": found["encoder.bias"],
        "threshold": found["log_jumprelu_threshold"].exp(),
        "W_dec": found["decoder.weight"].T.contiguous(),
        "b_dec": found["decoder.bias"],
    }
    origin = Origin(
        "llama_scope_r1",
        model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B" if d_in == 4096 else None,
        hook=config.get("hook_point_in"),
        bos=True,
    )
    frame = Frame(subtract_b_dec=False, scale=scale, scale_out=scale)
    return Checkpoint(
        "jumprelu", tensors, {"num_latents": num_latents, "normalize_decoder": False}, frame, origin
    )


FORMAT = Format("llama_scope_r1", WEIGHTS_NAME, read, _recognises, beside=(CONFIG_NAME,))

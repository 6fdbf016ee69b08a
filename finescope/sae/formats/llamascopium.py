"""llamascopium (OpenMOSS): ``sae_weights.safetensors`` beside ``config.json``.

W_E [D,F], b_E [F], W_D [F,D], b_D [D], dataset_average_activation_norm.<hook> []; jumprelu:
activation_function.log_jumprelu_threshold [F]. The caller normalises: x' = x √D / n, and the reconstruction
is divided by that of its own place. Where ``sparsity_include_decoder_norm``, latents fire by p·‖w‖ (w a
decoder row) and are worth p.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, names_in, read_json, read_tensors, whole
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "sae_weights.safetensors"

_NORM = "dataset_average_activation_norm."
_THRESHOLD = "activation_function.log_jumprelu_threshold"


def _recognises(folder: Path) -> bool:
    return "W_E" in names_in(folder / WEIGHTS_NAME)


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE or a transcoder of llamascopium."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} is an SAE of llamascopium without {CONFIG_NAME}; write it with"
            " cfg.save_hyperparameters(folder)"
        )
    config = read_json(path)
    if config.get("sae_type", "sae") != "sae":
        raise InputError(
            f"{path} says sae_type={config['sae_type']!r}; of llamascopium's, only sae is supported"
        )
    if config.get("use_glu_encoder"):
        raise InputError(
            f"{path} says use_glu_encoder=true; encoders with a gate of their own aren't supported"
        )
    if config.get("apply_decoder_bias_to_pre_encoder"):
        raise InputError(f"{path} says apply_decoder_bias_to_pre_encoder=true; that isn't supported")
    d_in = whole(path, config, "d_model")
    factor = config.get("expansion_factor")
    if not isinstance(factor, (int, float)) or d_in * factor != int(d_in * factor) or factor <= 0:
        raise StoreError(f"{path}: expansion_factor must give a whole number of latents, got {factor!r}")
    num_latents = int(d_in * factor)
    kind = str(config.get("act_fn", "relu")).lower()
    if kind not in ("relu", "topk", "jumprelu", "batchtopk"):
        raise InputError(f"{path} says act_fn={kind!r}; relu, topk, jumprelu and batchtopk are supported")
    held = read_tensors(weights)
    shapes: dict[str, tuple[int, ...]] = {
        "W_E": (d_in, num_latents),
        "b_E": (num_latents,),
        "W_D": (num_latents, d_in),
        **{name: () for name in held if name.startswith(_NORM)},
    }
    biased = config.get("use_decoder_bias", True)
    if biased:
        shapes["b_D"] = (d_in,)
    if kind == "jumprelu":
        shapes[_THRESHOLD] = (num_latents,)
    found = check_tensors(weights, held, shapes, format="llamascopium", said_by=CONFIG_NAME)
    tensors = {
        "encoder.weight": found["W_E"].T.contiguous(),
        "encoder.bias": found["b_E"],
        "W_dec": found["W_D"],
        "b_dec": found["b_D"] if biased else found["W_D"].new_zeros(d_in),
    }
    options: dict[str, Any] = {"num_latents": num_latents, "normalize_decoder": False}
    architecture = _choose(folder, kind, config, facts, found, tensors, options)
    hook, hook_out = config.get("hook_point_in"), config.get("hook_point_out")
    origin = Origin(
        "llamascopium",
        hook=hook,
        hook_out=None if hook_out == hook else hook_out,
        k=config.get("top_k") if kind in ("topk", "batchtopk") else None,
        trained_as=kind,
    )
    return Checkpoint(architecture, tensors, options, _frame(folder, config, facts, found), origin)


def _choose(
    folder: Path,
    kind: str,
    config: dict[str, Any],
    facts: Facts,
    found: dict[str, Tensor],
    tensors: dict[str, Tensor],
    options: dict[str, Any],
) -> str:
    """Return the architecture; add what decides whether a latent fires to ``tensors`` and ``options``."""
    norms = torch.linalg.vector_norm(found["W_D"].double(), dim=1)
    weighed = bool(config.get("sparsity_include_decoder_norm", True))
    if kind == "relu":
        return "relu"  # a norm changes no sign
    if kind == "topk":
        options["k"] = whole(folder / CONFIG_NAME, config, "top_k")
        if weighed:
            safe = torch.where(norms > 0, norms, 1.0)
            wide = torch.promote_types(tensors["encoder.weight"].dtype, torch.float32)
            for name in ("encoder.weight", "encoder.bias"):
                scaled = tensors[name].double().mul(safe[:, None] if name == "encoder.weight" else safe)
                tensors[name] = scaled.to(wide)
            tensors["value_scale"] = safe.reciprocal()
        return "topk"
    if kind == "jumprelu":
        limits = found[_THRESHOLD].double().exp()
    else:
        # Training keeps the strongest of a batch, so what a token gets depends on the tokens beside it.
        limit = facts.need(
            "threshold", float, folder, "from which pre-activation on a latent of a BatchTopK fires"
        )
        limits = torch.full_like(norms, limit)
    if weighed:
        limits = torch.where(norms > 0, limits / norms, math.inf)  # a row of zeros never exceeds anything
        limits = limits.clamp(max=torch.finfo(torch.float64).max)
    tensors["threshold"] = limits
    return "jumprelu"


def _frame(folder: Path, config: dict[str, Any], facts: Facts, found: dict[str, Tensor]) -> Frame:
    way = config.get("norm_activation", "dataset-wise")
    width = math.sqrt(int(config["d_model"]))
    if way == "inference":
        return Frame(subtract_b_dec=False)
    if way == "token-wise":
        return Frame(subtract_b_dec=False, normalise="constant_norm")
    if way != "dataset-wise":
        raise InputError(
            f"{folder / CONFIG_NAME} says norm_activation={way!r}: codes would depend on"
            " which tokens are together"
        )
    scales = []
    for side in ("hook_point_in", "hook_point_out"):
        norm = found.get(f"{_NORM}{config.get(side) or config.get('hook_point_in')}")
        value = float(norm) if norm is not None else 0.0
        if not value > 0:
            value = width / facts.need(
                "norm_scaling_factor",
                float,
                folder,
                "the factor that its activations were scaled by (√D / their mean norm)",
            )
        scales.append(width / value)
    return Frame(subtract_b_dec=False, scale=scales[0], scale_out=scales[1])


FORMAT = Format("llamascopium", WEIGHTS_NAME, read, _recognises, beside=(CONFIG_NAME,))

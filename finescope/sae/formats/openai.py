"""OpenAI's for GPT-2: ``autoencoders/N.pt``, a state dict with the name of the activation.

pre_bias [D], latent_bias [F], encoder.weight [F,D], decoder.weight [D,F] and statistics. With ``TopK``
activations are normalised, (x − mean) / (std + 1e-5) and back; the code is the top k, then relu, of W (x' −
pre_bias) + latent_bias.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, read_pickle
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_HOOKS = {
    "resid_post_mlp": "blocks.{}.hook_resid_post",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_delta_attn": "blocks.{}.hook_attn_out",
    "mlp_post_act": "blocks.{}.mlp.hook_post",
}


def _recognises(path: Path) -> bool:
    held = read_pickle(path)
    return isinstance(held, dict) and "pre_bias" in held and "latent_bias" in held


def read(path: Path, facts: Facts) -> Checkpoint:
    """Read an autoencoder of OpenAI's release for GPT-2 small."""
    held = dict(read_pickle(path))
    kind = held.pop("activation", "ReLU")
    state = held.pop("activation_state_dict", {})
    weight = held.get("encoder.weight")
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise StoreError(f"{path} has no matrix encoder.weight")
    num_latents, d_in = weight.shape
    shapes: Shapes = {
        "pre_bias": (d_in,),
        "latent_bias": (num_latents,),
        "encoder.weight": (num_latents, d_in),
        "decoder.weight": (d_in, num_latents),
    }
    found = check_tensors(
        path, held, shapes, format="OpenAI's", said_by="encoder.weight", ignored=_STATISTICS
    )
    tensors = {
        "encoder.weight": found["encoder.weight"],
        "encoder.bias": found["latent_bias"],
        "W_dec": found["decoder.weight"].T.contiguous(),
        "b_dec": found["pre_bias"],
    }
    options: dict[str, Any] = {"num_latents": num_latents, "normalize_decoder": False}
    if kind == "ReLU":
        return Checkpoint("relu", tensors, options, Frame(), _origin(path, None))
    if kind != "TopK":
        raise InputError(
            f"{path} is one of OpenAI's autoencoders with activation {kind!r}; ReLU and TopK are known"
        )
    k, after = state.get("k"), state.get("postact_fn", "ReLU")
    if not isinstance(k, int) or k < 1:
        raise StoreError(f"{path}: the k of its TopK must be a positive integer, got {k!r}")
    if after != "ReLU":
        raise InputError(f"{path} applies {after!r} after its TopK; only ReLU is supported")
    options["k"] = k
    return Checkpoint("topk", tensors, options, Frame(normalise="layer_norm"), _origin(path, k))


def _origin(path: Path, k: int | None) -> Origin:
    place = path.absolute().as_posix()
    hook = next((hook for name, hook in _HOOKS.items() if f"/{name}" in place), None)
    layer = re.fullmatch(r"(\d+)\.pt", path.name)
    return Origin("openai", model="gpt2", hook=hook.format(layer[1]) if hook and layer else None, k=k)


FORMAT = Format("openai", "*.pt", read, _recognises, single=True)

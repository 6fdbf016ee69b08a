"""Qwen-Scope: ``layerN.sae.pt``, a TopK whose k only the repository's name says (…-W32K-L0_50).

W_enc [F,D], b_enc [F], W_dec [D,F], b_dec [D]: the top k of relu(W_enc x + b_enc); b_dec isn't taken off the
input.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from finescope.errors import StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, read_pickle
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

_REPOSITORY = re.compile(r"SAE-Res-(.+)-W\d+K-L0_(\d+)(?:/|$)")


def read(path: Path, facts: Facts) -> Checkpoint:
    """Read one layer's SAE of Qwen-Scope."""
    held = read_pickle(path)
    weight = held.get("W_enc") if isinstance(held, dict) else None
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise StoreError(f"{path} has no matrix W_enc, as SAEs of Qwen-Scope have")
    num_latents, d_in = weight.shape
    shapes: Shapes = {
        "W_enc": (num_latents, d_in),
        "b_enc": (num_latents,),
        "W_dec": (d_in, num_latents),
        "b_dec": (d_in,),
    }
    found = check_tensors(path, held, shapes, format="Qwen-Scope", said_by="W_enc")
    tensors = {
        "encoder.weight": found["W_enc"],
        "encoder.bias": found["b_enc"],
        "W_dec": found["W_dec"].T.contiguous(),
        "b_dec": found["b_dec"],
    }
    named = next((match for part in path.absolute().parts if (match := _REPOSITORY.search(part))), None)
    k = facts.get("k", int, int(named[2]) if named else None)
    if k is None:
        k = facts.need("k", int, path, "how many latents fire (it is the L0 in the repository's name)")
    layer = re.match(r"layer(\d+)\.", path.name)
    origin = Origin(
        "qwen_scope",
        model=f"Qwen/{named[1]}" if named else None,
        hook=f"model.layers.{layer[1]}" if layer else None,
        k=k,
    )
    options = {"num_latents": num_latents, "normalize_decoder": False, "k": k}
    return Checkpoint("topk", tensors, options, Frame(subtract_b_dec=False), origin)


FORMAT = Format("qwen_scope", "*.sae.pt", read, single=True)

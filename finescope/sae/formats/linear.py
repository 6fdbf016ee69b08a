"""Two linear layers in one file of torch.save: Goodfire's and qresearch's (DeepSeek-R1) ReLU autoencoders.

encoder_linear.weight [F,D], encoder_linear.bias, decoder_linear.weight [D,F], decoder_linear.bias (Goodfire),
or the same as encoder.* and decoder.*: relu(W x + b), b_dec isn't taken off the input. No file says more.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from torch import Tensor

from finescope.errors import StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import Shapes, check_tensors, read_pickle
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame

_MODELS = {
    "DeepSeek-R1-Distill-Llama-8B": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct",
}


def _recognises(ending: str, path: Path) -> bool:
    held = read_pickle(path)
    return isinstance(held, dict) and set(held) == {
        f"{side}{ending}.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias")
    }


def _read(name: str, ending: str, path: Path, facts: Facts) -> Checkpoint:
    held = read_pickle(path)
    weight = held.get(f"encoder{ending}.weight") if isinstance(held, dict) else None
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise StoreError(f"{path} has no matrix encoder{ending}.weight")
    num_latents, d_in = weight.shape
    shapes: Shapes = {
        f"encoder{ending}.weight": (num_latents, d_in),
        f"encoder{ending}.bias": (num_latents,),
        f"decoder{ending}.weight": (d_in, num_latents),
        f"decoder{ending}.bias": (d_in,),
    }
    found = check_tensors(path, held, shapes, format=name, said_by=f"encoder{ending}.weight")
    tensors = {
        "encoder.weight": found[f"encoder{ending}.weight"],
        "encoder.bias": found[f"encoder{ending}.bias"],
        "W_dec": found[f"decoder{ending}.weight"].T.contiguous(),
        "b_dec": found[f"decoder{ending}.bias"],
    }
    layer = re.search(r"(?:^|[-_])l(\d+)(?:[-_.]|$)", path.name)
    origin = Origin(
        name,
        model=next((model for part, model in _MODELS.items() if part in path.name), None),
        hook=f"blocks.{layer[1]}.hook_resid_post" if layer else None,
    )
    options = {"num_latents": num_latents, "normalize_decoder": False}
    return Checkpoint("relu", tensors, options, Frame(subtract_b_dec=False), origin)


def _format(name: str, ending: str, mark: str) -> Format:
    return Format(name, mark, partial(_read, name, ending), partial(_recognises, ending), single=True)


FORMATS = tuple(
    _format(name, ending, mark)
    for name, ending in (("goodfire", "_linear"), ("qresearch", ""))
    for mark in ("*.pt", "*.pth")
)

"""sparsify (EleutherAI): ``cfg.json`` beside ``sae.safetensors``, a folder per hookpoint, and below it per
seed.

The code is the top-k of relu(W (x − b_dec) + b); with ``groupmax`` the largest of each of k groups of
consecutive latents; a transcoder takes x as it is. Reconstructions add W_skip x, where there is one. Shapes
are ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from finescope.config import SaeConfig
from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_tensors, whole
from finescope.sae.formats.folded import folded, is_transcoder
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame
from finescope.storage.files import write_json, write_tensors

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae.safetensors"

_FLAGS = ("normalize_decoder", "multi_topk", "skip_connection", "transcode", "signed")
_OURS = "finescope"
"""Key under which we say what sparsify has no word for, and its readers pass over: model and place."""
# Keys of others' files of the same two names, which change what the weights mean.
_FOREIGN = ("sae_type", "mean_center", "use_skip", "architecture")


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read a sparse coder of sparsify, any of its kinds."""
    path = folder / CONFIG_NAME
    config = read_json(path)
    for name in _FOREIGN:
        if config.get(name):
            raise InputError(
                f"{path} says {name}={config[name]!r}, which sparsify doesn't have; the weights would be"
                " misread"
            )
    flags = {name: _flag(path, config, name) for name in _FLAGS}
    if flags["signed"]:
        raise InputError(f"{path} says signed=True: only codes that are not negative are supported")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise InputError(
            f"{path} says activation={activation!r}; sparsify has topk and groupmax, and as another one the"
            " weights would be misread"
        )
    d_in = whole(path, config, "d_in")
    k = whole(path, config, "k") if "k" in config else facts.need("k", int, folder, "how many latents fire")
    num_latents = config.get("num_latents") or d_in * whole(path, config, "expansion_factor")
    whole(path, {"num_latents": num_latents}, "num_latents")
    options = {
        "num_latents": config.get("num_latents") or 0,
        "expansion_factor": config.get("expansion_factor", 32),
        "k": k,
        "normalize_decoder": flags["normalize_decoder"],
        "multi_topk": flags["multi_topk"],
    }
    try:
        SaeConfig.from_dict(options)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    wanted = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
    }
    if flags["skip_connection"]:
        wanted["W_skip"] = (d_in, d_in)
    weights = folder / WEIGHTS_NAME
    tensors = check_tensors(
        weights,
        read_tensors(weights),
        wanted,
        format="sparsify",
        said_by=f"{CONFIG_NAME} (F={num_latents} latents of width D={d_in})",
    )
    said = config.get(_OURS)
    said = said if isinstance(said, dict) else {}
    hook = said.get("hook") or _hook(folder)
    return Checkpoint(
        activation,
        tensors,
        options,
        Frame(subtract_b_dec=not flags["transcode"], wide=4 if flags["multi_topk"] else 1),
        Origin(
            "sparsify",
            model=said.get("model"),
            hook=f"{hook}.input" if hook and flags["transcode"] and not said.get("hook") else hook,
            hook_out=said.get("hook_out") or (hook if flags["transcode"] else None),
            k=k,
            notes=_notes(config),
        ),
    )


def _hook(folder: Path) -> str | None:
    """Return the module that the folder is named after, if it is named after one."""
    name = folder.parent.name if folder.name.startswith("seed") else folder.name
    return name if re.search(r"(?:^|\.)[a-z]+\.\d+(?:\.|$)", name) else None


def _flag(path: Path, config: dict[str, Any], name: str) -> bool:
    # What older files leave out has sparsify's default, not ours.
    value = config.get(name, name == "normalize_decoder")
    if not isinstance(value, bool):
        raise StoreError(f"{path}: {name} must be true or false, got {value!r}")
    return value


def _notes(config: dict[str, Any]) -> tuple[str, ...]:
    known = {"activation", "expansion_factor", "num_latents", "k", "d_in", _OURS, *_FLAGS, *_FOREIGN}
    unknown = sorted(name for name, value in config.items() if name not in known and value)
    return (f"{CONFIG_NAME} has keys that sparsify doesn't: {', '.join(unknown)}",) if unknown else ()


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint; each file is complete or absent.

    Raises:
        InputError: the format can't hold what the checkpoint is.
        StoreError: a file can't be written.
    """
    config, tensors = to_files(checkpoint)
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    write_json(folder / CONFIG_NAME, config)


def convert(checkpoint: Checkpoint, folder: Path) -> None:
    """Write any checkpoint of which codes and reconstructions stay the same in sparsify's form.

    Raises:
        InputError: there is no such form; says why.
        StoreError: a file can't be written.
    """
    _refuse_architecture(checkpoint)
    if not holds(checkpoint):
        checkpoint = folded(checkpoint, "sparsify", subtract=not is_transcoder(checkpoint))
    write(checkpoint, folder)


def _refuse_architecture(checkpoint: Checkpoint) -> None:
    if checkpoint.architecture not in ("topk", "groupmax"):
        raise InputError(f"sparsify has no {checkpoint.architecture} autoencoders, only topk and groupmax")


def holds(checkpoint: Checkpoint) -> bool:
    """Whether the format has room for all that the checkpoint is, as it is."""
    try:
        to_files(checkpoint)
    except InputError:
        return False
    # An encoder that doesn't see x − b_dec is a transcoder's there, which reads the input of a module.
    return checkpoint.frame.subtract_b_dec != is_transcoder(checkpoint)


def to_files(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the two files are to hold."""
    frame, tensors = checkpoint.frame, checkpoint.tensors
    lost = sorted(set(tensors) - {"encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"})
    d_in = tensors["encoder.weight"].shape[1]
    _refuse_architecture(checkpoint)
    if lost or not frame.plain:
        raise InputError(
            f"sparsify can't hold {', '.join(lost) or 'activations that are normalised or scaled first'}"
        )
    if tensors["b_dec"].shape[0] != d_in:
        raise InputError(
            f"sparsify has transcoders of one width only, not from {d_in} to {len(tensors['b_dec'])}"
        )
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1:
        raise InputError(
            f"sparsify reads all tensors in the type of the first, and these are of {len(dtypes)}; convert"
            " them"
        )
    options = SaeConfig.from_dict(checkpoint.options)
    config = {
        "activation": checkpoint.architecture,
        "expansion_factor": options.expansion_factor,
        "normalize_decoder": options.normalize_decoder,
        "num_latents": options.num_latents,
        "k": options.k,
        # In sparsify this makes codes of 4K latents; of ours it is a term of the loss, which a reader hasn't.
        "multi_topk": frame.wide != 1,
        "skip_connection": "W_skip" in tensors,
        "transcode": not frame.subtract_b_dec,
        "d_in": d_in,
    }
    said = {name: getattr(checkpoint.origin, name) for name in ("model", "hook", "hook_out")}
    if any(said.values()):
        config[_OURS] = {name: value for name, value in said.items() if value}
    return config, tensors


FORMAT = Format("sparsify", WEIGHTS_NAME, read, beside=(CONFIG_NAME,), write=convert)

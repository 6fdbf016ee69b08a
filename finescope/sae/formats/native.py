"""FineScope's own: sparsify's two files, with all that an autoencoder may have besides.

sparsify's readers refuse them, because their ``activation`` is none of sparsify's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finescope.config import SaeConfig
from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_tensors, whole
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame
from finescope.storage.files import write_json, write_tensors

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae.safetensors"

_TAG = "finescope"
_VERSION = 1


def _recognises(folder: Path) -> bool:
    path = folder / CONFIG_NAME
    return path.is_file() and read_json(path).get("format") == _TAG


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read what :func:`write` wrote."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    config = read_json(path)
    if config.get("version") != _VERSION:
        raise InputError(
            f"{path} has version {config.get('version')!r} of the format; this FineScope reads {_VERSION}"
        )
    shapes = config.get("shapes")
    if not isinstance(shapes, dict):
        raise StoreError(f"{path}: shapes must be an object, got {shapes!r}")
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    tensors = check_tensors(weights, read_tensors(weights), wanted, format=_TAG, said_by=CONFIG_NAME)
    whole(path, config, "d_in")
    try:
        options = SaeConfig.from_dict(config["sae"]).to_dict()
        frame = Frame(**config["frame"])
        origin = Origin(**{**config["origin"], "notes": tuple(config["origin"].get("notes", ()))})
        return Checkpoint(str(config["activation"]), tensors, options, frame, origin)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint; each file is complete or absent. Raises StoreError where they can't be written."""
    write_tensors(folder / WEIGHTS_NAME, checkpoint.tensors, {"format": "pt"})
    config: dict[str, Any] = {
        "format": _TAG,
        "version": _VERSION,
        "activation": checkpoint.architecture,
        "d_in": checkpoint.tensors["encoder.weight"].shape[1],
        "sae": SaeConfig.from_dict(checkpoint.options).to_dict(),
        "frame": checkpoint.frame.to_dict(),
        "origin": checkpoint.origin.to_dict(),
        "shapes": {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()},
    }
    write_json(folder / CONFIG_NAME, config)


FORMAT = Format("finescope", WEIGHTS_NAME, read, _recognises, beside=(CONFIG_NAME,), write=write)

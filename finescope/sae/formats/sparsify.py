"""SAE files in sparsify's layout: ``cfg.json`` beside ``sae.safetensors``, one directory per hookpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finescope.config import SaeConfig
from finescope.errors import InputError, StoreError
from finescope.sae.architectures.topk import SparseAutoencoder
from finescope.storage.files import write_json, write_tensors

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae.safetensors"

# sparsify's options that change what the weights mean, with the only value that this class implements.
_FIXED_MEANING: dict[str, Any] = {
    "activation": "topk",
    "signed": False,
    "skip_connection": False,
    "transcode": False,
}


def save_sae(sae: SparseAutoencoder, directory: str | Path) -> None:
    """Write ``sae`` as ``cfg.json`` and ``sae.safetensors`` into ``directory``, made if missing.

    Each file is complete or absent. Raises StoreError where they can't be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"can't make the directory {directory}: {error.strerror}") from error
    tensors = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
    write_tensors(directory / WEIGHTS_NAME, tensors, {"format": "pt"})
    write_json(directory / CONFIG_NAME, {"activation": "topk", **sae.cfg.to_dict(), "d_in": sae.d_in})


def load_sae(
    directory: str | Path,
    *,
    hookpoint: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SparseAutoencoder:
    """Read an SAE; see :meth:`SparseAutoencoder.load`."""
    home = _home(Path(directory), hookpoint)
    config, d_in = _read_config(home / CONFIG_NAME)
    tensors = _read_weights(home / WEIGHTS_NAME, config.latents(d_in), d_in)
    if dtype is None:
        dtype = tensors["encoder.weight"].dtype
    sae = SparseAutoencoder(d_in, config, dtype=dtype, device="meta")  # the values come from the file
    placed = {name: tensor.to(device=device or "cpu", dtype=dtype) for name, tensor in tensors.items()}
    sae.load_state_dict(placed, assign=True)
    return sae.requires_grad_(True)


def _home(directory: Path, hookpoint: str | None) -> Path:
    """Return the directory that holds the two files."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the one that holds {CONFIG_NAME}")
    if hookpoint is None and (directory / CONFIG_NAME).is_file():
        return directory
    found = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    if hookpoint is not None:
        if hookpoint in found:
            return directory / hookpoint
        # The directory of the hookpoint itself was given: sparsify's paths end in the hookpoint's name.
        if directory.name == hookpoint and (directory / CONFIG_NAME).is_file():
            return directory
        known = f"it has {', '.join(found)}" if found else "it has none"
        raise InputError(f"{directory} has no autoencoder for the hookpoint {hookpoint!r}; {known}")
    if len(found) == 1:
        return directory / found[0]
    if found:
        raise InputError(f"{directory} has several autoencoders; name a hookpoint: {', '.join(found)}")
    raise InputError(f"no autoencoder in {directory}: {CONFIG_NAME} is missing there and one level below")


def _read_config(path: Path) -> tuple[SaeConfig, int]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise StoreError(f"{path} should hold a JSON object, but holds {type(raw).__name__}")
    for option, supported in _FIXED_MEANING.items():
        if raw.get(option, supported) != supported:
            raise InputError(
                f"{path} says {option}={raw[option]!r}; only {option}={supported!r} is supported, and other"
                " weights would be misread"
            )
    d_in = raw.pop("d_in", None)
    if not isinstance(d_in, int) or d_in < 1:
        raise StoreError(f"{path}: d_in must be a positive integer, got {d_in!r}")
    raw.setdefault("multi_topk", False)  # sparsify's default, where its older files leave the key out
    try:
        return SaeConfig.from_dict(raw, drop_extra_fields=True), d_in
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error


def _read_weights(path: Path, num_latents: int, d_in: int) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no autoencoder weights: {path} is missing")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is damaged or not a safetensors file: {error}") from error
    expected = {
        "encoder.weight": (num_latents, d_in),
        "encoder.bias": (num_latents,),
        "W_dec": (num_latents, d_in),
        "b_dec": (d_in,),
    }
    for name, shape in expected.items():
        if name not in tensors:
            raise StoreError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(tensors))}")
        if not tensors[name].is_floating_point():
            raise StoreError(f"{path}: {name} holds {tensors[name].dtype}, not floating-point numbers")
        if tuple(tensors[name].shape) != shape:
            raise StoreError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, but {CONFIG_NAME} asks for {shape}"
                f" (F={num_latents} latents of width D={d_in})"
            )
    return {name: tensors[name] for name in expected}

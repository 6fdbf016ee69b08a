"""Reading the files that SAEs come in, and refusing what isn't exactly what a format has."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.ops.checks import all_finite
from finescope.storage.files import map_tensors

Shapes = Mapping[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: there is no such file.
        StoreError: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"no configuration of the autoencoder: {path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} should hold a JSON object, but holds {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    if not path.is_file():
        raise InputError(f"no autoencoder weights: {path} is missing")
    return map_tensors(path)[0]


def names_in(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file; none if it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (OSError, SafetensorError):
        return set()


def read_pickle(path: Path) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values; nothing in it is ever run."""
    if not path.is_file():
        raise InputError(f"no autoencoder weights: {path} is missing")
    try:
        mapped = zipfile.is_zipfile(path)  # older files are read at once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another age, which then load or don't
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path} holds Python objects besides tensors, which could run code when they are read, or is "
            "damaged; save the state dict alone, with torch.save or as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise StoreError(f"{path} is damaged or not a file of torch.save: {error}") from error


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Read a NumPy archive of plain arrays."""
    import numpy as np

    if not path.is_file():
        raise InputError(f"no autoencoder weights: {path} is missing")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged or not an archive of plain arrays: {error}") from error


def whole(path: Path, config: Mapping[str, Any], name: str) -> int:
    """Return a positive integer of a configuration.

    Raises:
        StoreError: it isn't one.
    """
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StoreError(f"{path}: {name} must be a positive integer, got {value!r}")
    return value


def check_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    wanted: Shapes,
    *,
    format: str,
    said_by: str = "the other tensors",
    ignored: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Return the wanted tensors, every one there, of its shape, finite; refuse a file that holds more.

    Args:
        path: of the file, for messages.
        tensors: what it holds.
        wanted: names and shapes.
        format: whose tensors these are, for messages.
        said_by: where the shapes come from.
        ignored: names that may be there and mean nothing here.

    Raises:
        InputError: further tensors, whose meaning would be lost.
        StoreError: a tensor is missing, misshapen, not floating point, or has NaN or infinity.
    """
    further = sorted(set(tensors) - set(wanted) - set(ignored))
    for name, shape in wanted.items():
        if name not in tensors:
            raise StoreError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(tensors)) or 'none'}")
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise StoreError(f"{path}: {name} holds {kind}, not floating-point numbers")
        if tuple(tensor.shape) != shape:
            raise StoreError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but {said_by} asks for {shape}"
            )
    if further:
        raise InputError(
            f"{path} is read as {format}, but has tensors that {format} doesn't have: {', '.join(further)};"
            " without them the weights would mean something else"
        )
    for name in wanted:
        if not all_finite(tensors[name]):
            raise StoreError(f"{path}: {name} has NaN or infinity; the file is damaged, or its training was")
    return {name: tensors[name] for name in wanted}

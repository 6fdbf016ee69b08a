"""What work and its inputs are known by: hashes, and in words what tells two sets of plain values apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from finescope.storage.files import PathLike

_SHOWN = 40


def sha256_file(path: PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a plain value's canonical JSON (keys sorted, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor], *, sample: int | None = None) -> str:
    """Return a SHA-256 over names, shapes, dtypes and bytes of tensors.

    Args:
        tensors: any devices and dtypes.
        sample: hash only about this many evenly spaced elements of each tensor: quick for large models,
            and enough to tell one checkpoint from another.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{list(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.reshape(-1)
        if sample is not None and flat.numel() > sample:
            flat = flat[:: flat.numel() // sample]
        if flat.numel():
            digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Difference(NamedTuple):
    """One value that differs: its dotted name, and both values as text, cut where they are long."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name} was {self.old}, now {self.new}"


def differences(old: Any, new: Any, name: str = "") -> list[Difference]:
    """Return what differs between two nested plain values, the second taken as JSON would give it back.

    Args:
        old: as read from a file.
        new: as it would be written.
        name: dotted name of the two, put before the names inside.
    """
    return _differences(old, json.loads(json.dumps(new, default=str)), name)


def _differences(old: Any, new: Any, name: str) -> list[Difference]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(f"{name}.{key}" if name else key, key) for key in sorted({*old, *new})]
        return [found for full, key in pairs for found in _differences(old.get(key), new.get(key), full)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        both = enumerate(zip(old, new, strict=True))
        return [found for number, pair in both for found in _differences(*pair, f"{name}[{number}]")]
    return [] if old == new else [Difference(name, _short(old), _short(new))]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:16]}…"

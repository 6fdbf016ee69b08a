"""What work and its inputs are known by: hashes, and in words what tells two sets of plain values apart."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from finescope.storage.files import PathLike

_SHOWN = 40
_WHOLE = 1 << 22
_PIECES, _PIECE = 256, 4096


def sha256_file(path: PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sampled_files(path: Path, endings: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Return hashes of a file, or of the files below a folder, by relative name.

    They are over the size and all bytes of files up to 4 MiB, and of larger ones over bytes from 256 places:
    enough to tell one checkpoint from another.

    Args:
        path: a file or a folder; one that doesn't exist holds no files.
        endings: of the files below the folder that are looked at.
    """
    if path.is_file():
        return {path.name: _sampled(path)}
    found = sorted(Path(place, name) for place, _, names in os.walk(path) for name in names)
    return {
        file.relative_to(path).as_posix(): _sampled(file)
        for file in found
        if file.name.lower().endswith(endings) and file.is_file()
    }


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}|".encode())
    with open(path, "rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for place in range(_PIECES):
                file.seek(place * (size - _PIECE) // (_PIECES - 1))
                digest.update(file.read(_PIECE))
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


def text_hash(text: str) -> str:
    """Return 32 hexadecimal digits (BLAKE2b, 128 bits) of a text after normalisation.

    Unicode is composed (NFKC), case folded, and every run of white space becomes one space, so copies that
    differ in wrapping, width or capitals count as the same text.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


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

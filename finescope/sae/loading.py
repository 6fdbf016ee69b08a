"""Reading an autoencoder from anybody's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finescope.sae.architectures.base import Autoencoder, build
from finescope.sae.formats import known


def load_sae(
    path: str | Path,
    hookpoint: str | None = None,
    format: str = "auto",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **facts: Any,
) -> Autoencoder:
    """Read a sparse autoencoder of any architecture in any known format.

    Args:
        path: a folder or file, or a folder with several autoencoders; or the name of a repository on the
            Hugging Face hub, of which only the files needed are fetched.
        hookpoint: which of several: the path of its folder or file below ``path``; or ``path#hookpoint``.
        format: name of the format; ``auto`` recognises it.
        device: of the parameters; the CPU if left out.
        dtype: of the parameters; as stored if left out.
        facts: what the files leave out, such as ``k``; asked for by name where it is needed.

    Raises:
        InputError: there is no SAE, the hub can't be reached, it is of no known format, or it can't be read
            right.
        StoreError: a file is damaged.
    """
    checkpoint = known.read(path, hookpoint=hookpoint, format=format, facts=facts)
    return build(checkpoint, device=device, dtype=dtype)

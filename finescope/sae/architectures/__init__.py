"""One file for each architecture of sparse autoencoder; this is the only place that knows which there are."""

from __future__ import annotations

import importlib
from typing import Any

from finescope.errors import InputError

_CLASSES = {
    "topk": "finescope.sae.architectures.topk:SparseAutoencoder",
}
ARCHITECTURES = tuple(_CLASSES)


def architecture_class(name: str) -> Any:
    """Return the class of an architecture, imported when first asked for.

    Raises:
        InputError: there is none of that name.
    """
    if name not in _CLASSES:
        raise InputError(f"there is no architecture {name!r}; known are {', '.join(_CLASSES)}")
    module, _, kind = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), kind)

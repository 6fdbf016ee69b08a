"""One file for each architecture of sparse autoencoder; this is the only place that knows which there are."""

from __future__ import annotations

import importlib
from typing import Any

from finescope.errors import InputError

_CLASSES = {
    "topk": "finescope.sae.architectures.topk:SparseAutoencoder",
    "batchtopk": "finescope.sae.architectures.batchtopk:BatchTopKAutoencoder",
    "matryoshka": "finescope.sae.architectures.matryoshka:MatryoshkaAutoencoder",
    "jumprelu": "finescope.sae.architectures.jumprelu:JumpReluAutoencoder",
    "signed_jumprelu": "finescope.sae.architectures.jumprelu:SignedJumpReluAutoencoder",
    "relu": "finescope.sae.architectures.relu:ReluAutoencoder",
    "gated": "finescope.sae.architectures.gated:GatedAutoencoder",
    "abstopk": "finescope.sae.architectures.abstopk:AbsTopKAutoencoder",
    "capped_jumprelu": "finescope.sae.architectures.jumprelu:CappedJumpReluAutoencoder",
    "gated_topk": "finescope.sae.architectures.gated_topk:GatedTopKAutoencoder",
    "cosine": "finescope.sae.architectures.cosine:CosineAutoencoder",
    "lista": "finescope.sae.architectures.lista:ListaAutoencoder",
    "groupmax": "finescope.sae.architectures.groupmax:GroupmaxAutoencoder",
}
ARCHITECTURES = tuple(_CLASSES)
TRAINED = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated")
"""Those that ``train_sae`` trains; the others are read from files of their libraries."""


def architecture_class(name: str) -> Any:
    """Return the class of an architecture, imported when first asked for.

    Raises:
        InputError: there is none of that name.
    """
    if name not in _CLASSES:
        raise InputError(f"there is no architecture {name!r}; known are {', '.join(_CLASSES)}")
    module, _, kind = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), kind)

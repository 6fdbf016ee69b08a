"""Sparse autoencoders: the module, its losses, its files and its trainer.

    frame ← formats ← architectures ← loading
                                            files of all libraries ← modules, read from them
    functional ← losses ← composed, fused   the terms of the loss for codes of K latents, defined and fast
    entries ← objective                     the same for codes of any length
    parallel ← objective, dead, sources     one training run in several processes
    dead, sources, state, metrics, initial ← train
    ragged, threshold                       codes of any number of latents, and the gates that make them
    spread                                  an autoencoder of some coordinates as one of all

Names are imported on first use: a caller that only loads an SAE doesn't pay for the trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finescope.lazy import on_first_use

if TYPE_CHECKING:
    from finescope.embeddings import extract_embeddings as extract_embeddings
    from finescope.sae.architectures.base import Autoencoder as Autoencoder
    from finescope.sae.architectures.topk import EncoderOutput as EncoderOutput
    from finescope.sae.architectures.topk import ForwardOutput as ForwardOutput
    from finescope.sae.architectures.topk import SparseAutoencoder as SparseAutoencoder
    from finescope.sae.initial import geometric_median as geometric_median
    from finescope.sae.loading import load_sae as load_sae
    from finescope.sae.train import train_sae as train_sae

_HOME = {
    "Autoencoder": "finescope.sae.architectures.base",
    "EncoderOutput": "finescope.sae.architectures.topk",
    "ForwardOutput": "finescope.sae.architectures.topk",
    "SparseAutoencoder": "finescope.sae.architectures.topk",
    "extract_embeddings": "finescope.embeddings",
    "geometric_median": "finescope.sae.initial",
    "load_sae": "finescope.sae.loading",
    "train_sae": "finescope.sae.train",
}

__all__ = sorted(_HOME)
__getattr__ = on_first_use(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__

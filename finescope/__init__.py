"""FineScope: pick the rows of a large corpus that belong to the domain of a few target samples.

The map of the package is CONTRIBUTING.md's; the head of each folder names its files.

Public names are imported on first use, so ``import finescope`` costs next to nothing beyond ``import torch``
and never compiles, prints or downloads.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from finescope.lazy import on_first_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from finescope.codes import SparseCodes as SparseCodes
    from finescope.config import CurationConfig as CurationConfig
    from finescope.config import SaeConfig as SaeConfig
    from finescope.config import TrainingConfig as TrainingConfig
    from finescope.curation import run_curation_pipeline as run_curation_pipeline
    from finescope.data_generator import create_activation_dataset as create_activation_dataset
    from finescope.embeddings import extract_embeddings as extract_embeddings
    from finescope.errors import FineScopeError as FineScopeError
    from finescope.errors import InputError as InputError
    from finescope.errors import StoreError as StoreError
    from finescope.sae import SparseAutoencoder as SparseAutoencoder
    from finescope.sae import train_sae as train_sae
    from finescope.search import Index as Index
    from finescope.workflow.rowscorer import RowScorer as RowScorer
    from finescope.workflow.rowscorer import score_texts as score_texts

_HOME = {
    "CurationConfig": "finescope.config",
    "FineScopeError": "finescope.errors",
    "Index": "finescope.search",
    "InputError": "finescope.errors",
    "RowScorer": "finescope.workflow.rowscorer",
    "SaeConfig": "finescope.config",
    "SparseAutoencoder": "finescope.sae",
    "SparseCodes": "finescope.codes",
    "StoreError": "finescope.errors",
    "TrainingConfig": "finescope.config",
    "create_activation_dataset": "finescope.data_generator",
    "extract_embeddings": "finescope.embeddings",
    "run_curation_pipeline": "finescope.curation",
    "score_texts": "finescope.workflow.rowscorer",
    "train_sae": "finescope.sae",
}
_MODULES = frozenset(
    {
        "codes",
        "compat",
        "config",
        "corpus",
        "curation",
        "data_generator",
        "embeddings",
        "errors",
        "ops",
        "optim",
        "sae",
        "search",
    }
)

__all__ = ["__version__", *sorted(_HOME)]
_public = on_first_use(__name__, _HOME)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"finescope.{name}")
    return _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

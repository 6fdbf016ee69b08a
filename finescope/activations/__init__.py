"""Reading a model's activations at one layer, and keeping them on disk."""

from finescope.activations.batches import DocumentActivations
from finescope.activations.collect import store_activations
from finescope.activations.hookpoints import resolve_hookpoint
from finescope.activations.models import load_model, load_tokenizer
from finescope.activations.store import ActivationStore, ActivationStoreWriter
from finescope.activations.tap import ActivationTap

__all__ = [
    "ActivationStore",
    "ActivationStoreWriter",
    "ActivationTap",
    "DocumentActivations",
    "load_model",
    "load_tokenizer",
    "resolve_hookpoint",
    "store_activations",
]

"""Drop-in replacements that take what other libraries' functions take and return what they return.

    faiss.knn                                           knn
    sentence_transformers.util.semantic_search          semantic_search
    sentence_transformers.util.paraphrase_mining        paraphrase_mining, paraphrase_mining_embeddings
    sentence_transformers.util.community_detection      community_detection
    sklearn.neighbors.NearestNeighbors                  NearestNeighbors

Rows may be dense or sparse: arrays, tensors, scipy's and torch's sparse matrices, SparseCodes. The results
are exact: scores decided in float64 and rounded once, ties in the order of rows, the same for every batch and
machine. What the others leave to chance (the order of ties, NaN) is defined here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finescope.compat.faiss import METRIC_INNER_PRODUCT, METRIC_L2, knn
from finescope.compat.sentence_transformers import (
    community_detection,
    paraphrase_mining,
    paraphrase_mining_embeddings,
    semantic_search,
)
from finescope.lazy import on_first_use

if TYPE_CHECKING:
    from finescope.compat.sklearn import NearestNeighbors as NearestNeighbors

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "NearestNeighbors",
    "community_detection",
    "knn",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "semantic_search",
]
# A subclass of scikit-learn's, which takes a while to import.
__getattr__ = on_first_use(__name__, {"NearestNeighbors": "finescope.compat.sklearn"})

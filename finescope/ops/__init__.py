"""The operations that everything else is built on.

Map:

    schemas     one schema and one fake for each operation, under ``torch.ops.finescope``
    checks      what is rejected, and with which words
    public      the typed functions below
    autograd    one backward for each operation, for every backend
    engine      screen, certify, re-score: exact top-k in bounded memory
    dense, threshold, sparse, decode, training, adam, pooling, fixed_order
                the pure-torch bodies, registered as the default implementation of the schemas
    packed, packed_sparse
                matrices and sparse codes packed once for many calls
    registry    how fakes and bodies are registered
    native      finds the compiled objects, which register kernels for the same schemas
"""

from __future__ import annotations

# Imported for what they register.
from finescope.ops import adam as _adam  # noqa: F401
from finescope.ops import autograd as _autograd  # noqa: F401
from finescope.ops import decode as _decode  # noqa: F401
from finescope.ops import dense as _dense  # noqa: F401
from finescope.ops import native
from finescope.ops import packed as _packed  # noqa: F401
from finescope.ops import pooling as _pooling  # noqa: F401
from finescope.ops import sparse as _sparse  # noqa: F401
from finescope.ops import threshold as _threshold  # noqa: F401
from finescope.ops import training as _training  # noqa: F401
from finescope.ops.packed import PackedMatrix
from finescope.ops.packed_sparse import PackedCodes
from finescope.ops.public import (
    cosine_topk,
    pair_scores,
    pool_codes,
    sparse_cosine_topk,
    sparse_decode,
    sparse_matmul,
    sparse_pair_scores,
    sparse_products,
    threshold_encode,
    topk_encode,
)

native.load()

__all__ = [
    "PackedCodes",
    "PackedMatrix",
    "cosine_topk",
    "pair_scores",
    "pool_codes",
    "sparse_cosine_topk",
    "sparse_decode",
    "sparse_matmul",
    "sparse_pair_scores",
    "sparse_products",
    "threshold_encode",
    "topk_encode",
]

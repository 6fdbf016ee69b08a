"""Weights per latent. They are folded into the queries, so the corpus is never rewritten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finescope.curation.blocks import Codes, FloatArray, IntArray, iter_blocks, latents_of

WEIGHTINGS = ("none", "idf")
"""Names that ``resolve_weights`` understands."""


def document_frequency(codes: Codes) -> tuple[IntArray, int]:
    """Count in how many rows each latent occurs.

    Args:
        codes: N rows over F latents, streamed.

    Returns:
        int64 [F] counts, and the number of rows that hold at least one latent.

    Raises:
        InputError: there is no shard, so F is not known.
    """
    counts = np.zeros(latents_of(codes), np.int64)
    rows = 0
    for _, block in iter_blocks(codes):
        present = block.values.detach().float() > 0  # of 16-bit values torch compares one at a time
        indices = block.indices.numpy()
        counts += np.bincount(
            indices if bool(present.all()) else indices[present.numpy()], minlength=counts.size
        )
        rows += int(np.count_nonzero(np.diff(block.indptr.numpy())))
    return counts, rows


def idf_weights(codes: Codes) -> FloatArray:
    """Return the inverse document frequency of every latent: log((N + 1) / (df + 1)), float64 [F].

    N counts the rows that hold any latent and df those that hold this one. A latent that fires in every
    document says nothing about a domain and gets exactly 0; one that never fires gets the largest weight (it
    can't contribute). The form is Spärck Jones's (1972) with one added to both counts; scikit-learn's variant
    adds 1 to the logarithm, which keeps the always-on latents of language models alive.

    Where every latent that fires does so in every document (one document, copies of one, or none), none is
    rarer than another: all weigh 1, since weights of 0 would leave nothing to compare.
    """
    return idf_of(*document_frequency(codes))


def idf_of(counts: IntArray, rows: int) -> FloatArray:
    """Return ``idf_weights`` of what ``document_frequency`` has counted."""
    if not ((counts > 0) & (counts < rows)).any():
        return np.ones(counts.size)
    return logarithm((rows + 1.0) / (counts + 1.0))


# ln 2 in two parts; the first has so few digits that it times an exponent is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_SERIES = tuple(1.0 / (2 * power + 1) for power in range(1, 11))


def logarithm(numbers: NDArray[Any]) -> FloatArray:
    """Return the natural logarithm of positive, finite numbers, float64 of the same shape.

    NumPy's own differs in the last place between AVX-512 and other machines, and with it a weight, and every
    score. Made here of additions, products and quotients only: within two units in the last place of the
    exact value, the same bytes everywhere. For x = m·2ᵉ with m in √½ … √2: ln x = e·ln 2 + 2·artanh(s), with
    s = (m − 1)/(m + 1) and artanh(s) = s + s³/3 + s⁵/5 + …
    """
    mantissa, exponent = np.frexp(np.asarray(numbers, np.float64))
    small = mantissa < math.sqrt(0.5)
    mantissa, power = np.where(small, 2 * mantissa, mantissa), (exponent - small).astype(np.float64)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square, rest = ratio * ratio, np.full(ratio.shape, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        rest = rest * square + coefficient
    twice = 2.0 * ratio
    return np.asarray(power * _LN2_HIGH + (twice + (twice * square * rest + power * _LN2_LOW)))


def resolve_weights(weights: Any, codes: Codes, num_latents: int) -> FloatArray | None:
    """Turn a weighting by name or by value into float64 [F], or None for no weighting.

    Args:
        weights: None, "none", "idf" (from the corpus ``codes``), or non-negative numbers [F].
        codes: the corpus.
        num_latents: F.

    Raises:
        ValueError: unknown name, wrong length, a negative or non-finite weight.
    """
    if weights is None or (isinstance(weights, str) and weights == "none"):
        return None
    if isinstance(weights, str):
        if weights != "idf":
            raise ValueError(f"unknown weighting {weights!r}; known are {', '.join(WEIGHTINGS)}")
        return idf_weights(codes)
    array = weights.detach().cpu().numpy() if isinstance(weights, torch.Tensor) else weights
    result = np.asarray(array, dtype=np.float64)
    if result.shape != (num_latents,):
        raise ValueError(f"weights must have shape [{num_latents}], got {list(result.shape)}")
    if not np.isfinite(result).all() or (result < 0).any():
        raise ValueError("weights must be finite and not negative")
    return result

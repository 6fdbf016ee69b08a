"""Slow, obvious versions of the operations, in NumPy and float64. Imports nothing of finescope.

Two kinds of truth. ``fixed_dot`` and what is built on it follow the written definition step by step, so their
results are the bytes that every backend owes. ``true_dot`` is exact arithmetic (every product of two floats
of at most 24 bits is a float64, and ``math.fsum`` adds without error), so it does not depend on the
definition being sensible.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

NEVER = -math.inf


def array(tensor: Tensor) -> np.ndarray:
    """Any floating tensor as float64, which holds every narrower float."""
    return tensor.detach().to(torch.float64).numpy()


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


# ------------------------------------------------------------------ scores


def fixed_dots(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """[R,C]: lane d % 16 takes its terms in ascending d; then lanes fold 16 → 8 → 4 → 2 → 1."""
    lanes = [np.zeros((x.shape[0], w.shape[0])) for _ in range(16)]
    for d in range(x.shape[1]):
        lanes[d % 16] = lanes[d % 16] + x[:, d, None] * w[None, :, d]
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[j] + lanes[j + half] for j in range(half)]
    return lanes[0]


def true_dot(x: np.ndarray, w: np.ndarray) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, w, strict=True))


def fixed_norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.array([fixed_dots(row[None], row[None])[0, 0] for row in x]).reshape(-1))


def _cosines(dots: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    product = left[:, None] * right[None, :]
    return np.divide(dots, product, out=np.zeros_like(dots), where=product > 0)


def dense_scores(queries: Tensor, corpus: Tensor, metric: str) -> np.ndarray:
    """[Q,N] scores by the definition; NaN where a row on either side is not finite."""
    q, c = array(queries), array(corpus)
    bad_q, bad_c = ~np.isfinite(q).all(axis=1), ~np.isfinite(c).all(axis=1)
    q, c = np.where(bad_q[:, None], 0.0, q), np.where(bad_c[:, None], 0.0, c)
    scores = fixed_dots(q, c)
    if metric == "cosine":
        scores = _cosines(scores, fixed_norms(q), fixed_norms(c))
    return np.where(bad_q[:, None] | bad_c[None, :], math.nan, scores)


def sparse_scores(queries: Tensor, corpus: Tensor, metric: str) -> np.ndarray:
    """[Q,N] scores of codes given as dense [.,F] tensors: one sum in ascending latents."""
    q, c = array(queries), array(corpus)
    bad_q, bad_c = ~np.isfinite(q).all(axis=1), ~np.isfinite(c).all(axis=1)
    q, c = np.where(bad_q[:, None], 0.0, q), np.where(bad_c[:, None], 0.0, c)
    dots, left, right = np.zeros((len(q), len(c))), np.zeros(len(q)), np.zeros(len(c))
    for f in range(q.shape[1]):
        dots = dots + q[:, f, None] * c[None, :, f]
        left, right = left + q[:, f] * q[:, f], right + c[:, f] * c[:, f]
    if metric == "cosine":
        dots = _cosines(dots, np.sqrt(left), np.sqrt(right))
    return np.where(bad_q[:, None] | bad_c[None, :], math.nan, dots)


# ------------------------------------------------------------------ top-k


def search(
    scores: np.ndarray,
    k: int,
    dtype: torch.dtype,
    *,
    min_score: float | None = None,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
    id_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Score descending, then id ascending; NaN never; -inf and -1 where there is nothing left."""
    out = torch.full((scores.shape[0], k), NEVER, dtype=dtype)
    ids = torch.full((scores.shape[0], k), -1, dtype=torch.int64)
    for q, row in enumerate(scores):
        banned = set() if exclude is None else {int(e) - id_offset for e in exclude[q] if e >= 0}
        allowed = [
            n
            for n in range(len(row))
            if not math.isnan(row[n]) and n not in banned and (mask is None or bool(mask[n]))
        ]
        place = 0
        for n in sorted(allowed, key=lambda n: (-row[n], n))[:k]:
            rounded = torch.tensor(row[n]).to(dtype)
            # As float64: a tensor would be held against the minimum rounded to its own dtype.
            if min_score is None or rounded.item() >= min_score:
                out[q, place], ids[q, place] = rounded, n + id_offset
                place += 1
    return out, ids


def encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """topk(relu(x @ weight.T + bias)): value descending, then latent ascending, zeros by lowest latent."""
    dtype = result_dtype(x, weight, bias)
    a, w = array(x), array(weight)
    bad = ~np.isfinite(a).all(axis=1)
    if not np.isfinite(w).all() or (bias is not None and not np.isfinite(array(bias)).all()):
        bad[:] = True
    values = torch.full((len(a), k), math.nan, dtype=dtype)
    indices = torch.arange(k).repeat(len(a), 1)
    if bad.all():
        return values, indices
    scores = fixed_dots(np.where(bad[:, None], 0.0, a), w)
    if bias is not None:
        scores = scores + array(bias)
    scores = np.where(scores > 0, scores, 0.0)
    for b in np.flatnonzero(~bad):
        best = sorted(range(len(w)), key=lambda f: (-scores[b, f], f))[:k]
        indices[b] = torch.tensor(best, dtype=torch.int64)
        values[b] = torch.from_numpy(scores[b, best]).to(dtype)
    return values, indices


# ------------------------------------------------------------------ pooling


def pool(values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int) -> tuple[Tensor, Tensor]:
    """Per document and latent, in token order; the strongest by value, stored by latent."""
    documents = len(offsets) - 1
    out = torch.zeros((documents, keep), dtype=torch.float32)
    latents = torch.full((documents, keep), -1, dtype=torch.int64)
    for n in range(documents):
        first, last = int(offsets[n]), int(offsets[n + 1])
        total: dict[int, float] = {}
        tokens: dict[int, dict[int, float]] = {}
        for t in range(first, last):
            for value, latent in zip(array(values[t]).tolist(), indices[t].tolist(), strict=True):
                if value > 0 and math.isfinite(value):
                    total[latent] = total.get(latent, 0.0) + value
                    of_latent = tokens.setdefault(latent, {})
                    of_latent[t] = of_latent.get(t, 0.0) + value
        pooled = {
            latent: {
                "sum": total[latent],
                "mean": total[latent] / (last - first),
                "sqrt_mean": math.sqrt(total[latent] / (last - first)),
                "max": max(of_token.values()),
                "count": float(len(of_token)),
            }[reduce]
            for latent, of_token in tokens.items()
        }
        strongest = sorted(pooled, key=lambda latent: (-pooled[latent], latent))[:keep]
        for place, latent in enumerate(sorted(strongest)):
            out[n, place], latents[n, place] = pooled[latent], latent
    return out, latents

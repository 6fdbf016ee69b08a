"""Codes and reconstructions of autoencoders as dense float64 formulas, one line each, with plain NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def relu(p: Array) -> Array:
    return np.maximum(p, 0)


def topk(p: Array, k: int) -> Array:
    """The k largest of every row, then relu; ties to the lower column."""
    order = np.argsort(-p, axis=1, kind="stable")[:, :k]
    out = np.zeros_like(p)
    np.put_along_axis(out, order, np.take_along_axis(p, order, 1), 1)
    return relu(out)


def abs_topk(p: Array, k: int) -> Array:
    order = np.argsort(-np.abs(p), axis=1, kind="stable")[:, :k]
    out = np.zeros_like(p)
    np.put_along_axis(out, order, np.take_along_axis(p, order, 1), 1)
    return out


def groupmax(p: Array, k: int) -> Array:
    size = p.shape[1] // k
    out = np.zeros_like(p)
    for group in range(k):
        part = p[:, group * size : (group + 1) * size]
        best = part.argmax(1)
        rows = np.arange(len(p))
        out[rows, group * size + best] = relu(part[rows, best])
    return out


def jumprelu(p: Array, threshold: Array | float) -> Array:
    return relu(p) * (p > threshold)


def gated(e: Array, gate_bias: Array, r_mag: Array, mag_bias: Array) -> Array:
    return (e + gate_bias > 0) * relu(np.exp(r_mag) * e + mag_bias)


def layer_norm(x: Array) -> tuple[Array, Array, Array]:
    """Rows without mean, over their standard deviation (D − 1) plus 1e-5; and what undoes it."""
    mean = x.mean(1, keepdims=True)
    spread = x.std(1, ddof=1, keepdims=True)
    return (x - mean) / (spread + 1e-5), spread, mean

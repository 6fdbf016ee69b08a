"""What the training operations are, written out in NumPy: one sum after the other, one rounding at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from support.decode_oracle import sampled_dot, scatter_rows, scatter_values, sparse_decode


def decode_residual(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, k: int
) -> list[Tensor]:
    """(out, residual, dots, errors) of ``decode_residual``."""
    out = sparse_decode(values[:, :k], indices[:, :k], weight, bias)
    residuals = [target - out]
    first = torch.zeros_like(values)
    first[:, :k] = sampled_dot(residuals[0], indices[:, :k], weight)
    dots = [first]
    if k < values.shape[1]:
        residuals.append(residuals[0] - sparse_decode(values[:, k:], indices[:, k:], weight, None))
        dots.append(sampled_dot(residuals[1], indices, weight))
    own = torch.arange(len(target))[:, None]
    errors = [sampled_dot(e, own, e)[:, 0] for e in residuals]
    return [out, torch.stack(residuals), torch.stack(dots), torch.stack(errors)]


def weight_grads(
    grad_values: Tensor, values: Tensor, indices: Tensor, x: Tensor, grad: Tensor, k: int, num_latents: int
) -> list[Tensor]:
    """(encoder, bias, decoder) of ``weight_grads``."""
    batch, kept = values.shape
    decoder = torch.zeros(num_latents, x.shape[1], dtype=x.dtype)
    for b in range(batch):
        for j in range(kept):
            rows = grad[0 if j < k or len(grad) == 1 else 1]
            decoder[indices[b, j]] += values[b, j] * rows[b]
    return [
        scatter_rows(grad_values, indices, x, num_latents),
        scatter_values(grad_values, indices, num_latents),
        decoder,
    ]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The fixed-order dot of rows: 16 float64 lanes, halved."""
    products = np.zeros((len(a), -(-a.shape[1] // 16) * 16))
    products[:, : a.shape[1]] = a.astype(np.float64) * b.astype(np.float64)
    lanes = np.zeros((len(a), 16))
    for start in range(0, products.shape[1], 16):
        lanes += products[:, start : start + 16]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def adam_step(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_norm: bool,
) -> list[Tensor]:
    """(parameter, exp_avg, exp_avg_sq) after ``sae_adam_step_``; float32 or float64 [F,D]."""
    w, g, m, v = (t.numpy().copy() for t in (parameter, grad, exp_avg, exp_avg_sq))
    kind = w.dtype.type
    root2 = np.sqrt(1 - beta2**step)
    size, eps = kind(lr * root2 / (1 - beta1**step)), kind(eps * root2)
    if unit_norm:
        g = g - w * _dot(g, w).astype(kind)[:, None]
    m += (g - m) * kind(1 - beta1)
    v = v * kind(beta2) + g * kind(1 - beta2) * g
    w -= m * size / (np.sqrt(v) + eps)
    if unit_norm:
        norm = np.sqrt(_dot(w, w)).astype(kind)
        w /= np.where(norm == 0, kind(1), norm)[:, None]
    return [torch.from_numpy(a) for a in (w, m, v)]

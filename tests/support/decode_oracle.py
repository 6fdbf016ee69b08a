"""Slow, obvious versions of the operations on sparse codes. Imports nothing of finescope.

Each follows the written definition element by element: sums run in the stated order, in float32 or float64,
and multiply and add round separately. NumPy does no contraction, so the results are the bytes that the
definition fixes, not merely close to them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def wide(*tensors: Tensor | None) -> bool:
    """Whether sums are made in float64."""
    return any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)


def _array(tensor: Tensor, accumulator: type) -> np.ndarray:
    # float32 and float64 hold every bfloat16 and float16 exactly.
    return (
        tensor.detach()
        .to(torch.float64 if accumulator is np.float64 else torch.float32)
        .numpy()
        .astype(accumulator)
    )


def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B,D]: the sum over ascending j of values[b,j] * weight[indices[b,j]], then bias; dtype of weight."""
    accumulator = np.float64 if wide(values, weight, bias) else np.float32
    v, w = _array(values, accumulator), _array(weight, accumulator)
    out = np.zeros((v.shape[0], w.shape[1]), accumulator)
    with np.errstate(all="ignore"):
        for b in range(v.shape[0]):
            for j in range(v.shape[1]):
                out[b] = out[b] + v[b, j] * w[int(indices[b, j])]
            if bias is not None:
                out[b] = out[b] + _array(bias, accumulator)
    return torch.from_numpy(out).to(weight.dtype)


def scatter_rows(values: Tensor, indices: Tensor, rows: Tensor, num_latents: int) -> Tensor:
    """[F,D]: the sum over pairs (b,j) in ascending order of values[b,j] * rows[b] at latent indices[b,j]."""
    accumulator = np.float64 if wide(values, rows) else np.float32
    v, x = _array(values, accumulator), _array(rows, accumulator)
    out = np.zeros((num_latents, x.shape[1]), accumulator)
    for b in range(v.shape[0]):
        for j in range(v.shape[1]):
            latent = int(indices[b, j])
            out[latent] = out[latent] + v[b, j] * x[b]
    return torch.from_numpy(out)


def scatter_values(values: Tensor, indices: Tensor, num_latents: int) -> Tensor:
    """[F]: the sum over pairs (b,j) in ascending order of values[b,j] at latent indices[b,j]."""
    ones = torch.ones(values.shape[0], 1, dtype=torch.float64 if wide(values) else torch.float32)
    return scatter_rows(values, indices, ones, num_latents)[:, 0]


def fixed_order_dot(x: np.ndarray, y: np.ndarray) -> float:
    """Sixteen float64 partial sums, lane d % 16 in ascending d, then halved: 8, 4, 2, 1."""
    lanes = [0.0] * 16
    for d in range(x.shape[0]):
        lanes[d % 16] += float(x[d]) * float(y[d])
    for half in (8, 4, 2, 1):
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
    return lanes[0]


def sampled_dot(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """[B,k]: the fixed-order dot of rows[b] and weight[indices[b,j]], rounded once."""
    x, w = _array(rows, np.float64), _array(weight, np.float64)
    out = torch.zeros(indices.shape, dtype=torch.float64)
    for b in range(indices.shape[0]):
        for j in range(indices.shape[1]):
            out[b, j] = fixed_order_dot(x[b], w[int(indices[b, j])])
    return out if wide(rows, weight) else out.float()


def sparse_matmul(indptr: Tensor, indices: Tensor, values: Tensor, panel: Tensor) -> Tensor:
    """[N,C]: the sum over the entries of a row, in their order, of value * panel[latent]; one kind of NaN."""
    start, latent, v, p = indptr.numpy(), indices.numpy(), _array(values, np.float64), panel.numpy()
    out = np.zeros((len(start) - 1, p.shape[1]))
    with np.errstate(all="ignore"):
        for n in range(len(out)):
            for i in range(start[n], start[n + 1]):
                out[n] = out[n] + v[i] * p[int(latent[i])]
    out[np.isnan(out)] = np.nan
    return torch.from_numpy(out)

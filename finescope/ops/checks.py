"""The checks of every operation, in one place so that each backend rejects bad input with the same words.

They look at shapes, dtypes and options only (never at data), so they also run on fake tensors. Offending
*data* (an index out of range, offsets that fall) is found by the implementations themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

SCREENS = ("auto", "int8", "bf16", "float32", "none")
METRICS = ("cosine", "ip")
REDUCTIONS = ("mean", "max", "sum", "sqrt_mean", "count")

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64, torch.uint16)


Csr = tuple[Tensor, Tensor, Tensor]  # indptr [N+1], indices [nnz], values [nnz]


class Search(NamedTuple):
    """What a search is asked for, in the order of the schemas."""

    k: int
    metric: str = "cosine"
    screen: str = "auto"
    min_score: float | None = None
    exclude: Tensor | None = None
    mask: Tensor | None = None
    id_offset: int = 0

    @classmethod
    def packed(cls, k: int, metric: str, *filters: Any) -> Search:
        """A search over packed rows, which were given their screen when they were packed."""
        return cls(k, metric, "auto", *filters)


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


def _matrix(tensor: Tensor, name: str, letters: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch tensor [{letters}], got {type(tensor).__name__}")
    if tensor.dim() != 2:
        raise ValueError(f"{name} must have shape [{letters}], got {_shape(tensor)}")


def _floating(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def _int64(tensor: Tensor, name: str) -> None:
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {tensor.dtype}")


def _same_device(first: Tensor, first_name: str, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != first.device:
            raise ValueError(f"{name} is on {other.device} but {first_name} is on {first.device}")


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    # A sum is finite unless a value isn't, or it overflows; only then is a slower look worth its pass.
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def option(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Reject a word that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _count(value: int, name: str) -> None:
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of scores and values: float64 if any input is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _by_latent(tensor: Tensor | None, name: str, latents: int) -> None:
    if tensor is None:
        return
    _floating(tensor, name)
    if tensor.dim() != 1 or tensor.shape[0] != latents:
        raise ValueError(f"{name} must have shape [F] with F={latents}, got {_shape(tensor)}")


def _encoder(x: Tensor, weight: Tensor, bias: Tensor | None, screen: str) -> None:
    _matrix(x, "x", "B, D")
    _matrix(weight, "weight", "F, D")
    _floating(x, "x")
    _floating(weight, "weight")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight must have shape [F, D] with D={x.shape[1]} like x {_shape(x)}, got {_shape(weight)}"
        )
    _by_latent(bias, "bias", weight.shape[0])
    _same_device(x, "x", weight=weight, bias=bias)
    option(screen, "screen", SCREENS)


def topk_encode(x: Tensor, weight: Tensor, bias: Tensor | None, k: int, screen: str) -> None:
    """Reject what ``topk_encode`` can't take."""
    _encoder(x, weight, bias, screen)
    _count(k, "k")
    if k > weight.shape[0]:
        raise ValueError(f"k must be at most F={weight.shape[0]}, got {k}")


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    screen: str,
) -> None:
    """Reject what ``threshold_encode`` can't take."""
    _encoder(x, weight, bias, screen)
    for name, tensor in (("threshold", threshold), ("scale", scale), ("offset", offset)):
        _by_latent(tensor, name, weight.shape[0])
    _same_device(x, "x", threshold=threshold, scale=scale, offset=offset)
    if (scale is None) != (offset is None):
        missing = "scale" if scale is None else "offset"
        raise ValueError(f"scale and offset belong together, and {missing} is None")


def _pairs(values: Tensor, indices: Tensor) -> None:
    _matrix(values, "values", "B, k")
    _floating(values, "values")
    _int64(indices, "indices")
    if indices.shape != values.shape:
        raise ValueError(f"indices must have shape {_shape(values)} like values, got {_shape(indices)}")


def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Reject what ``sparse_decode`` can't take."""
    _pairs(values, indices)
    _matrix(weight, "weight", "F, D")
    _floating(weight, "weight")
    if bias is not None:
        _floating(bias, "bias")
        if bias.dim() != 1 or bias.shape[0] != weight.shape[1]:
            raise ValueError(f"bias must have shape [D] with D={weight.shape[1]}, got {_shape(bias)}")
    _same_device(values, "values", indices=indices, weight=weight, bias=bias)


def sampled_dot(rows: Tensor, indices: Tensor, weight: Tensor) -> None:
    """Reject what ``sampled_dot`` can't take."""
    _matrix(rows, "rows", "B, D")
    _matrix(indices, "indices", "B, k")
    _matrix(weight, "weight", "F, D")
    _floating(rows, "rows")
    _floating(weight, "weight")
    _int64(indices, "indices")
    if rows.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight must have shape [F, D] with D={rows.shape[1]} like rows {_shape(rows)}, "
            f"got {_shape(weight)}"
        )
    if rows.shape[0] != indices.shape[0]:
        raise ValueError(
            f"indices must have shape [B, k] with B={rows.shape[0]} like rows {_shape(rows)}, "
            f"got {_shape(indices)}"
        )
    _same_device(rows, "rows", indices=indices, weight=weight)


def scatter_rows(values: Tensor, indices: Tensor, rows: Tensor, num_latents: int) -> None:
    """Reject what ``scatter_rows`` can't take."""
    _pairs(values, indices)
    _matrix(rows, "rows", "B, D")
    _floating(rows, "rows")
    if rows.shape[0] != values.shape[0]:
        raise ValueError(
            f"rows must have shape [B, D] with B={values.shape[0]} like values {_shape(values)}, "
            f"got {_shape(rows)}"
        )
    _same_device(values, "values", indices=indices, rows=rows)
    _count(num_latents, "num_latents")


def scatter_values(values: Tensor, indices: Tensor, num_latents: int) -> None:
    """Reject what ``scatter_values`` can't take."""
    _pairs(values, indices)
    _same_device(values, "values", indices=indices)
    _count(num_latents, "num_latents")


def _share_dtype(first: Tensor, first_name: str, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.dtype != first.dtype:
            raise TypeError(f"{name} must be {first.dtype} like {first_name}, got {other.dtype}")


def _kept_first(k: int, kept: int) -> None:
    if not 0 <= k <= kept:
        raise ValueError(f"k must lie in 0..{kept}, got {k}")


def decode_residual(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, k: int
) -> None:
    """Reject what ``decode_residual`` can't take."""
    sparse_decode(values, indices, weight, bias)
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"values must be float32 or float64, got {values.dtype}")
    _share_dtype(values, "values", weight=weight, bias=bias, target=target)
    if target.shape != (values.shape[0], weight.shape[1]):
        raise ValueError(
            f"target must have shape [B, D] = [{values.shape[0]}, {weight.shape[1]}], got {_shape(target)}"
        )
    _same_device(values, "values", target=target)
    _kept_first(k, values.shape[1])


def weight_grads(
    grad_values: Tensor, values: Tensor, indices: Tensor, x: Tensor, grad: Tensor, k: int, num_latents: int
) -> None:
    """Reject what ``weight_grads`` can't take."""
    scatter_rows(values, indices, x, num_latents)
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"values must be float32 or float64, got {values.dtype}")
    _share_dtype(values, "values", grad_values=grad_values, x=x, grad=grad)
    if grad_values.shape != values.shape:
        raise ValueError(
            f"grad_values must have shape {_shape(values)} like values, got {_shape(grad_values)}"
        )
    if grad.dim() != 3 or grad.shape[0] not in (1, 2) or grad.shape[1:] != x.shape:
        raise ValueError(
            f"grad must have shape [1 or 2, B, D] with [B, D] like x {_shape(x)}, got {_shape(grad)}"
        )
    _same_device(values, "values", grad_values=grad_values, grad=grad)
    _kept_first(k, values.shape[1])


def sae_adam_step(
    parameter: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    unit_norm: bool,
    scales: Tensor | None,
) -> None:
    """Reject what ``sae_adam_step_`` can't take."""
    _floating(parameter, "parameter")
    others = {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, other in others.items():
        if other.shape != parameter.shape:
            raise ValueError(
                f"{name} must have shape {_shape(parameter)} like parameter, got {_shape(other)}"
            )
    _share_dtype(parameter, "parameter", **others)
    _same_device(parameter, "parameter", **others)
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    if unit_norm and parameter.dim() != 2:
        raise ValueError(f"unit_norm needs a matrix [F, D], got shape {_shape(parameter)}")
    if scales is not None:
        if scales.dtype != torch.float64 or scales.shape != (2,) or not scales.is_contiguous():
            raise ValueError(
                f"scales must be contiguous float64 [2] (step size, eps), got {scales.dtype} {_shape(scales)}"
            )
        _same_device(parameter, "parameter", scales=scales)


def pool_codes(values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int) -> None:
    """Reject what ``pool_codes`` can't take."""
    _pairs(values, indices)
    pool_options(offsets, reduce, keep)
    _same_device(values, "values", indices=indices, offsets=offsets)


def pool_options(offsets: Tensor, reduce: str, keep: int) -> None:
    """Reject offsets of documents and options that no pooling can take."""
    _int64(offsets, "offsets")
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must have shape [N+1], got {_shape(offsets)}")
    option(reduce, "reduce", REDUCTIONS)
    _count(keep, "keep")


def _filters(num_queries: int, num_rows: int, search: Search) -> None:
    _count(search.k, "k")
    _count(search.id_offset, "id_offset")
    option(search.metric, "metric", METRICS)
    option(search.screen, "screen", SCREENS)
    exclude, mask = search.exclude, search.mask
    if exclude is not None:
        _int64(exclude, "exclude")
        if exclude.dim() != 2 or exclude.shape[0] != num_queries:
            raise ValueError(f"exclude must have shape [Q, E] with Q={num_queries}, got {_shape(exclude)}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
        if mask.dim() != 1 or mask.shape[0] != num_rows:
            raise ValueError(f"mask must have shape [N] with N={num_rows}, got {_shape(mask)}")


def _search_operands(queries: Tensor, corpus: Tensor) -> None:
    _matrix(queries, "queries", "Q, D")
    _matrix(corpus, "corpus", "N, D")
    _floating(queries, "queries")
    _floating(corpus, "corpus")
    if queries.shape[1] != corpus.shape[1]:
        raise ValueError(
            f"corpus must have shape [N, D] with D={queries.shape[1]} like queries {_shape(queries)}, "
            f"got {_shape(corpus)}"
        )


def cosine_topk(queries: Tensor, corpus: Tensor, search: Search) -> None:
    """Reject what ``cosine_topk`` can't take."""
    _search_operands(queries, corpus)
    _same_device(queries, "queries", corpus=corpus, exclude=search.exclude, mask=search.mask)
    _filters(queries.shape[0], corpus.shape[0], search)


def pack_rows(matrix: Tensor, metric: str, screen: str) -> None:
    """Reject what ``pack_rows`` can't take."""
    _matrix(matrix, "matrix", "N, D")
    _floating(matrix, "matrix")
    option(metric, "metric", ("encode", *METRICS))
    option(screen, "screen", SCREENS)


def packed(memory: Tensor) -> None:
    """Reject what can't be a packed matrix, or packed codes."""
    if memory.dtype != torch.uint8 or memory.dim() != 1:
        raise TypeError(f"packed must be uint8 with one dimension, got {memory.dtype} {_shape(memory)}")


def pack_sparse_rows(rows: Csr, num_latents: int) -> None:
    """Reject what ``pack_sparse_rows`` can't take."""
    _csr(*rows, "c")
    _count(num_latents, "num_latents")


def pair_scores(queries: Tensor, corpus: Tensor, ids: Tensor, metric: str) -> None:
    """Reject what ``pair_scores`` can't take."""
    _search_operands(queries, corpus)
    _score_ids(queries.shape[0], ids, metric)
    _same_device(queries, "queries", corpus=corpus, ids=ids)


def _score_ids(num_queries: int, ids: Tensor, metric: str) -> None:
    _int64(ids, "ids")
    if ids.dim() != 2 or ids.shape[0] != num_queries:
        raise ValueError(f"ids must have shape [Q, k] with Q={num_queries}, got {_shape(ids)}")
    option(metric, "metric", METRICS)


def _csr(indptr: Tensor, indices: Tensor, values: Tensor, name: str) -> None:
    _int64(indptr, f"{name}_indptr")
    if indptr.dim() != 1 or indptr.shape[0] < 1:
        raise ValueError(f"{name}_indptr must have shape [rows+1], got {_shape(indptr)}")
    if indices.dtype not in _INTEGERS:
        raise TypeError(f"{name}_indices must be uint16, int32 or int64, got {indices.dtype}")
    if indices.dim() != 1:
        raise ValueError(f"{name}_indices must have shape [nnz], got {_shape(indices)}")
    _floating(values, f"{name}_values")
    if values.shape != indices.shape:
        raise ValueError(
            f"{name}_values must have shape {_shape(indices)} like {name}_indices, got {_shape(values)}"
        )
    _same_device(indptr, f"{name}_indptr", **{f"{name}_indices": indices, f"{name}_values": values})


def sparse_cosine_topk(query: Csr, corpus: Csr, num_latents: int, search: Search) -> None:
    """Reject what ``sparse_cosine_topk`` can't take."""
    _csr(*query, "q")
    _csr(*corpus, "c")
    _same_device(query[0], "q_indptr", c_indptr=corpus[0], exclude=search.exclude, mask=search.mask)
    _count(num_latents, "num_latents")
    _filters(query[0].shape[0] - 1, corpus[0].shape[0] - 1, search)


def sparse_matmul(codes: Csr, panel: Tensor) -> None:
    """Reject what ``sparse_matmul`` can't take."""
    _csr(*codes, "codes")
    _matrix(panel, "panel", "F, C")
    if panel.dtype != torch.float64:
        raise TypeError(f"panel must be float64, got {panel.dtype}")
    _same_device(codes[0], "codes_indptr", panel=panel)


def sparse_products(query: Csr, corpus: Csr, num_latents: int) -> None:
    """Reject what ``sparse_products`` can't take."""
    _csr(*query, "q")
    _csr(*corpus, "c")
    if query[2].dtype != torch.float64:
        raise TypeError(f"q_values must be float64, got {query[2].dtype}")
    _count(num_latents, "num_latents")
    _same_device(query[0], "q_indptr", c_indptr=corpus[0])


def sparse_pair_scores(query: Csr, corpus: Csr, num_latents: int, ids: Tensor, metric: str) -> None:
    """Reject what ``sparse_pair_scores`` can't take."""
    _csr(*query, "q")
    _csr(*corpus, "c")
    _count(num_latents, "num_latents")
    _score_ids(query[0].shape[0] - 1, ids, metric)
    _same_device(query[0], "q_indptr", c_indptr=corpus[0], ids=ids)


def positions_in_range(positions: Tensor, size: int, name: str, lowest: int = 0) -> None:
    """Reject positions outside ``lowest..size-1`` before anything is read with them. Looks at data."""
    if not positions.numel():
        return
    low, high = torch.aminmax(positions)
    if int(low) >= lowest and int(high) < size:
        return
    place = ((positions < lowest) | (positions >= size)).nonzero()[0].tolist()
    raise IndexError(
        f"{name} holds {int(positions[tuple(place)])} at {place}, which is outside {lowest}..{size - 1}"
    )


def offsets_in_order(offsets: Tensor, tokens: int) -> None:
    """Reject offsets that don't run from 0 to the number of tokens without falling. Looks at data."""
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens:
        raise ValueError(
            f"offsets must run from 0 to B={tokens}, got {int(offsets[0])} to {int(offsets[-1])}"
        )
    falls = (offsets.diff() < 0).nonzero()
    if falls.numel():
        raise ValueError(f"offsets falls after document {int(falls[0])}")

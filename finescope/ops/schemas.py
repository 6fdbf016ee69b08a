"""The operations under ``torch.ops.finescope``: one schema and one fake each, and nothing else.

A backend is a dispatch key. The pure-torch bodies are registered as the *default* implementation (which torch
calls CompositeExplicitAutograd) by the modules beside this one; a compiled object registers CPU or CUDA
kernels for the same schemas, and the dispatcher prefers them. So no code asks "is it compiled?".

Letters: B tokens · D model width · F latents · K kept per token · Q queries · N corpus rows or documents ·
k neighbours · M kept per document.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finescope.ops import checks
from finescope.ops.checks import Csr, Search
from finescope.ops.registry import fake

torch.library.define(
    "finescope::topk_encode",
    '(Tensor x, Tensor weight, Tensor? bias, int k, str screen="auto") -> (Tensor values, Tensor indices)',
)


@fake("topk_encode")
def _fake_topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, screen: str
) -> tuple[Tensor, Tensor]:
    checks.topk_encode(x, weight, bias, k, screen)
    shape = (x.shape[0], k)
    return (
        x.new_empty(shape, dtype=checks.result_dtype(x, weight, bias)),
        x.new_empty(shape, dtype=torch.int64),
    )


_CODES = "(Tensor values, Tensor indices, Tensor indptr)"

torch.library.define(
    "finescope::threshold_encode",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor threshold, Tensor? scale=None, Tensor? offset=None, "
    f'str screen="auto") -> {_CODES}',
)
torch.library.define(
    "finescope::threshold_encode_packed",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor threshold, Tensor packed, Tensor? scale=None, "
    f"Tensor? offset=None) -> {_CODES}",
)


@fake("threshold_encode")
def _fake_threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    screen: str,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.threshold_encode(x, weight, bias, threshold, scale, offset, screen)
    entries = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty((entries,), dtype=checks.result_dtype(x, weight, bias)),
        x.new_empty((entries,), dtype=torch.int32),
        x.new_empty((x.shape[0] + 1,), dtype=torch.int64),
    )


@fake("threshold_encode_packed")
def _fake_threshold_encode_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    packed: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.packed(packed)
    return _fake_threshold_encode(x, weight, bias, threshold, scale, offset, "auto")


torch.library.define(
    "finescope::sparse_decode", "(Tensor values, Tensor indices, Tensor weight, Tensor? bias) -> Tensor"
)


@fake("sparse_decode")
def _fake_sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    checks.sparse_decode(values, indices, weight, bias)
    return weight.new_empty((values.shape[0], weight.shape[1]))


torch.library.define("finescope::sampled_dot", "(Tensor rows, Tensor indices, Tensor weight) -> Tensor")


@fake("sampled_dot")
def _fake_sampled_dot(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    checks.sampled_dot(rows, indices, weight)
    return rows.new_empty(tuple(indices.shape), dtype=checks.result_dtype(rows, weight))


torch.library.define(
    "finescope::scatter_rows", "(Tensor values, Tensor indices, Tensor rows, int num_latents) -> Tensor"
)


@fake("scatter_rows")
def _fake_scatter_rows(values: Tensor, indices: Tensor, rows: Tensor, num_latents: int) -> Tensor:
    checks.scatter_rows(values, indices, rows, num_latents)
    return rows.new_empty((num_latents, rows.shape[1]), dtype=checks.result_dtype(values, rows))


# sampled_dot(grad, indices, weight) and scatter_rows(values, indices, grad, F) from one pass over the pairs.
torch.library.define(
    "finescope::decode_grads",
    "(Tensor values, Tensor indices, Tensor weight, Tensor grad) -> (Tensor grad_values, Tensor grad_weight)",
)


@fake("decode_grads")
def _fake_decode_grads(
    values: Tensor, indices: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    dots = _fake_sampled_dot(grad, indices, weight)
    return dots, _fake_scatter_rows(values, indices, grad, weight.shape[0])


torch.library.define(
    "finescope::scatter_values", "(Tensor values, Tensor indices, int num_latents) -> Tensor"
)


@fake("scatter_values")
def _fake_scatter_values(values: Tensor, indices: Tensor, num_latents: int) -> Tensor:
    checks.scatter_values(values, indices, num_latents)
    return values.new_empty((num_latents,), dtype=checks.result_dtype(values))


# Both decodings of a training step and everything that their backward needs of the weight rows.
torch.library.define(
    "finescope::decode_residual",
    "(Tensor values, Tensor indices, Tensor weight, Tensor? bias, Tensor target, int k) "
    "-> (Tensor out, Tensor residual, Tensor dots, Tensor errors)",
)


@fake("decode_residual")
def _fake_decode_residual(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.decode_residual(values, indices, weight, bias, target, k)
    (batch, kept), width = values.shape, weight.shape[1]
    both = 2 if k < kept else 1
    return (
        values.new_empty((batch, width)),
        values.new_empty((both, batch, width)),
        values.new_empty((both, batch, kept)),
        values.new_empty((both, batch)),
    )


torch.library.define(
    "finescope::weight_grads",
    "(Tensor grad_values, Tensor values, Tensor indices, Tensor x, Tensor grad, int k, int num_latents) "
    "-> (Tensor encoder, Tensor bias, Tensor decoder)",
)


@fake("weight_grads")
def _fake_weight_grads(
    grad_values: Tensor, values: Tensor, indices: Tensor, x: Tensor, grad: Tensor, k: int, num_latents: int
) -> tuple[Tensor, Tensor, Tensor]:
    checks.weight_grads(grad_values, values, indices, x, grad, k, num_latents)
    matrix = (num_latents, x.shape[1])
    return values.new_empty(matrix), values.new_empty((num_latents,)), values.new_empty(matrix)


torch.library.define(
    "finescope::sae_adam_step_",
    "(Tensor(a!) parameter, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float lr, "
    "float beta1, float beta2, float eps, bool unit_norm, Tensor? scales=None) -> ()",
)


@fake("sae_adam_step_")
def _fake_sae_adam_step_(
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
    scales: Tensor | None,
) -> None:
    checks.sae_adam_step(parameter, grad, exp_avg, exp_avg_sq, step, unit_norm, scales)


torch.library.define(
    "finescope::pool_codes",
    "(Tensor values, Tensor indices, Tensor offsets, str reduce, int keep) "
    "-> (Tensor values, Tensor indices)",
)


@fake("pool_codes")
def _fake_pool_codes(
    values: Tensor, indices: Tensor, offsets: Tensor, reduce: str, keep: int
) -> tuple[Tensor, Tensor]:
    checks.pool_codes(values, indices, offsets, reduce, keep)
    shape = (offsets.shape[0] - 1, keep)
    return values.new_empty(shape, dtype=torch.float32), values.new_empty(shape, dtype=torch.int64)


# The options of a search are Search, in this order.
_METRIC = 'int k, str metric="cosine"'
_FILTERS = "float? min_score=None, Tensor? exclude=None, Tensor? mask=None, int id_offset=0"
_SEARCH = f'{_METRIC}, str screen="auto", {_FILTERS}'
_FOUND = "(Tensor scores, Tensor ids)"

torch.library.define("finescope::cosine_topk", f"(Tensor queries, Tensor corpus, {_SEARCH}) -> {_FOUND}")
torch.library.define(
    "finescope::cosine_topk_packed",
    f"(Tensor queries, Tensor corpus, Tensor packed, {_METRIC}, {_FILTERS}) -> {_FOUND}",
)


def _found(like: Tensor, queries: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return like.new_empty((queries, k), dtype=dtype), like.new_empty((queries, k), dtype=torch.int64)


@fake("cosine_topk")
def _fake_cosine_topk(queries: Tensor, corpus: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    search = Search(*options)
    checks.cosine_topk(queries, corpus, search)
    return _found(queries, queries.shape[0], search.k, checks.result_dtype(queries, corpus))


@fake("cosine_topk_packed")
def _fake_cosine_topk_packed(
    queries: Tensor, corpus: Tensor, packed: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    checks.packed(packed)
    return _fake_cosine_topk(queries, corpus, *Search.packed(*options))


# The unrounded scores of chosen pairs: what a merge of several searches has to be ordered by.
torch.library.define(
    "finescope::pair_scores", '(Tensor queries, Tensor corpus, Tensor ids, str metric="cosine") -> Tensor'
)


@fake("pair_scores")
def _fake_pair_scores(queries: Tensor, corpus: Tensor, ids: Tensor, metric: str) -> Tensor:
    checks.pair_scores(queries, corpus, ids, metric)
    return queries.new_empty(tuple(ids.shape), dtype=torch.float64)


# A matrix, or sparse rows, in the form that a compiled engine screens fastest: bytes that describe
# themselves; none where there is no such engine, or where packing is of no use.
torch.library.define("finescope::pack_rows", '(Tensor matrix, str metric, str screen="auto") -> Tensor')
torch.library.define(
    "finescope::topk_encode_packed",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor packed, int k) -> (Tensor values, Tensor indices)",
)


@fake("pack_rows")
def _fake_pack_rows(matrix: Tensor, metric: str, screen: str) -> Tensor:
    checks.pack_rows(matrix, metric, screen)
    size = torch.library.get_ctx().new_dynamic_size()
    return matrix.new_empty((size,), dtype=torch.uint8)


@fake("topk_encode_packed")
def _fake_topk_encode_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    checks.packed(packed)
    return _fake_topk_encode(x, weight, bias, k, "auto")


_CSR = "Tensor {0}indptr, Tensor {0}indices, Tensor {0}values"
_CSR_PAIR = f"{_CSR.format('q_')}, {_CSR.format('c_')}, int num_latents"


def csr_pair(*args: Any) -> tuple[Csr, Csr, int, tuple[Any, ...]]:
    """Take the arguments of an operation on queries and a corpus apart: their rows, F, and what is left."""
    return args[:3], args[3:6], args[6], args[7:]


torch.library.define("finescope::sparse_cosine_topk", f"({_CSR_PAIR}, {_SEARCH}) -> {_FOUND}")
torch.library.define(
    "finescope::sparse_cosine_topk_packed",
    f"({_CSR_PAIR}, Tensor packed, {_METRIC}, {_FILTERS}) -> {_FOUND}",
)
torch.library.define(
    "finescope::sparse_pair_scores", f'({_CSR_PAIR}, Tensor ids, str metric="cosine") -> Tensor'
)
torch.library.define("finescope::pack_sparse_rows", f"({_CSR.format('')}, int num_latents) -> Tensor")


torch.library.define("finescope::sparse_matmul", f"({_CSR.format('codes_')}, Tensor panel) -> Tensor")


torch.library.define("finescope::sparse_products", f"({_CSR_PAIR}) -> Tensor")


@fake("sparse_products")
def _fake_sparse_products(*args: Any) -> Tensor:
    query, corpus, num_latents, _ = csr_pair(*args)
    checks.sparse_products(query, corpus, num_latents)
    return query[2].new_empty((query[0].shape[0] - 1, corpus[0].shape[0] - 1))


@fake("sparse_matmul")
def _fake_sparse_matmul(indptr: Tensor, indices: Tensor, values: Tensor, panel: Tensor) -> Tensor:
    checks.sparse_matmul((indptr, indices, values), panel)
    return panel.new_empty((indptr.shape[0] - 1, panel.shape[1]))


@fake("sparse_cosine_topk")
def _fake_sparse_cosine_topk(*args: Any) -> tuple[Tensor, Tensor]:
    query, corpus, num_latents, options = csr_pair(*args)
    search = Search(*options)
    checks.sparse_cosine_topk(query, corpus, num_latents, search)
    return _found(query[2], query[0].shape[0] - 1, search.k, checks.result_dtype(query[2], corpus[2]))


@fake("sparse_cosine_topk_packed")
def _fake_sparse_cosine_topk_packed(*args: Any) -> tuple[Tensor, Tensor]:
    query, corpus, num_latents, (packed, *options) = csr_pair(*args)
    checks.packed(packed)
    return _fake_sparse_cosine_topk(*query, *corpus, num_latents, *Search.packed(*options))


@fake("sparse_pair_scores")
def _fake_sparse_pair_scores(*args: Any) -> Tensor:
    query, corpus, num_latents, (ids, metric) = csr_pair(*args)
    checks.sparse_pair_scores(query, corpus, num_latents, ids, metric)
    return query[2].new_empty(tuple(ids.shape), dtype=torch.float64)


@fake("pack_sparse_rows")
def _fake_pack_sparse_rows(indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int) -> Tensor:
    checks.pack_sparse_rows((indptr, indices, values), num_latents)
    size = torch.library.get_ctx().new_dynamic_size()
    return indptr.new_empty((size,), dtype=torch.uint8)


def call(name: str, *args: Any) -> Any:
    """Call ``torch.ops.finescope.<name>`` through its default overload, which skips overload resolution."""
    return getattr(torch.ops.finescope, name).default(*args)

"""The typed functions that users call. Each checks its arguments once and calls the operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks
from finescope.ops.checks import Csr, Search
from finescope.ops.pooling import pool_sparse
from finescope.ops.schemas import call


def _screen(screen: str | None) -> str:
    return "none" if screen is None else screen


def topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, *, screen: str | None = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the k largest of ``relu(x @ weight.T + bias)`` in every row, without storing the [B,F] matrix.

    The result is that of exact arithmetic on the inputs as given: candidates are scored in float64 in a fixed
    order and rounded once. So it has the same bytes for every backend, thread count and batch split, and the
    first 10 of 100 are the same as 10. Order: pre-activation descending, then latent ascending.
    Pre-activations that are not positive count as 0 and fill up the row, lowest latent first. Gradients reach
    ``x``, ``weight`` and ``bias`` through entries with a value above 0.

    Args:
        x: activations [B,D], any floating dtype.
        weight: encoder [F,D], any floating dtype.
        bias: [F], or None.
        k: latents kept per token, 0 … F.
        screen: precision of the first look: "auto", "int8", "bf16", "float32", or None. Changes the speed
            only.

    Returns:
        values [B,k], float32 (float64 if any input is), and latents [B,k], int64. A row of ``x`` with a NaN
        or an infinity, and every row if ``weight`` or ``bias`` has one, gets NaN values and latents 0 … k-1.
        A float64 row whose squared norm overflows counts as infinite.

    Raises:
        ValueError: shapes or devices that do not fit, k > F, an unknown ``screen``.
        TypeError: a tensor that is not floating point.
    """
    option = _screen(screen)
    checks.topk_encode(x, weight, bias, k, option)
    return call("topk_encode", x, weight, bias, k, option)  # type: ignore[no-any-return]


def threshold_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor | float,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    screen: str | None = "auto",
) -> SparseCodes:
    """Return every latent with ``x @ weight.T + bias > threshold``, without storing the [B,F] matrix.

    Serves JumpReLU (a threshold for each latent), ReLU (0), BatchTopK at inference (one number), and Gated
    (Rajamanoharan et al. 2024, arXiv:2404.16014), where one affine form of the dot decides and another is the
    value: ``bias`` is the gate's, ``scale = exp(r_mag)``, ``offset = mag_bias``; the ReLU of the magnitude is
    left to the caller.

    Which latents are kept is decided by the float64 pre-activation, its dot summed in the fixed order,
    strictly above the threshold as it is stored; values are those of float64, rounded once. So codes have the
    same bytes for every backend, thread count and batch split. Gradients reach ``x``, ``weight``, ``bias``,
    ``scale`` and ``offset`` through kept entries; ``bias`` has none where ``scale`` and ``offset`` make the
    values, and ``threshold`` never: which entries are kept is a step.

    Args:
        x: activations [B,D], any floating dtype.
        weight: encoder [F,D], any floating dtype.
        bias: [F], or None.
        threshold: [F], any floating dtype, or one number for all. Nothing exceeds a NaN.
        scale: [F] with ``offset`` [F]: values are ``scale · (x @ weight.T) + offset`` instead of the
            pre-activation.
        offset: see there.
        screen: precision of the first look: "auto", "int8", "bf16", "float32", or None. Changes the speed
            only.

    Returns:
        codes [B,F], latents ascending, int32; values float32 (float64 if ``x``, ``weight`` or ``bias`` is).
        A row of ``x`` with a NaN or an infinity, and every row if ``weight`` or ``bias`` has one, holds one
        entry: NaN, at latent 0. A float64 row whose squared norm overflows counts as infinite.

    Raises:
        ValueError: shapes or devices that do not fit, ``scale`` without ``offset``, an unknown ``screen``.
        TypeError: a tensor that is not floating point.
    """
    limits, option = limits_of(threshold, weight), _screen(screen)
    checks.threshold_encode(x, weight, bias, limits, scale, offset, option)
    values, indices, indptr = call("threshold_encode", x, weight, bias, limits, scale, offset, option)
    return SparseCodes(indptr, indices, values, weight.shape[0], check=False)


def limits_of(threshold: Tensor | float, weight: Tensor) -> Tensor:
    """One threshold for each latent."""
    if isinstance(threshold, Tensor) and threshold.dim() > 0:
        return threshold.detach()
    one = torch.as_tensor(threshold, dtype=torch.float64, device=weight.device).detach()
    return one.expand(weight.shape[0]).contiguous()


def sparse_decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``sum_j values[b,j] · weight[indices[b,j]] + bias`` for every token b.

    Summed in float32 (float64 if any input is), one term after the other, the bias last, rounded once to the
    dtype of ``weight``. Differentiable in ``values``, ``weight`` and ``bias``.

    Args:
        values: [B,k], any floating dtype.
        indices: latents [B,k], int64; the same latent may occur twice.
        weight: decoder [F,D], any floating dtype.
        bias: [D], or None.

    Returns:
        [B,D], dtype of ``weight``.

    Raises:
        ValueError: shapes or devices that do not fit.
        TypeError: wrong dtypes.
        IndexError: a latent outside 0 … F-1.
    """
    checks.sparse_decode(values, indices, weight, bias)
    return call("sparse_decode", values, indices, weight, bias)  # type: ignore[no-any-return]


def pool_codes(
    values: Tensor | SparseCodes, indices: Tensor | None, offsets: Tensor, *, reduce: str = "mean", keep: int
) -> tuple[Tensor, Tensor]:
    """Reduce the codes of tokens to one code per document and keep its M strongest latents.

    Entries that are not positive (or not finite) are dropped; a latent that a token holds twice counts with
    the sum. Sums run in float64 in the order of the tokens. Strongest means pooled value descending, then
    latent ascending.

    Codes in CSR form, for any number of latents per token, give the same bytes on the CPU. They may be
    negative, and then count with their signs; strongest means largest in size.

    Args:
        values: [B,k], any floating dtype; or codes [B,F].
        indices: latents [B,k], int64; None with codes.
        offsets: [N+1], int64, ascending from 0 to B: document n holds tokens offsets[n] … offsets[n+1]-1.
        reduce: "mean" over *all* tokens of the document, "max", "sum", "sqrt_mean" (the root of the mean), or
            "count" (how many tokens hold the latent).
        keep: M, latents kept per document.

    Returns:
        values [N,M], float32, and latents [N,M], int64, ascending; 0 and -1 at the end of rows with fewer
        latents.

    Raises:
        ValueError: shapes that do not fit, offsets that fall or do not cover the tokens, an unknown
            ``reduce``.
        TypeError: wrong dtypes.
        IndexError: a negative latent with a positive value.
    """
    if isinstance(values, SparseCodes):
        if indices is not None:
            raise ValueError("codes have their latents in them; indices must be None")
        return pool_sparse(values, offsets, reduce, keep)
    if indices is None:
        raise ValueError("indices must have shape [B, k] like values, got None")
    checks.pool_codes(values, indices, offsets, reduce, keep)
    return call("pool_codes", values, indices, offsets, reduce, keep)  # type: ignore[no-any-return]


def cosine_topk(
    queries: Tensor,
    corpus: Tensor,
    k: int,
    *,
    metric: str = "cosine",
    screen: str | None = "auto",
    min_score: float | None = None,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
    id_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the k corpus rows most similar to each query, exactly, without storing the [Q,N] matrix.

    Ranked by the float64 score ``<q, c> / (‖q‖·‖c‖)`` (or ``<q, c>``) descending, then id ascending, and
    rounded once. A zero vector scores 0. Corpus rows with a NaN or an infinity are never returned; a query
    with one gets no results. A float64 row whose squared norm overflows counts as infinite.

    Args:
        queries: [Q,D], any floating dtype.
        corpus: [N,D], any floating dtype.
        k: neighbours, 0 or more; more than N pads.
        metric: "cosine" or "ip" (inner product).
        screen: precision of the first look: "auto", "int8", "bf16", "float32", or None. Changes the speed
            only.
        min_score: drop results whose returned (rounded) score is below this.
        exclude: ids [Q,E], int64, never returned for that query; -1 stands for none. Offset like the results.
        mask: [N], bool, True where a row may be returned.
        id_offset: added to every id, for a corpus that is one block of a larger one.

    Returns:
        scores [Q,k], float32 (float64 if any input is), and ids [Q,k], int64; -inf and -1 where there are
        fewer than k results.

    Raises:
        ValueError: shapes or devices that do not fit, a negative k, an unknown option.
        TypeError: wrong dtypes.
    """
    search = Search(k, metric, _screen(screen), min_score, exclude, mask, id_offset)
    checks.cosine_topk(queries, corpus, search)
    return call("cosine_topk", queries, corpus, *search)  # type: ignore[no-any-return]


def csr_of(codes: Any, name: str) -> Csr:
    """The tensors of SparseCodes; TypeError for anything else."""
    try:
        return codes.indptr, codes.indices, codes.values.detach()
    except AttributeError:
        raise TypeError(f"{name} must be SparseCodes, got {type(codes).__name__}") from None


def shared_latents(queries: SparseCodes, corpus: SparseCodes) -> int:
    """F, which both must have."""
    if queries.num_latents != corpus.num_latents:
        raise ValueError(
            f"queries have F={queries.num_latents} latents but corpus has F={corpus.num_latents}"
        )
    return corpus.num_latents


def sparse_cosine_topk(
    queries: SparseCodes,
    corpus: SparseCodes,
    k: int,
    *,
    metric: str = "cosine",
    screen: str | None = "auto",
    min_score: float | None = None,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
    id_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the k corpus codes most similar to each query code, exactly. ``cosine_topk`` over sparse rows.

    The dot product is summed in float64 over the shared latents in ascending order, norms likewise.

    Args:
        queries: Q codes over F latents.
        corpus: N codes over F latents, in memory or memory-mapped.
        k: neighbours, 0 or more; more than N pads.
        metric: "cosine" or "ip" (inner product).
        screen: precision of the first look: "auto", "int8", "bf16", "float32", or None. Changes the speed
            only.
        min_score: drop results whose returned (rounded) score is below this.
        exclude: ids [Q,E], int64, never returned for that query; -1 stands for none. Offset like the results.
        mask: [N], bool, True where a row may be returned.
        id_offset: added to every id, for a corpus that is one block of a larger one.

    Returns:
        scores [Q,k], float32 (float64 if any values are), and ids [Q,k], int64; -inf and -1 where there are
        fewer than k results.

    Raises:
        ValueError: different F, shapes that do not fit, a negative k, an unknown option.
        TypeError: not ``SparseCodes``, or wrong dtypes.
        IndexError: a latent outside 0 … F-1.
    """
    search = Search(k, metric, _screen(screen), min_score, exclude, mask, id_offset)
    query, rows = csr_of(queries, "queries"), csr_of(corpus, "corpus")
    latents = shared_latents(queries, corpus)
    checks.sparse_cosine_topk(query, rows, latents, search)
    return call("sparse_cosine_topk", *query, *rows, latents, *search)  # type: ignore[no-any-return]


def sparse_matmul(codes: SparseCodes, panel: Tensor) -> Tensor:
    """Return ``codes @ panel`` in float64: any number of linear scores of every code, in one pass over them.

    Added up in float64 from 0, in the order of a row's entries; products and sums round by themselves. So the
    result has the same bytes for every backend, thread count and split of the rows.

    Args:
        codes: N codes over F latents, in memory or memory-mapped.
        panel: [F,C], float64.

    Returns:
        [N,C], float64. Entries that are stored count, also where they are 0: times an infinity they give NaN.

    Raises:
        ValueError: a panel of another F, devices that do not fit.
        TypeError: not ``SparseCodes``, a panel that is not float64.
        IndexError: a latent outside 0 … F-1.
    """
    rows = csr_of(codes, "codes")
    checks.sparse_matmul(rows, panel)
    if panel.shape[0] != codes.num_latents:
        raise ValueError(f"panel must have shape [F, C] with F={codes.num_latents}, got {list(panel.shape)}")
    return call("sparse_matmul", *rows, panel.detach())  # type: ignore[no-any-return]


def sparse_products(queries: SparseCodes, corpus: SparseCodes) -> Tensor:
    """Return the inner products of all queries with all codes of a corpus, in float64.

    Added up in float64 from 0 over the latents that both hold, ascending; products and sums round by
    themselves: ``sparse_matmul`` with the queries as columns, in as much time as there is in common. So the
    result has the same bytes for every backend, thread count and split of the rows.

    Args:
        queries: Q codes over F latents, in float64.
        corpus: N codes over F latents, in memory or memory-mapped.

    Returns:
        [Q,N], float64. A code with a value that isn't finite gives NaN.

    Raises:
        ValueError: different F, devices that do not fit.
        TypeError: not ``SparseCodes``, queries that are not float64.
        IndexError: a latent outside 0 … F-1.
    """
    query, rows = csr_of(queries, "queries"), csr_of(corpus, "corpus")
    latents = shared_latents(queries, corpus)
    checks.sparse_products(query, rows, latents)
    return call("sparse_products", *query, *rows, latents)  # type: ignore[no-any-return]


def pair_scores(queries: Tensor, corpus: Tensor, ids: Tensor, *, metric: str = "cosine") -> Tensor:
    """Return the unrounded scores by which ``cosine_topk`` ranks, for chosen pairs.

    Results of several searches are merged by these: scores that are rounded already can tie.

    Args:
        queries: [Q,D], any floating dtype.
        corpus: [N,D], any floating dtype.
        ids: corpus rows [Q,k], int64, without offset; -1 for none.
        metric: "cosine" or "ip".

    Returns:
        float64 [Q,k]; -inf for none and for pairs without a finite score.

    Raises:
        ValueError: shapes or devices that do not fit, an unknown metric.
        TypeError: wrong dtypes.
        IndexError: an id outside -1 … N-1.
    """
    checks.pair_scores(queries, corpus, ids, metric)
    return call("pair_scores", queries, corpus, ids, metric)  # type: ignore[no-any-return]


def sparse_pair_scores(
    queries: SparseCodes, corpus: SparseCodes, ids: Tensor, *, metric: str = "cosine"
) -> Tensor:
    """Return the unrounded scores by which ``sparse_cosine_topk`` ranks, for chosen pairs.

    Args:
        queries: Q codes over F latents.
        corpus: N codes over F latents.
        ids: corpus rows [Q,k], int64, without offset; -1 for none.
        metric: "cosine" or "ip".

    Returns:
        float64 [Q,k]; -inf for none and for pairs without a finite score.

    Raises:
        ValueError: different F, shapes that do not fit, an unknown metric.
        TypeError: not ``SparseCodes``, or wrong dtypes.
        IndexError: an id outside -1 … N-1, or a latent outside 0 … F-1.
    """
    query, rows = csr_of(queries, "queries"), csr_of(corpus, "corpus")
    latents = shared_latents(queries, corpus)
    checks.sparse_pair_scores(query, rows, latents, ids, metric)
    return call("sparse_pair_scores", *query, *rows, latents, ids, metric)  # type: ignore[no-any-return]

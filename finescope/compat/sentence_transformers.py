"""``semantic_search``, ``paraphrase_mining`` and ``community_detection`` of sentence-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.compat.rows import Rows, alike, all_within, by_inner_product, chosen, rows_of, runs
from finescope.ops import checks, fixed_order
from finescope.search import Index
from finescope.search.euclidean import NearestRows

ScoreFunction = Callable[..., Any] | str

_SIMILARITIES = {
    "cos_sim": "cosine",
    "pytorch_cos_sim": "cosine",
    "cosine": "cosine",
    "dot_score": "ip",
    "dot": "ip",
    "euclidean_sim": "euclidean",
    "euclidean": "euclidean",
}
# Rows whose neighbours are looked for at once.
_BLOCK = 4096


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500_000,
    top_k: int = 10,
    score_function: ScoreFunction = "cos_sim",
) -> list[list[dict[str, int | float]]]:
    """``sentence_transformers.util.semantic_search``: for each query, its best corpus rows.

    Args:
        query_embeddings: [Q,D] or [D], a tensor, an array, or a list of either; sparse as well, as
            ``SparseEncoder.encode`` gives them.
        corpus_embeddings: [N,D], like the queries.
        query_chunk_size: accepted for compatibility; memory is bounded without it.
        corpus_chunk_size: the same.
        top_k: results for each query, at most N.
        score_function: "cos_sim", "dot_score" or "euclidean_sim", or sentence-transformers' functions of
            these names, such as a model's ``similarity``. Others can't be searched exactly.

    Returns:
        for each query a list of {"corpus_id": int, "score": float}, best first. A row with a NaN is in none,
        and the list of a query with a NaN is empty.

    Raises:
        ValueError: another score function, shapes that do not fit.
        TypeError: entries that aren't numbers.
    """
    similarity = _similarity(score_function)
    queries, corpus = alike(
        rows_of(query_embeddings, "query_embeddings"), rows_of(corpus_embeddings, "corpus_embeddings")
    )
    if isinstance(queries, Tensor) and queries.dim() == 1:
        queries = queries[None]
    k = min(top_k, len(corpus))
    if similarity == "ip":
        scores, ids = by_inner_product(queries, corpus, k)
    else:
        scores, ids = _search(corpus, similarity)(queries, k)
    return [
        [{"corpus_id": n, "score": s} for s, n in zip(*row, strict=True) if n >= 0]
        for row in zip(scores.tolist(), ids.tolist(), strict=True)
    ]


def _similarity(score_function: ScoreFunction) -> str:
    given = score_function if isinstance(score_function, str) else getattr(score_function, "__name__", "")
    if given not in _SIMILARITIES:
        raise ValueError(
            f"score_function must be cos_sim, dot_score or euclidean_sim, got {score_function!r}"
        )
    return _SIMILARITIES[given]


def _search(corpus: Rows, similarity: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return what finds scores and ids [Q,k] of the rows most similar to queries."""
    if similarity != "euclidean":
        return Index(corpus, metric=similarity).search
    nearest = NearestRows(corpus)

    def search(queries: Rows, k: int, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        squares, ids = nearest.search(queries, k, exclude=exclude)
        dtype = checks.result_dtype(_values(queries), _values(corpus))
        return -fixed_order.sqrt(squares).to(dtype), ids

    return search


def _values(rows: Rows) -> Tensor:
    return rows.values if isinstance(rows, SparseCodes) else rows


def paraphrase_mining(
    model: Any,
    sentences: list[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: ScoreFunction = "cos_sim",
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[float | int]]:
    """``sentence_transformers.util.paraphrase_mining``: the most similar pairs among texts.

    Args:
        model: with an ``encode`` as sentence-transformers' models have it.
        sentences: the texts.
        show_progress_bar: handed to ``encode``, as are ``batch_size``, ``truncate_dim``, ``prompt_name`` and
            ``prompt``.
        batch_size: texts that the model reads at once.
        query_chunk_size: see ``paraphrase_mining_embeddings``.
        corpus_chunk_size: the same.
        max_pairs: the same.
        top_k: the same.
        score_function: the same.
        truncate_dim: D to cut the embeddings to.
        prompt_name: a prompt of the model.
        prompt: a prompt of your own.

    Returns:
        [score, i, j] with i < j, best first.

    Raises:
        ValueError: another score function, a negative ``top_k`` or ``max_pairs``.
    """
    given = {"truncate_dim": truncate_dim, "prompt_name": prompt_name, "prompt": prompt}
    embeddings = model.encode(
        sentences,
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        convert_to_tensor=True,
        **{name: value for name, value in given.items() if value is not None},
    )
    return paraphrase_mining_embeddings(
        embeddings, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: ScoreFunction = "cos_sim",
) -> list[list[float | int]]:
    """``sentence_transformers.util.paraphrase_mining_embeddings``: the most similar pairs of rows.

    Args:
        embeddings: [N,D], like the queries of ``semantic_search``.
        query_chunk_size: accepted for compatibility; memory is bounded without it.
        corpus_chunk_size: the same.
        max_pairs: pairs at most: those with the highest scores, of equal ones those of the first rows.
        top_k: a pair is one where one row is among the ``top_k`` most similar to the other.
        score_function: see ``semantic_search``.

    Returns:
        [score, i, j] with i < j, by score descending, then i, then j ascending.

    Raises:
        ValueError: another score function, a negative ``top_k`` or ``max_pairs``, not a matrix.
        TypeError: entries that aren't numbers.
    """
    if max_pairs < 0:
        raise ValueError(f"max_pairs must not be negative, got {max_pairs}")
    rows = rows_of(embeddings, "embeddings")
    if not len(rows):
        return []
    search = _search(rows, _similarity(score_function))
    n, k = len(rows), min(top_k, max(0, len(rows) - 1))
    scores, keys = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    for places in runs(torch.arange(n), _BLOCK):
        found, others = search(chosen(rows, places), k, exclude=places[:, None])
        first = torch.minimum(places[:, None], others)
        pairs = first * n + torch.maximum(places[:, None], others)
        real = others >= 0
        scores, keys = torch.cat([scores, found[real].double()]), torch.cat([keys, pairs[real]])
        if len(keys) > 2 * max_pairs + _BLOCK * k:
            scores, keys = _best_pairs(scores, keys, max_pairs)
    scores, keys = _best_pairs(scores, keys, max_pairs)
    return [[score, key // n, key % n] for score, key in zip(scores.tolist(), keys.tolist(), strict=True)]


def _best_pairs(scores: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best pairs, each once: by score descending, then by key."""
    keys, order = torch.sort(keys, stable=True)
    scores = scores[order]
    new = torch.ones_like(keys, dtype=torch.bool)
    new[1:] = keys[1:] != keys[:-1]  # found from both sides, with the same score
    scores, order = torch.sort(scores[new], descending=True, stable=True)
    return scores[:count], keys[new][order][:count]


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """``sentence_transformers.util.community_detection``: groups of rows that are near to one of them.

    Every row with at least ``min_community_size`` rows (itself among them) whose cosine with it is at least
    ``threshold`` is the centre of a group. The largest group is taken first, of equal ones that of the first
    centre; later groups lose the rows that are taken, and fall out where their centre is taken or too few
    rows are left.

    Args:
        embeddings: [N,D], like the queries of ``semantic_search``.
        threshold: least cosine, rounded to the precision of the scores (float32, or float64 if the rows are).
        min_community_size: least number of rows of a group, 1 or more.
        batch_size: accepted for compatibility; memory is bounded without it.
        show_progress_bar: accepted for compatibility; nothing is shown.

    Returns:
        groups, the largest first: the centre, then the others by cosine descending, then by row.

    Raises:
        ValueError: a group size below 1, a threshold that isn't a number, not a matrix.
        TypeError: entries that aren't numbers.
    """
    if min_community_size < 1:
        raise ValueError(f"min_community_size must be at least 1, got {min_community_size}")
    if not -math.inf <= threshold <= math.inf:
        raise ValueError(f"threshold must be a number, got {threshold}")
    rows = rows_of(embeddings, "embeddings")
    if isinstance(rows, Tensor) and rows.dim() == 1:
        rows = rows[None] if len(rows) else rows[:, None]
    if len(rows) < min_community_size:
        return []
    index = Index(rows)
    least = torch.tensor(threshold, dtype=checks.result_dtype(_values(rows), _values(rows)))
    # No row can be the centre of a group whose least member is below the threshold.
    centres = torch.cat(
        [
            places[index.search(chosen(rows, places), min_community_size)[0][:, -1] >= least]
            for places in runs(torch.arange(len(rows)), _BLOCK)
        ]
    )
    _, members = all_within(
        lambda places, k: index.search(chosen(rows, centres[places]), k),
        len(centres),
        len(rows),
        lambda scores: scores >= least,
    )
    groups = sorted(zip(centres.tolist(), members, strict=True), key=lambda group: -len(group[1]))
    taken = torch.zeros(len(rows), dtype=torch.bool)
    found: list[list[int]] = []
    for centre, near in groups:
        left = near[~taken[near]]
        if not taken[centre] and len(left) >= min_community_size:
            taken[left] = True
            taken[centre] = True
            found.append([centre, *left[left != centre].tolist()])
    return sorted(found, key=len, reverse=True)

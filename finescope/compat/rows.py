"""What the drop-in functions take as rows, and searches that several of them need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.search import Index
from finescope.search.rows import as_codes, stacked

Array: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = Tensor | SparseCodes

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Elements that exist at once besides what is returned.
_ELEMENTS = 1 << 24


def rows_of(given: Any, name: str) -> Rows:
    """Rows of any kind: a floating tensor on the CPU, shared where possible, or codes if they are sparse.

    Args:
        given: SparseCodes; a scipy or torch sparse matrix; an array, a tensor, or a sequence of rows.
        name: of the argument, for messages.

    Raises:
        TypeError: entries that aren't numbers.
    """
    if isinstance(given, SparseCodes):
        return given
    given = stacked(given)
    if isinstance(given, Tensor):
        _numbers(given.dtype, name, given.dtype == torch.bool or given.is_complex())
        if given.layout != torch.strided:
            given = given.detach().cpu()
            given = given.unsqueeze(0) if given.dim() == 1 else given
            return as_codes(given)
        rows = given.detach().cpu()
    elif hasattr(given, "tocsr"):
        _numbers(given.dtype, name, given.dtype.kind not in "fiu")
        return as_codes(given)
    else:
        array = np.asarray(given)
        _numbers(array.dtype, name, array.dtype.kind not in "fiu")
        if not array.dtype.isnative or not array.flags.writeable or min(array.strides, default=1) <= 0:
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        rows = torch.from_numpy(array)
    if rows.dtype in _FLOATS:
        return rows
    return rows.float() if rows.itemsize <= 2 else rows.double()  # wide enough for every whole number


def _numbers(dtype: object, name: str, other: bool) -> None:
    if other:
        raise TypeError(f"{name} must hold numbers, got {dtype}")


def alike(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    """Two operands of one kind: where one is sparse, both are."""
    if isinstance(first, Tensor) == isinstance(second, Tensor):
        return first, second
    return (
        SparseCodes.from_dense(first) if isinstance(first, Tensor) else first,
        SparseCodes.from_dense(second) if isinstance(second, Tensor) else second,
    )


def chosen(rows: Rows, places: Tensor) -> Rows:
    """Some of the rows."""
    return rows[places] if isinstance(rows, Tensor) else rows[places.numpy()]


def runs(places: Tensor, size: int) -> Iterator[Tensor]:
    """Places in runs of a size, at least 1."""
    for first in range(0, len(places), max(1, size)):
        yield places[first : first + max(1, size)]


def all_within(
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    queries: int,
    rows: int,
    near: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """All results of each query that are near enough, however many there are.

    Args:
        search: returns values and ids [places,k], best first, of the queries at some places.
        queries: how many queries there are.
        rows: how many rows can be found.
        near: whether values are near enough; where one is, so are all better ones.

    Returns:
        values and ids of each query, best first.
    """
    values: list[Tensor] = [torch.empty(0)] * queries
    ids: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * queries
    left, k = torch.arange(queries), min(rows, 32)
    while len(left):
        unsure = []
        for places in runs(left, _ELEMENTS // max(1, k)):
            found, which = search(places, k)
            inside = near(found) & (which >= 0)
            ends = inside.sum(dim=1)
            full = ends == k if k < rows else torch.zeros_like(ends, dtype=torch.bool)
            unsure.append(places[full])
            for row in (~full).nonzero()[:, 0].tolist():
                place, end = int(places[row]), int(ends[row])
                values[place], ids[place] = found[row, :end].clone(), which[row, :end].clone()
        left, k = torch.cat(unsure), min(rows, 4 * k)
    return values, ids


def by_inner_product(queries: Rows, corpus: Rows | Array, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest inner products, where dense ones may be infinite.

    A row whose product is plus infinity comes before all others; one whose product is minus infinity or
    undefined (0 · ∞, ∞ - ∞) is no result.

    Args:
        queries: Q rows.
        corpus: N rows of the same kind, or a memory-mapped array.
        k: results for each query.

    Returns:
        scores [Q,k], float32 or float64, and ids int64 [Q,k]; -inf and -1 where there are fewer.
    """
    scores, ids = Index(corpus, metric="ip").search(queries, k)
    ids = ids.masked_fill(scores == -torch.inf, -1)  # of products below float32's range
    if not isinstance(queries, Tensor) or isinstance(corpus, SparseCodes) or not k:
        return scores, ids
    odd_queries = _infinite(queries)
    odd_rows = torch.cat([torch.empty(0, dtype=torch.int64), *_infinite_rows(corpus)])
    for places, rows in (
        (torch.arange(len(queries)), odd_rows),
        (odd_queries, torch.arange(len(corpus))),
    ):
        for some in runs(places, _ELEMENTS // len(rows)) if len(rows) else ():
            _put_first(scores, ids, some, _infinite_hits(queries[some], corpus, rows, k))
    return scores, ids


def _infinite(rows: Tensor) -> Tensor:
    """Places of the rows that hold an infinity."""
    return rows.isinf().any(dim=1).nonzero()[:, 0]


def _infinite_rows(corpus: Tensor | Array) -> list[Tensor]:
    tall = max(1, _ELEMENTS // max(1, corpus.shape[1]))
    return [first + _infinite(_block(corpus, first, tall)) for first in range(0, len(corpus), tall)]


def _block(corpus: Tensor | Array, first: int, tall: int) -> Tensor:
    block = corpus[first : first + tall]
    return block if isinstance(block, Tensor) else torch.from_numpy(np.array(block))


def _infinite_hits(queries: Tensor, corpus: Tensor | Array, rows: Tensor, k: int) -> list[Tensor]:
    """For each query the first k of some rows whose product with it is plus infinity."""
    hits: list[list[Tensor]] = [[] for _ in range(len(queries))]
    for some in runs(rows, _ELEMENTS // max(1, queries.shape[1])):
        block = corpus[some] if isinstance(corpus, Tensor) else torch.from_numpy(corpus[some.numpy()])
        products = queries.double() @ block.double().T
        for query, infinite in enumerate(products == torch.inf):
            hits[query].append(some[infinite][:k])
    return [torch.cat(found)[:k] for found in hits]


def _put_first(scores: Tensor, ids: Tensor, places: Tensor, hits: list[Tensor]) -> None:
    for place, found in zip(places.tolist(), hits, strict=True):
        others = ids[place][~torch.isin(ids[place], found)][: ids.shape[1] - len(found)]
        kept = scores[place][~torch.isin(ids[place], found)][: len(others)]
        ids[place] = torch.cat([found, others])
        scores[place] = torch.cat([torch.full((len(found),), torch.inf, dtype=kept.dtype), kept])

"""Exact nearest neighbours by Euclidean distance, from a search by inner product; dense rows or sparse codes.

‖q − c‖² = ‖q‖² − 2 (⟨q, c⟩ − ‖c‖²/2), so the nearest rows are those with the largest inner product of (q, 1)
and (c, −‖c‖²/2). Those scores cancel where rows are near, so they only propose: what is returned is decided
by Σ (q − c)² itself, in float64 and a fixed order, and a bound on the error of both proves that nothing is
missing. Order: distance ascending, then row ascending.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks, pair_scores, sparse_pair_scores
from finescope.ops.dense import gamma
from finescope.ops.fixed_order import squared_norms
from finescope.search.index import Index

Rows: TypeAlias = Tensor | SparseCodes
Array: TypeAlias = np.ndarray[Any, Any]

_SPARE = 8
# Elements of the differences that exist at once.
_ELEMENTS = 1 << 22
# The range of squared norms that float32 parts hold to full precision.
_TAME = (2.0**-60, 2.0**100)


class NearestRows:
    """A corpus held ready to be searched by Euclidean distance; it is copied."""

    def __init__(self, corpus: Rows) -> None:
        """Hold rows ready.

        Args:
            corpus: [N,D], any floating dtype, or N sparse codes over D latents.

        Raises:
            ValueError: not a matrix.
            TypeError: not floating point.
        """
        if isinstance(corpus, Tensor):
            checks.pack_rows(corpus, "ip", "auto")
        self._rows = corpus
        squares = _squares(corpus)
        finite = squares[squares.isfinite()]
        self._largest = float(finite.max()) if len(finite) else 0.0
        positive = finite[finite > 0]
        tame = not len(positive) or (float(positive.min()) > _TAME[0] and self._largest < _TAME[1])
        wide = _dtype(corpus) == torch.float64
        self._dtype = torch.float32 if tame and not wide else torch.float64
        # What all rows have in common takes no part in the order, and much from the precision of a screen.
        self._middle = float(finite.mean()) / 2 if len(finite) else 0.0
        halves, parts = self._middle - squares / 2, []
        for _ in range(3 if self._dtype == torch.float32 else 1):
            parts.append(halves.to(self._dtype))  # together they hold all bits of a float64
            halves = halves - parts[-1].double()
        self._wide_rows = _beside(corpus, torch.stack(parts, dim=1))
        self._index = Index(self._wide_rows, metric="ip")
        self._parts = len(parts)
        self._terms = _longest(corpus)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: Rows, k: int, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows of each query.

        Args:
            queries: [Q,D], any floating dtype, or Q sparse codes, like the corpus.
            k: neighbours; more than N pads.
            exclude: rows [Q,E], int64, never returned for that query.

        Returns:
            squared distances [Q,k], float64, ascending, and rows [Q,k], int64; inf and -1 where there are
            fewer than k results. A row with a NaN or an infinity is never returned, and a query with one has
            no results.

        Raises:
            ValueError: shapes that do not fit, a negative k.
            TypeError: dense queries for sparse rows or the reverse.
        """
        _check(queries, self._rows, k, exclude)
        found = torch.full((len(queries), k), -1, dtype=torch.int64)
        squares = torch.full((len(queries), k), math.inf, dtype=torch.float64)
        left, count = torch.arange(len(queries)), min(len(self), k + _SPARE)
        terms = max(self._terms, _longest(queries))
        while len(left) and min(k, count):
            tall = max(1, _ELEMENTS // (count * max(1, terms)))
            unsure = []
            for first in range(0, len(left), tall):
                rows = left[first : first + tall]
                excluded = None if exclude is None else exclude[rows]
                best, ids, certain = self._once(_some(queries, rows), k, count, excluded)
                squares[rows, : best.shape[1]], found[rows, : ids.shape[1]] = best, ids
                unsure.append(rows[~certain])
            left, count = torch.cat(unsure), min(len(self), 4 * count)
        return squares, found

    def _once(
        self, queries: Rows, k: int, count: int, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best k of ``count`` proposals, and whether they are proven to be the nearest."""
        size = _squares(queries)
        # float64 where float32 would round the query, or where its squares leave the range.
        wide = torch.promote_types(self._dtype, _dtype(queries))
        asked = _beside(queries, torch.ones(len(queries), self._parts, dtype=wide))
        _, ids = self._index.search(asked, count, exclude=exclude)
        score: Any = pair_scores if isinstance(asked, Tensor) else sparse_pair_scores
        last = score(asked, self._wide_rows, ids[:, -1:], metric="ip")[:, 0]  # the least: they come in order
        squares = _distances(queries, self._rows, ids)
        ids, order = torch.sort(torch.where(ids < 0, len(self), ids), dim=1)
        squares, order = torch.sort(squares.gather(1, order), dim=1, stable=True)
        ids = ids.gather(1, order)
        ids = torch.where(ids == len(self), -1, ids)
        if count == len(self):
            return squares[:, :k], ids[:, :k], torch.ones(len(queries), dtype=torch.bool)
        terms = max(self._terms, _longest(queries))
        relative = gamma(4 * (terms + 8), 2.0**-53)
        error = relative * (size + size.sqrt() * math.sqrt(self._largest) + self._largest) + 2.0**-140
        least = (size - 2 * (last - self._middle) - 2 * error) * (1 - relative)
        # Fewer proposals than asked for: there are no others. NaN queries have none at all.
        certain = (squares[:, k - 1] < least) | (ids < 0).any(dim=1)
        return squares[:, :k], ids[:, :k], certain


def _check(queries: Rows, corpus: Rows, k: int, exclude: Tensor | None) -> None:
    if isinstance(queries, Tensor) and isinstance(corpus, Tensor):
        checks.cosine_topk(queries, corpus, checks.Search(k, "ip", exclude=exclude))
        return
    if not isinstance(queries, SparseCodes) or not isinstance(corpus, SparseCodes):
        raise TypeError("queries and corpus must both be dense rows or both be sparse codes")
    if queries.num_latents != corpus.num_latents:
        raise ValueError(
            f"queries have {queries.num_latents} columns, but the corpus has {corpus.num_latents}"
        )
    asked, rows = ((each.indptr, each.indices, each.values) for each in (queries, corpus))
    checks.sparse_cosine_topk(asked, rows, corpus.num_latents, checks.Search(k, "ip", exclude=exclude))


def _dtype(rows: Rows) -> torch.dtype:
    return rows.dtype if isinstance(rows, Tensor) else rows.values.dtype


def _some(rows: Rows, places: Tensor) -> Rows:
    return rows[places] if isinstance(rows, Tensor) else rows[places.numpy()]


def _longest(rows: Rows) -> int:
    """Terms of a row's sums, at most."""
    if isinstance(rows, Tensor):
        return int(rows.shape[1])
    return int(rows.indptr.diff().max()) if len(rows) else 0


def _squares(rows: Rows) -> Tensor:
    """Squared norms [N], float64, summed in one order."""
    if isinstance(rows, Tensor):
        return squared_norms(rows, torch.arange(len(rows)))
    return _sums(rows.values.detach().double().square().numpy(), rows.indptr.diff().numpy())


def _sums(entries: Array, lengths: Array) -> Tensor:
    """Sums of runs of entries: ``bincount`` adds one after the other, so on every machine the same."""
    runs = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.bincount(runs, weights=entries, minlength=len(lengths))
    return torch.from_numpy(sums.astype(np.float64, copy=False))  # whole numbers, of no entries


def _beside(rows: Rows, columns: Tensor) -> Rows:
    """Rows in the dtype of some columns, and the columns beside them."""
    if isinstance(rows, Tensor):
        return torch.cat([rows.to(columns.dtype), columns], dim=1)
    from scipy.sparse import csr_matrix, hstack

    widened = SparseCodes(
        rows.indptr, rows.indices, rows.values.to(columns.dtype), rows.num_latents, check=False
    )
    return SparseCodes.from_scipy(hstack([widened.to_scipy(), csr_matrix(columns.numpy())], format="csr"))


def _distances(queries: Rows, corpus: Rows, ids: Tensor) -> Tensor:
    """Σ (q − c)² of each query and its rows [Q,C], float64; inf where an id is -1."""
    places = ids.clamp(min=0)
    if isinstance(queries, SparseCodes) and isinstance(corpus, SparseCodes):
        asked = queries[np.repeat(np.arange(len(queries)), ids.shape[1])].to_scipy()
        differences = asked.astype(np.float64) - corpus[places.numpy()].to_scipy().astype(np.float64)
        differences.sort_indices()
        squares = _sums(np.square(differences.data), np.diff(differences.indptr))
    elif isinstance(queries, Tensor) and isinstance(corpus, Tensor):
        flat = (queries.double()[:, None, :] - corpus[places].double()).reshape(-1, queries.shape[1])
        squares = squared_norms(flat, torch.arange(len(flat)))
    return squares.view(ids.shape).masked_fill_(ids < 0, math.inf)

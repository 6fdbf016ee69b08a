"""Exact nearest neighbours by Euclidean distance, from a search by inner product.

‖q − c‖² = ‖q‖² − 2 (⟨q, c⟩ − ‖c‖²/2), so the nearest rows are those with the largest inner product of (q, 1)
and (c, −‖c‖²/2). Those scores cancel where rows are near, so they only propose: what is returned is decided
by Σ (q − c)² itself, in float64 and the fixed order, and a bound on the error of both proves that nothing is
missing. Order: distance ascending, then row ascending.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finescope.ops import checks, pair_scores
from finescope.ops.dense import gamma
from finescope.ops.fixed_order import squared_norms
from finescope.search.index import Index

_SPARE = 8
# Elements of the differences that exist at once.
_ELEMENTS = 1 << 22
# The range of squared norms that float32 parts hold to full precision.
_TAME = (2.0**-60, 2.0**100)


class NearestRows:
    """A corpus held ready to be searched by Euclidean distance; it is copied."""

    def __init__(self, corpus: Tensor) -> None:
        """Hold rows ready.

        Args:
            corpus: [N,D], any floating dtype.

        Raises:
            ValueError: not a matrix.
            TypeError: not floating point.
        """
        checks.pack_rows(corpus, "ip", "auto")
        self._rows = corpus
        squares = squared_norms(corpus, torch.arange(len(corpus)))
        finite = squares[squares.isfinite()]
        self._largest = float(finite.max()) if len(finite) else 0.0
        positive = finite[finite > 0]
        tame = not len(positive) or (float(positive.min()) > _TAME[0] and self._largest < _TAME[1])
        self._dtype = torch.float32 if tame and corpus.dtype != torch.float64 else torch.float64
        # What all rows have in common takes no part in the order, and much from the precision of a screen.
        self._middle = float(finite.mean()) / 2 if len(finite) else 0.0
        halves, parts = self._middle - squares / 2, []
        for _ in range(3 if self._dtype == torch.float32 else 1):
            parts.append(halves.to(self._dtype))  # together they hold all bits of a float64
            halves = halves - parts[-1].double()
        self._wide_rows = torch.cat([corpus.to(self._dtype), torch.stack(parts, dim=1)], dim=1)
        self._index = Index(self._wide_rows, metric="ip")
        self._parts = len(parts)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: Tensor, k: int, *, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows of each query.

        Args:
            queries: [Q,D], any floating dtype.
            k: neighbours; more than N pads.
            exclude: rows [Q,E], int64, never returned for that query.

        Returns:
            squared distances [Q,k], float64, ascending, and rows [Q,k], int64; inf and -1 where there are
            fewer than k results. A row with a NaN or an infinity is never returned, and a query with one has
            no results.
        """
        checks.cosine_topk(queries, self._rows, checks.Search(k, "ip", exclude=exclude))
        found = torch.full((len(queries), k), -1, dtype=torch.int64)
        squares = torch.full((len(queries), k), math.inf, dtype=torch.float64)
        left, count = torch.arange(len(queries)), min(len(self), k + _SPARE)
        while len(left) and min(k, count):
            tall = max(1, _ELEMENTS // (count * max(1, queries.shape[1])))
            unsure = []
            for first in range(0, len(left), tall):
                rows = left[first : first + tall]
                excluded = None if exclude is None else exclude[rows]
                best, ids, certain = self._once(queries[rows], k, count, excluded)
                squares[rows, : best.shape[1]], found[rows, : ids.shape[1]] = best, ids
                unsure.append(rows[~certain])
            left, count = torch.cat(unsure), min(len(self), 4 * count)
        return squares, found

    def _once(
        self, queries: Tensor, k: int, count: int, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best k of ``count`` proposals, and whether they are proven to be the nearest."""
        size = queries.double().square().sum(dim=1)
        # float64 where float32 would round the query, or where its squares leave the range.
        wide = torch.promote_types(self._dtype, queries.dtype)
        asked = torch.cat([queries.to(wide), torch.ones(len(queries), self._parts, dtype=wide)], dim=1)
        _, ids = self._index.search(asked, count, exclude=exclude)
        proposed = pair_scores(asked, self._wide_rows, ids, metric="ip")
        rows = self._rows[ids.clamp(min=0)].double()
        flat = (queries.double()[:, None, :] - rows).reshape(-1, queries.shape[1])
        squares = squared_norms(flat, torch.arange(len(flat))).view(ids.shape)
        squares.masked_fill_(ids < 0, math.inf)
        ids, order = torch.sort(torch.where(ids < 0, len(self), ids), dim=1)
        squares, order = torch.sort(squares.gather(1, order), dim=1, stable=True)
        ids = ids.gather(1, order)
        ids = torch.where(ids == len(self), -1, ids)
        if count == len(self):
            return squares[:, :k], ids[:, :k], torch.ones(len(queries), dtype=torch.bool)
        relative = gamma(4 * (queries.shape[1] + 8), 2.0**-53)
        error = relative * (size + size.sqrt() * math.sqrt(self._largest) + self._largest) + 2.0**-140
        least = (size - 2 * (proposed.amin(dim=1) - self._middle) - 2 * error) * (1 - relative)
        # Fewer proposals than asked for: there are no others. NaN queries have none at all.
        certain = (squares[:, k - 1] < least) | (ids < 0).any(dim=1)
        return squares[:, :k], ids[:, :k], certain

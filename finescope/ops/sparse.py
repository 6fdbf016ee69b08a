"""Default bodies of ``sparse_cosine_topk``, ``sparse_pair_scores``, ``sparse_matmul``, ``sparse_products``.

A block of queries is spread into a dense panel [F, queries]; the scores of a corpus row are then the sum of
the panel rows of its latents, weighted by its values, which is one embedding bag. The exact score of a pair
is its float64 dot product summed over the latents of the corpus row in ascending order (latents the query
lacks add zero).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from finescope.ops import checks, engine
from finescope.ops.checks import Search
from finescope.ops.dense import extreme, finish_search, gamma, set_filters
from finescope.ops.engine import NEVER, Problem, certified_topk
from finescope.ops.fixed_order import sqrt
from finescope.ops.registry import default
from finescope.ops.schemas import csr_pair

# Stored entries that are looked at together.
_ENTRIES = 1 << 20
# Sums of sparse_matmul that are made together.
_PANEL = 1 << 19
_UNIT32, _UNIT64 = 2.0**-24, 2.0**-53
_TINY32 = torch.finfo(torch.float32).tiny


def _rises(indptr: Tensor, indices: Tensor, name: str) -> None:
    """Reject pointers of rows that do not run over all entries. Looks at data."""
    if int(indptr[0]) != 0 or int(indptr[-1]) != indices.shape[0] or bool((indptr.diff() < 0).any()):
        raise ValueError(f"{name}_indptr must rise from 0 to nnz={indices.shape[0]}")


def _in_range(latent: Tensor, row: Tensor, num_latents: int, name: str) -> None:
    """Reject latents of entries, of which ``row`` are the rows, that are none. Looks at data."""
    wrong = ((latent < 0) | (latent >= num_latents)).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise IndexError(
            f"{name}_indices holds {int(latent[at])} in row {int(row[at])}, "
            f"which is outside 0..{num_latents - 1}"
        )


class _Rows:
    """CSR rows, checked, with their norms."""

    def __init__(self, indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int, name: str) -> None:
        self.indptr, self.indices, self.values = indptr.contiguous(), indices, values
        self.latents = num_latents
        self.count = indptr.shape[0] - 1
        self.lengths = indptr.diff()
        _rises(indptr, indices, name)
        self.longest = int(self.lengths.amax()) if self.count else 0
        square = torch.zeros(self.count, dtype=torch.float64)
        for first, last in self._blocks():
            row, latent, value = self.entries(slice(first, last))
            _in_range(latent, first + row, num_latents, name)
            # A one-dimensional index_add_ adds one entry after the other: ascending latents.
            square[first:last].index_add_(0, row, value * value)
        self.norms = sqrt(square)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of whole rows with about ``_ENTRIES`` entries each."""
        first = 0
        while first < self.count:
            last = int(torch.searchsorted(self.indptr, self.indptr[first] + _ENTRIES, right=True)) - 1
            last = min(max(last, first + 1), self.count, first + _ENTRIES)
            yield first, last
            first = last

    def entries(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Row (from 0), latent and float64 value of each entry of a run of rows."""
        low, high = int(self.indptr[rows.start]), int(self.indptr[rows.stop])
        row = torch.repeat_interleave(
            torch.arange(rows.stop - rows.start), self.lengths[rows], output_size=high - low
        )
        return row, self.indices[low:high].to(torch.int64), self.values[low:high].double()

    def dense(self, rows: Tensor) -> Tensor:
        """Chosen rows [R] as a dense float64 [R,F]."""
        out = torch.zeros((rows.shape[0], self.latents), dtype=torch.float64)
        lengths = self.lengths[rows]
        row = torch.repeat_interleave(torch.arange(rows.shape[0]), lengths)
        step = torch.arange(row.shape[0]) - (lengths.cumsum(0) - lengths)[row]
        entry = self.indptr[rows][row] + step
        out[row, self.indices[entry].to(torch.int64)] = self.values[entry].double()
        return out


def _exact_dots(queries: _Rows, rows: Tensor, corpus: _Rows, columns: Tensor) -> Tensor:
    """Exact dot products, float64 [P,C], of query rows [P] (ascending) and corpus columns [P,C]."""
    out = torch.zeros(columns.shape, dtype=torch.float64)
    wide = max(1, columns.shape[1])
    tall = max(1, min(engine.BLOCK_ELEMENTS // max(1, queries.latents), _ENTRIES // wide))
    unique, place = torch.unique(rows, return_inverse=True)
    edges = torch.searchsorted(place, torch.arange(0, unique.shape[0] + tall, tall)).tolist()
    for block, (low, high) in enumerate(itertools.pairwise(edges)):
        panel = queries.dense(unique[block * tall : (block + 1) * tall]).view(-1)
        base = (place[low:high] - block * tall)[:, None].expand(-1, wide).reshape(-1) * queries.latents
        out[low:high] = _panel_dots(panel, base, corpus, columns[low:high].reshape(-1)).view(-1, wide)
    return out


def _panel_dots(panel: Tensor, base: Tensor, corpus: _Rows, columns: Tensor) -> Tensor:
    """Dot products [P] of corpus rows [P] with the dense rows that start at ``base`` [P] of a flat panel."""
    out = torch.zeros(columns.shape[0], dtype=torch.float64)
    chunk = max(1, _ENTRIES // max(1, corpus.longest))
    for first in range(0, columns.shape[0], chunk):
        chosen = columns[first : first + chunk]
        lengths = corpus.lengths[chosen]
        longest = int(lengths.amax())
        step = torch.arange(longest)[None, :]
        held = step < lengths[:, None]
        entry = (corpus.indptr[chosen][:, None] + step).masked_fill_(~held, 0)
        latent = corpus.indices[entry].to(torch.int64)
        products = panel[base[first : first + chunk, None] + latent] * corpus.values[entry].double()
        products.masked_fill_(~held, 0.0)
        total = out[first : first + chunk]
        for slot in range(longest):
            total += products[:, slot]
    return out


def _cosines(dots: Tensor, norms: Tensor, corpus_norms: Tensor) -> Tensor:
    product = norms * corpus_norms
    return torch.where(product > 0, dots / product, 0.0)


class _Sparse(Problem):
    def __init__(self, queries: _Rows, corpus: _Rows, cosine: bool) -> None:
        self.queries, self.corpus, self.cosine = queries, corpus, cosine
        self.rows, self.cols, self.device = queries.count, corpus.count, torch.device("cpu")
        self.terms = min(queries.longest, corpus.longest)
        self.max_rows = max(1, engine.BLOCK_ELEMENTS // max(1, queries.latents))
        self.max_columns = max(1, engine.BLOCK_ELEMENTS // max(1, corpus.longest))
        self.bad_rows = ~queries.norms.isfinite()
        self.inverse = corpus.norms.reciprocal().nan_to_num_(0.0, 0.0, 0.0)
        self._panel: tuple[slice, Tensor] | None = None
        norms = queries.norms
        relative = gamma(self.terms + 16, _UNIT32)
        if cosine:
            spread = torch.full_like(norms, relative + 4 * (self.terms + 1) * _TINY32)
        else:
            top = corpus.norms.nan_to_num(0.0, 0.0, 0.0)
            largest = top.amax() if self.cols else top.sum()
            absolute = _TINY32 * (2 * self.terms + 4 + math.sqrt(self.terms + 1) * (norms + largest))
            room = torch.finfo(torch.float32).max / 16
            spread = (relative * norms * largest + absolute).masked_fill(
                ~((norms < room) & (largest < room) & (norms * largest < room)), math.inf
            )
        single = torch.float64 not in (queries.values.dtype, corpus.values.dtype)
        # Where all squares vanish the cosine is 0 by definition, but a float64 product need not vanish.
        self.spread = spread.masked_fill(norms == 0, 0.0) if single or cosine else spread
        if not single:
            self.spread.masked_fill_(extreme(norms) | extreme(corpus.norms).any(), math.inf)

    def screen(self, rows: slice, cols: slice) -> Tensor:
        if self._panel is None or self._panel[0] != rows:
            dense = self.queries.dense(torch.arange(rows.start, rows.stop))
            if self.cosine:
                dense *= self.queries.norms[rows].reciprocal().nan_to_num_(0.0, 0.0, 0.0)[:, None]
            dense[self.bad_rows[rows] if self.bad_rows is not None else slice(0)] = 0.0
            self._panel = (rows, dense.T.float().contiguous())
        _, latent, value = self._entries(cols)
        return self._bags(self._panel[1], latent, value.float(), cols).T.contiguous()

    def _entries(self, cols: slice) -> tuple[Tensor, Tensor, Tensor]:
        row, latent, value = self.corpus.entries(cols)
        if self.cosine:
            value = value * self.inverse[cols][row]
        return row, latent, value

    def _bags(self, panel: Tensor, latent: Tensor, value: Tensor, cols: slice) -> Tensor:
        """Weighted sums of panel rows, [columns, queries]."""
        if not latent.numel():
            return panel.new_zeros((cols.stop - cols.start, panel.shape[1]))
        starts = self.corpus.indptr[cols.start : cols.stop + 1] - self.corpus.indptr[cols.start]
        return torch.nn.functional.embedding_bag(
            latent, panel, starts, mode="sum", per_sample_weights=value, include_last_offset=True
        )

    def bound(self, rows: slice, at: Tensor) -> Tensor:
        spread = self.spread[rows]
        return (spread if at.dim() == 1 else spread[:, None]).expand(at.shape)

    def wide(self, rows: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
        panel = self.queries.dense(rows).T.contiguous()
        _, latent, value = self.corpus.entries(cols)
        dots = self._bags(panel, latent, value, cols).T
        error = self._bags(panel.abs(), latent, value.abs(), cols).T * gamma(2 * self.terms + 16, _UNIT64)
        if torch.float64 in (self.queries.values.dtype, self.corpus.values.dtype):
            error = error + (2 * self.terms + 4) * 2.0**-1074
        if not self.cosine:
            return dots, error
        norms, corpus = self.queries.norms[rows][:, None], self.corpus.norms[cols]
        cosines = _cosines(dots, norms, corpus)
        return cosines, _cosines(error, norms, corpus) * 1.0001 + cosines.abs() * 2.0**-50

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        dots = _exact_dots(self.queries, rows, self.corpus, columns)
        if not self.cosine:
            return dots
        return _cosines(dots, self.queries.norms[rows][:, None], self.corpus.norms[columns])


@default("sparse_cosine_topk", cpu_only=True)
def _sparse_cosine_topk(*args: Any) -> tuple[Tensor, Tensor]:
    query, corpus, num_latents, options = csr_pair(*args)
    search = Search(*options)
    checks.sparse_cosine_topk(query, corpus, num_latents, search)
    queries, rows = _Rows(*query, num_latents, "q"), _Rows(*corpus, num_latents, "c")
    problem = _Sparse(queries, rows, search.metric == "cosine")
    set_filters(problem, ~rows.norms.isfinite(), search)
    scores, columns = certified_topk(problem, search.k)
    return finish_search(scores, columns, checks.result_dtype(query[2], corpus[2]), search)


@default("sparse_pair_scores", cpu_only=True)
def _sparse_pair_scores(*args: Any) -> Tensor:
    query, corpus, num_latents, (ids, metric) = csr_pair(*args)
    checks.sparse_pair_scores(query, corpus, num_latents, ids, metric)
    queries, rows = _Rows(*query, num_latents, "q"), _Rows(*corpus, num_latents, "c")
    checks.positions_in_range(ids, rows.count, "ids", lowest=-1)
    if not rows.count or not ids.numel():
        return torch.full(ids.shape, NEVER, dtype=torch.float64)
    columns = ids.clamp(min=0)
    scores = _exact_dots(queries, torch.arange(queries.count), rows, columns)
    norms, corpus_norms = queries.norms[:, None], rows.norms[columns]
    if metric == "cosine":
        scores = _cosines(scores, norms, corpus_norms)
    lost = (ids < 0) | ~(norms.isfinite() & corpus_norms.isfinite())
    return scores.masked_fill_(lost, NEVER)


@default("sparse_matmul")
def _sparse_matmul(indptr: Tensor, indices: Tensor, values: Tensor, panel: Tensor) -> Tensor:
    checks.sparse_matmul((indptr, indices, values), panel)
    count, columns, latents = indptr.shape[0] - 1, panel.shape[1], panel.shape[0]
    _rises(indptr, indices, "codes")
    out = panel.new_zeros((count, columns))
    lengths = indptr.diff()
    tall = max(1, _PANEL // max(1, columns))
    for first in range(0, count, tall):
        # Longest first: the rows that have an entry at a place are then the first ones.
        length, order = lengths[first : first + tall].sort(descending=True)
        start = indptr[first : first + tall][order]
        sums = panel.new_zeros((order.shape[0], columns))
        for place in range(int(length[0])):
            held = int((length > place).sum())
            entry = start[:held] + place
            latent = indices[entry].to(torch.int64)
            _in_range(latent, order + first, latents, "codes")
            # Multiplied and added apart: each of them rounds.
            sums[:held] += values[entry].double()[:, None] * panel[latent]
        out[first : first + tall][order] = sums
    return out.masked_fill_(out.isnan(), math.nan)


@default("sparse_products")
def _sparse_products(*args: Any) -> Tensor:
    query, corpus, num_latents, _ = csr_pair(*args)
    checks.sparse_products(query, corpus, num_latents)
    indptr, indices, values = query
    _rises(indptr, indices, "q")
    count, rows = indptr.shape[0] - 1, corpus[0].shape[0] - 1
    owner = torch.repeat_interleave(torch.arange(count, device=indptr.device), indptr.diff())
    _in_range(indices.to(torch.int64), owner, num_latents, "q")
    _rises(*corpus[:2], "c")
    row = torch.repeat_interleave(torch.arange(rows, device=indptr.device), corpus[0].diff())
    _in_range(corpus[1].to(torch.int64), row, num_latents, "c")
    out = values.new_empty((count, rows))
    wide = max(1, _PANEL // max(1, num_latents))
    for first in range(0, count, wide):
        own = (owner >= first) & (owner < first + wide)
        panel = values.new_zeros((num_latents, min(wide, count - first)))
        panel.index_put_((indices.to(torch.int64)[own], owner[own] - first), values[own], accumulate=True)
        # The entries that a query doesn't hold are 0 here and add nothing.
        out[first : first + wide] = torch.ops.finescope.sparse_matmul(*corpus, panel).T
    out[:, row[~corpus[2].isfinite()]] = math.nan
    return out

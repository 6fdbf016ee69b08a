"""Default bodies of ``topk_encode``, ``cosine_topk`` and ``pair_scores``: dense rows against dense rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from finescope.ops import checks, engine
from finescope.ops.checks import Search
from finescope.ops.engine import NEVER, Problem, certified_topk
from finescope.ops.fixed_order import pair_dots, sqrt, squared_norms
from finescope.ops.registry import default

# Cosine screening multiplies raw corpus rows and scales afterwards where norms lie in this range; there
# neither overflow nor underflow can be felt. Rows outside it are normalised first.
_TAME = 2.0**40


def _has_ieee_float32(device: torch.device) -> bool:
    """Whether float32 matrix products really are float32, as far as torch's settings say."""
    # Each level that is not set ("none") takes what the wider one says. torch's stubs lack these attributes.
    library: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    setting = library.matmul.fp32_precision
    return device.type in ("cpu", "cuda") and setting in ("none", "ieee")


def row_norms(matrix: Tensor) -> Tensor:
    """Euclidean norms of the rows, float64 [rows], good to 1e-13; NaN or inf where a row is not finite."""
    out = torch.empty(matrix.shape[0], dtype=torch.float64, device=matrix.device)
    tall = max(1, (engine.BLOCK_ELEMENTS >> 4) // max(1, matrix.shape[1]))
    for first in range(0, matrix.shape[0], tall):
        rows = slice(first, first + tall)
        out[rows] = matrix[rows].double().square().sum(dim=1)
    return out.sqrt_()


def gamma(terms: float, unit: float) -> float:
    """Wilkinson's n·u / (1 − n·u), with a percent to spare for the arithmetic on the bounds themselves."""
    return math.inf if terms * unit > 0.5 else 1.01 * terms * unit / (1.0 - terms * unit)


def extreme(norms: Tensor) -> Tensor:
    """Norms of float64 rows whose squares are near the ends of the range, but not 0."""
    return ((norms > 0) & (norms < 2.0**-400)) | ((norms > 2.0**400) & norms.isfinite())


class _Dense(Problem):
    """What the encoder and the two search metrics have in common."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.x, self.weight = x, weight
        self.rows, self.cols, self.terms, self.device = x.shape[0], weight.shape[0], x.shape[1], x.device
        single = torch.float64 not in (x.dtype, weight.dtype)
        self.single = single
        self.dtype = torch.float32 if _has_ieee_float32(x.device) else torch.float64
        if gamma(self.terms + 16, 2.0**-24) > 0.25:
            self.dtype = torch.float64
        self.unit = torch.finfo(self.dtype).eps / 2
        # Rounded operands, the sum itself, scaling; and, where it counts, the rounding of the exact score.
        self.relative = gamma((2 if self.dtype == torch.float64 else 1) * self.terms + 16, self.unit)
        self.tiny = torch.finfo(self.dtype).tiny  # also covers machines that flush subnormals to zero
        self.x_norm, self.weight_norm = row_norms(x), row_norms(weight)
        self.bad_rows = ~self.x_norm.isfinite()
        if weight.dtype != self.dtype:
            self.max_columns = max(1, engine.BLOCK_ELEMENTS // max(1, self.terms))
        # Squares of float64 entries below this vanish; what the norm misses by that is added back to bounds.
        self.lost = 0.0 if single else math.sqrt(self.terms) * 2.0**-510

    def _columns(self, cols: slice, dtype: torch.dtype) -> Tensor:
        return self.weight[cols].to(dtype)

    def _wide_dots(self, rows: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
        left, right = self.x.index_select(0, rows).double(), self._columns(cols, torch.float64)
        dots = left @ right.T
        error = (left.abs() @ right.abs().T).mul_(gamma(2 * self.terms + 8, 2.0**-53))
        if not self.single:  # products of float64 numbers can underflow
            error.add_((2 * self.terms + 4) * 2.0**-1074)
        return dots, error


class Encode(_Dense):
    """Scores ``<x, w> + b``; also plain inner products, where ``bias`` is None and ``floor`` is -inf."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, floor: float) -> None:
        super().__init__(x, weight)
        self.bias, self.floor = bias, floor
        largest = self.weight_norm.nan_to_num(0.0, 0.0, 0.0)
        top = (largest.amax() if self.cols else largest.sum()) + self.lost
        norm = self.x_norm + self.lost
        offset = (
            0.0 if bias is None or not bias.numel() else bias.double().abs().nan_to_num(0.0, 0.0, 0.0).amax()
        )
        room = torch.finfo(self.dtype).max / 16
        tame = (norm < room) & (top < room) & (norm * top + offset < room)
        relative = self.relative * norm * top
        absolute = self.tiny * (2 * self.terms + 4 + math.sqrt(self.terms) * (norm + top))
        # A zero row has products that are all exactly zero, whatever the order.
        spread = (
            (relative + absolute).masked_fill(self.x_norm == 0.0, 0.0) if self.single else relative + absolute
        )
        self.spread = spread.masked_fill(~tame, math.inf)

    def screen(self, rows: slice, cols: slice) -> Tensor:
        scores = torch.mm(self.x[rows].to(self.dtype), self._columns(cols, self.dtype).T)
        return scores if self.bias is None else scores.add_(self.bias[cols].to(self.dtype))

    def bound(self, rows: slice, at: Tensor) -> Tensor:
        spread = self.spread[rows]
        # Rounding the bias and the last sum: |b| <= |score| + |<x, w>|, and the latter is in the spread.
        size = (
            at.double()
            .abs()
            .nan_to_num(0.0, 0.0, 0.0)
            .mul_(4 * self.unit if self.bias is not None else 2.0**-52)
        )
        return size.add_(spread if at.dim() == 1 else spread[:, None])

    def wide(self, rows: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
        dots, error = self._wide_dots(rows, cols)
        if self.bias is not None:
            dots += self.bias[cols].double()
            error += dots.abs() * 2.0**-51
        return dots, error

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        dots = pair_dots(self.x, rows, self.weight, columns)
        return dots if self.bias is None else dots.add_(self.bias[columns].double())


class Cosine(_Dense):
    """Scores ``<q, c> / (‖q‖·‖c‖)``, 0 where either norm is 0."""

    def __init__(self, queries: Tensor, corpus: Tensor) -> None:
        super().__init__(queries, corpus)
        self.norm = sqrt(squared_norms(queries, torch.arange(self.rows, device=self.device)))
        self.scale = self._inverse(self.weight_norm)
        known = self.weight_norm[self.weight_norm.isfinite() & (self.weight_norm > 0)]
        self.tame = bool(((known > 1 / _TAME) & (known < _TAME)).all())
        if not self.tame:
            self.max_columns = max(1, engine.BLOCK_ELEMENTS // max(1, self.terms))
        self.query_scale = self._inverse(self.x_norm)
        spread = self.relative + self.terms * self.tiny * 2.0**80
        self.spread = torch.full_like(self.x_norm, spread).masked_fill_(self.x_norm == 0.0, 0.0)
        if not self.single:
            # Squares of such float64 entries underflow or overflow, so norms mean little; float64 sorts it
            # out. (Where all squares vanish, the score is 0 by definition and the screen says so too.)
            self.spread.masked_fill_(extreme(self.x_norm) | extreme(self.weight_norm).any(), math.inf)

    @staticmethod
    def _inverse(norms: Tensor) -> Tensor:
        return norms.reciprocal().nan_to_num_(0.0, 0.0, 0.0)

    def screen(self, rows: slice, cols: slice) -> Tensor:
        queries = (self.x[rows].double() * self.query_scale[rows, None]).to(self.dtype)
        if self.tame:
            scores = torch.mm(queries, self._columns(cols, self.dtype).T)
            return scores.mul_(self.scale[cols].to(self.dtype))
        unit = (self.weight[cols].double() * self.scale[cols, None]).to(self.dtype)
        return torch.mm(queries, unit.T)

    def bound(self, rows: slice, at: Tensor) -> Tensor:
        spread = self.spread[rows]
        return (spread if at.dim() == 1 else spread[:, None]).expand(at.shape)

    def _cosines(self, dots: Tensor, norms: Tensor, corpus_norms: Tensor) -> Tensor:
        product = norms * corpus_norms
        return torch.where(product > 0, dots / product, 0.0)

    def wide(self, rows: Tensor, cols: slice) -> tuple[Tensor, Tensor]:
        dots, error = self._wide_dots(rows, cols)
        positions = torch.arange(cols.start, cols.stop, device=self.device)
        corpus = sqrt(squared_norms(self.weight, positions))
        norms = self.norm.index_select(0, rows)[:, None]
        cosines = self._cosines(dots, norms, corpus)
        return cosines, self._cosines(error, norms, corpus) * 1.0001 + cosines.abs() * 2.0**-50

    def exact(self, rows: Tensor, columns: Tensor) -> Tensor:
        dots = pair_dots(self.x, rows, self.weight, columns)
        unique, place = torch.unique(columns, return_inverse=True)
        corpus = sqrt(squared_norms(self.weight, unique))[place]
        return self._cosines(dots, self.norm.index_select(0, rows)[:, None], corpus)


@default("topk_encode")
def _topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, screen: str
) -> tuple[Tensor, Tensor]:
    checks.topk_encode(x, weight, bias, k, screen)
    dtype = checks.result_dtype(x, weight, bias)
    problem = Encode(x, weight, bias, floor=0.0)
    finite = problem.weight_norm.isfinite().all()
    if bias is not None:
        finite = finite & bias.isfinite().all()
    problem.bad_rows = ~(problem.x_norm.isfinite() & finite)
    if bool(finite):
        scores, indices = certified_topk(problem, k)
    else:
        scores = torch.full((x.shape[0], k), NEVER, dtype=torch.float64, device=x.device)
        indices = torch.full((x.shape[0], k), -1, dtype=torch.int64, device=x.device)
    indices = _fill_lowest(indices)
    values = scores.clamp_(min=0.0).to(dtype)
    values[problem.bad_rows] = math.nan
    indices[problem.bad_rows] = torch.arange(k, device=x.device)
    return values, indices


def _fill_lowest(indices: Tensor) -> Tensor:
    """Replace the -1 at the end of each row [B,k] by the lowest latents that the row does not hold yet."""
    missing = (indices < 0).any(dim=1).nonzero().squeeze(1)
    if not missing.numel():
        return indices
    held = indices.index_select(0, missing)
    k = held.shape[1]
    # k latents, of which fewer than k are taken: the lowest free ones are all below k.
    taken = torch.zeros((held.shape[0], k + 1), dtype=torch.bool, device=held.device)
    taken.scatter_(1, held.where((held >= 0) & (held < k), k), True)
    free = torch.sort(taken[:, :k].to(torch.int8), dim=1, stable=True).indices
    count = (held >= 0).sum(dim=1, keepdim=True)
    slot = torch.arange(k, device=held.device) - count
    indices[missing] = torch.where(slot >= 0, free.gather(1, slot.clamp(min=0)), held)
    return indices


def finish_search(
    scores: Tensor, columns: Tensor, dtype: torch.dtype, search: Search
) -> tuple[Tensor, Tensor]:
    """Round scores once, drop what lies below ``min_score`` (compared after rounding), and shift ids."""
    rounded = scores.to(dtype)
    if search.min_score is not None:
        gone = ~(rounded.double() >= search.min_score)  # torch would round the minimum to the scores' dtype
        rounded, columns = rounded.masked_fill(gone, NEVER), columns.masked_fill(gone, -1)
    return rounded, torch.where(columns >= 0, columns + search.id_offset, -1)


def set_filters(problem: Problem, bad_columns: Tensor, search: Search) -> None:
    """Tell a problem which columns may not be returned: bool [N] bad ones, a mask, and excluded ids."""
    banned = bad_columns if search.mask is None else bad_columns | ~search.mask
    positions = banned.nonzero().squeeze(1)
    problem.banned = positions if positions.numel() else None
    exclude = search.exclude
    problem.exclude = None if exclude is None else torch.where(exclude >= 0, exclude - search.id_offset, -1)


@default("cosine_topk")
def _cosine_topk(queries: Tensor, corpus: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    search = Search(*options)
    checks.cosine_topk(queries, corpus, search)
    cosine = search.metric == "cosine"
    problem = Cosine(queries, corpus) if cosine else Encode(queries, corpus, None, NEVER)
    set_filters(problem, ~problem.weight_norm.isfinite(), search)
    scores, columns = certified_topk(problem, search.k)
    scores[problem.bad_rows], columns[problem.bad_rows] = NEVER, -1
    return finish_search(scores, columns, checks.result_dtype(queries, corpus), search)


@default("pair_scores")
def _pair_scores(queries: Tensor, corpus: Tensor, ids: Tensor, metric: str) -> Tensor:
    checks.pair_scores(queries, corpus, ids, metric)
    checks.positions_in_range(ids, corpus.shape[0], "ids", lowest=-1)
    none = ids < 0
    if not corpus.shape[0] or not ids.numel():
        return torch.full(ids.shape, NEVER, dtype=torch.float64, device=ids.device)
    rows = torch.arange(queries.shape[0], device=ids.device)
    columns = ids.clamp(min=0)
    scores = pair_dots(queries, rows, corpus, columns)
    if metric == "cosine":
        unique, place = torch.unique(columns, return_inverse=True)
        left = sqrt(squared_norms(queries, rows))[:, None]
        product = left * sqrt(squared_norms(corpus, unique))[place]
        scores = torch.where(product == 0, 0.0, scores / product)
    return scores.masked_fill_(none | ~scores.isfinite(), NEVER)

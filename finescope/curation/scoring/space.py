"""The space that scores are made in: a corpus as unit vectors, with its weights, its norms and its mean.

With weights w ≥ 0 a row x stands for x̂ = w∘x/‖w∘x‖. The weights are folded into the queries, so the corpus
is never rewritten, and everything is found in passes over its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BLOCK_ROWS,
    PANEL_BYTES,
    BoolArray,
    Codes,
    FloatArray,
    IntArray,
    PickedRows,
    add_at,
    iter_blocks,
    latents_of,
    panel_columns,
    product,
    reciprocal,
    row_access,
    rows_of,
    scaled_values,
    to_csr64,
    unit_rows,
    weighted_norms,
    with_values,
)
from finescope.curation.scoring.base import (
    Background,
    NothingSharedError,
    Pick,
    Scorer,
    Seen,
    SpaceScorer,
    folds_of,
)
from finescope.curation.scoring.weighting import document_frequency, idf_of, resolve_weights
from finescope.errors import InputError
from finescope.ops import sparse_products
from finescope.storage.spill import Spill

SPARSE_TARGETS, SPARSE = 64, 8
"""As many targets, and of their entries no more than every eighth: then what a row shares with them is looked
for, in place of multiplying it with all."""
_CHECKED = 1 << 20
BACKGROUND_ROWS = 1000
"""Rows that stand for the corpus at large where something is fitted."""


class Space:
    """N corpus rows over F latents as unit vectors.

    Norms and mean are found in one pass, when first asked for; a score needs one more, and one before for
    ``weights="idf"``. Memory beyond the corpus: a block and a panel of dense queries; of very many rows the
    norms lie on the disk.

    Attributes:
        corpus: the rows.
        num_latents: F.
        weights: float64 [F], or None for none.
    """

    def __init__(
        self,
        corpus: Codes,
        *,
        weights: Any = None,
        learned: Mapping[str, NDArray[Any]] | None = None,
        features: str = "latent",
        every_row: bool = False,
        block_rows: int = BLOCK_ROWS,
    ):
        """Look at the corpus and find its weights.

        Args:
            corpus: N rows over F latents: SparseCodes, or a store with ``iter_shards()``.
            weights: None or "none", "idf", or float [F].
            learned: what ``state`` returned for the same rows and weights, to be taken over.
            features: what a latent is called in messages.
            every_row: whether μ is the mean of all rows, as zero vectors where they are not valid.
            block_rows: rows worked on at a time; never changes a result.

        Raises:
            InputError: the corpus has no rows.
            ValueError: weights of the wrong shape, negative, or of an unknown name; shards of codes over
                different numbers of latents.
        """
        self.corpus = corpus
        self.block_rows = block_rows
        self._count = rows_of(corpus)
        if self._count == 0:
            raise InputError("the corpus holds no rows; embed a corpus first")
        self.num_latents = latents_of(corpus)
        learned = {} if learned is None else learned
        self._mean, self._frequency = learned.get("mean"), learned.get("frequency")
        if isinstance(weights, str) and weights == "idf":
            weights = learned["weights"] if "weights" in learned else idf_of(*self._counted())
        self.weights: FloatArray | None = resolve_weights(weights, corpus, self.num_latents)
        self._norms = Spill(self._count, np.float64)
        self._known = 0  # rows whose norm has been found: whichever pass comes first finds them
        self._features, self._every_row = features, every_row
        self._background: Background | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def frequency(self) -> IntArray:
        """Rows that hold each latent, int64 [F]."""
        return self._counted()[0] if self._frequency is None else self._frequency

    def _counted(self) -> tuple[IntArray, int]:
        self._frequency, rows = document_frequency(self.corpus)
        return self._frequency, rows

    def norms_of(self, start: int, block: SparseCodes) -> FloatArray:
        """Return ‖w∘x‖ of the block of rows that begins with row ``start``, float64 [n]."""
        rows = slice(start, start + len(block))
        if rows.stop > self._known:
            self._norms[rows] = weighted_norms(block, self.weights)
            self._known = rows.stop if start <= self._known else self._known
        return self._norms[rows]

    @property
    def valid(self) -> BoolArray:
        """bool [N], rows that have a latent of positive weight and only finite values."""
        return self.valid_in(slice(0, len(self)))

    def valid_in(self, rows: slice) -> BoolArray:
        """Return ``valid`` of rows that stand one after the other; after a pass without another."""
        if self._known < len(self):
            for start, block in iter_blocks(self.corpus, self.block_rows):
                self.norms_of(start, block)
        found = np.empty(rows.stop - rows.start, np.bool_)
        for low in range(rows.start, rows.stop, _CHECKED):
            part = slice(low, min(low + _CHECKED, rows.stop))
            found[part.start - rows.start : part.stop - rows.start] = _valid(self._norms[part])
        return found

    def valid_at(self, rows: IntArray) -> BoolArray:
        """Return ``valid`` of some rows, without a pass."""
        return _valid(weighted_norms(row_access(self.corpus).take(rows), self.weights))

    def background(self) -> Background:
        """Return ``BACKGROUND_ROWS`` rows drawn from all, without those that are not valid.

        The same ones each time, so every target set is held against them.
        """
        if self._background is None:
            count = min(len(self), BACKGROUND_ROWS)
            rows = np.sort(np.random.default_rng(0).choice(len(self), count, replace=False))
            picked = row_access(self.corpus).take(rows)
            picked = picked[np.flatnonzero(_valid(weighted_norms(picked, self.weights)))]
            self._background = Background(unit_rows(picked, self.weights), folds_of(picked))
        return self._background

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what has been found of the corpus: ``mean``, ``weights`` and ``frequency``, where known."""
        found = {"mean": self._mean, "weights": self.weights, "frequency": self._frequency}
        return {name: value for name, value in found.items() if value is not None}

    def corpus_mean(self) -> FloatArray:
        """Return μ, the mean x̂ over the valid rows (or over all, see the constructor), float64 [F]."""
        if self._mean is None:
            total, count = np.zeros(self.num_latents), 0
            for start, block in iter_blocks(self.corpus, self.block_rows):
                norms = self.norms_of(start, block)
                valid = _valid(norms)
                if not valid.all():  # their values are never multiplied: 0 × inf is NaN
                    block, norms = block[valid], norms[valid]
                add_at(total, block.indices.numpy(), scaled_values(block, reciprocal(norms)))
                count += len(block)
            if self.weights is not None:
                total *= self.weights
            self._mean = total / (len(self) if self._every_row else max(1, count))
        return self._mean

    def targets(self, codes: SparseCodes) -> Targets:
        """Bring targets into the space.

        Args:
            codes: T rows over the same F latents.

        Raises:
            InputError: no target, no target with a latent of positive weight, or a non-finite target.
            ValueError: another number of latents.
        """
        if codes.num_latents != self.num_latents:
            raise ValueError(
                f"targets have {codes.num_latents} latents and the corpus {self.num_latents}; "
                "both must come from the same SAE"
            )
        if len(codes) == 0:
            raise InputError("there are no targets; give at least one seed row")
        unit = to_csr64(codes)
        broken = np.flatnonzero(~np.isfinite(unit.data))
        if broken.size:
            row = int(np.searchsorted(unit.indptr, broken[0], side="right")) - 1
            raise InputError(f"target {row} holds a NaN or infinite value; its activations are broken")
        norms = weighted_norms(codes, self.weights)
        usable = np.flatnonzero(norms > 0)
        if usable.size == 0:
            raise NothingSharedError(
                f"no target has a {self._features} of positive weight, so nothing can be similar to one"
            )
        if self.weights is not None:
            unit.data = unit.data * self.weights[unit.indices]
        unit.data = unit.data * np.repeat(reciprocal(norms), np.diff(unit.indptr))
        return Targets(unit[usable], usable, norms[usable], len(codes), self.background)

    def addends(self, targets: Targets, rows: IntArray, scorer: SpaceScorer) -> Any:
        """Split the scores of some rows into one addend per latent.

        The addends are what the scorer itself says of the row, for most u_f·x̂_f with its direction u, so they
        sum to its score, up to float64 rounding.

        Args:
            targets: T targets.
            rows: int64 [S] row numbers.
            scorer: what gave the scores.

        Returns:
            scipy CSR float64 [S,F] of addends, latents ascending in a row. Rows that are not valid have none.
        """
        view, pick, found = View(self, targets, scorer.uses_mean), targets.everything, []
        mean = self.corpus_mean() if scorer.uses_mean else np.zeros(self.num_latents)
        picked = PickedRows(self.corpus, rows)
        for _, block in iter_blocks(picked, panel_columns(self.num_latents, self.block_rows)):
            seen = view.see(block, weighted_norms(block, self.weights))
            found.append(to_csr64(with_values(block, torch.from_numpy(scorer.addends(seen, pick, mean)))))
        return _stacked(found, self.num_latents)


@dataclass(frozen=True)
class Targets:
    """Targets as unit vectors of a space, U usable ones of T.

    Attributes:
        unit: scipy CSR float64 [U,F], t̂.
        usable: int64 [U], their positions: those that have a latent of positive weight.
        norms: float64 [U], ‖w∘t‖.
        count: T.
        background: see ``Space.background``.
    """

    unit: Any
    usable: IntArray
    norms: FloatArray
    count: int
    background: Callable[[], Background]

    def pick(self, positions: IntArray) -> Pick | None:
        """Return the usable ones among ``positions`` of T; None where there is none."""
        columns = np.flatnonzero(np.isin(self.usable, positions))
        if columns.size == 0:
            return None
        return Pick(columns, self.norms[columns], self.unit[columns], self.background)

    @cached_property
    def everything(self) -> Pick:
        """All of them."""
        return Pick(np.arange(self.usable.size), self.norms, self.unit, self.background)


def side_by_side(several: Sequence[Targets]) -> Targets:
    """Return the targets of several sets, all brought into the same space, as one set."""
    if len(several) == 1:
        return several[0]
    before = np.cumsum([0, *(targets.count for targets in several)])
    return Targets(
        _stacked([targets.unit for targets in several], several[0].unit.shape[1]),
        np.concatenate([targets.usable + first for targets, first in zip(several, before, strict=False)]),
        np.concatenate([targets.norms for targets in several]),
        int(before[-1]),
        several[0].background,
    )


@dataclass(frozen=True)
class View:
    """A space and the targets that its rows are compared with.

    Attributes:
        space: of the corpus.
        targets: in that space.
        with_mean: whether μ is wanted too.
        numbers: that a row gets, if it isn't compared with every target.
    """

    space: Space
    targets: Targets
    with_mean: bool
    numbers: int | None = None
    _made: dict[Scorer, Any] = field(default_factory=dict, init=False, compare=False)

    @property
    def columns(self) -> int:
        """Numbers that a row gets."""
        return self.targets.usable.size if self.numbers is None else self.numbers

    def see(self, block: SparseCodes, norms: FloatArray) -> Seen:
        """Return what a scorer sees of a block of rows with the given norms."""
        mean = self.space.corpus_mean() if self.with_mean else None
        return Seen(
            _valid(norms), block, norms, self.space.weights, mean, partial(self._products, block), self._made
        )

    def _products(self, block: SparseCodes) -> FloatArray:
        """Return ⟨w∘t̂, x⟩ of every target, float64 [U,n]."""
        if self._sparse:
            return sparse_products(self._queries, block).numpy()
        found = np.empty((self.targets.usable.size, len(block)))
        for first, panel in self._panels():
            found[first : first + panel.shape[1]] = product(block, panel).T
        return found

    @property
    def _sparse(self) -> bool:
        """Whether the targets hold so little that it is worth looking for what they share with a row."""
        unit = self.targets.unit
        few = unit.nnz * SPARSE < unit.shape[0] * unit.shape[1]
        return bool(few) and unit.shape[0] >= SPARSE_TARGETS

    @cached_property
    def _queries(self) -> SparseCodes:
        """w∘t̂ of the targets, [U,F]."""
        unit, weights = self.targets.unit, self.space.weights
        values = unit.data if weights is None else unit.data * weights[unit.indices]
        bounds = torch.from_numpy(unit.indptr.astype(np.int64))
        return SparseCodes(
            bounds, torch.from_numpy(unit.indices), torch.from_numpy(values), unit.shape[1], check=False
        )

    def _panels(self) -> Iterator[tuple[int, FloatArray]]:
        """The dense queries, [F, ≤ U], and the place of the first: kept where they fit."""
        count = self.targets.usable.size
        if count * self.space.num_latents * 8 <= PANEL_BYTES:
            yield 0, self._panel
            return
        step = panel_columns(self.space.num_latents, count)
        for first in range(0, count, step):
            yield first, self._dense(first, min(first + step, count))

    @cached_property
    def _panel(self) -> FloatArray:
        return self._dense(0, self.targets.usable.size)

    def _dense(self, low: int, high: int) -> FloatArray:
        queries = self.targets.unit[low:high].toarray()
        if self.space.weights is not None:
            queries *= self.space.weights
        return np.ascontiguousarray(queries.T)


def _valid(norms: FloatArray) -> BoolArray:
    return np.asarray(np.isfinite(norms) & (norms > 0))


def _stacked(parts: list[Any], width: int) -> Any:
    from scipy.sparse import csr_matrix, vstack

    if not parts:
        return csr_matrix((0, width))
    return parts[0] if len(parts) == 1 else vstack(parts, format="csr")

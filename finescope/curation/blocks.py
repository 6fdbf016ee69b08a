"""Streaming access to document codes: float64 CSR blocks of bounded size, whatever the codes are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from finescope.codes import SparseCodes
from finescope.errors import InputError

BLOCK_ROWS = 8192
"""Rows turned into float64 at a time."""
PANEL_BYTES = 64 << 20
"""Upper size of a dense float64 [F, columns] panel."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@runtime_checkable
class CodeShards(Protocol):
    """Anything that yields its rows as consecutive SparseCodes, in row order, as often as asked.

    A shard is SparseCodes, or a pair (first row, SparseCodes) as ``CodeStore`` yields them.
    """

    def iter_shards(self) -> Iterable[Any]:
        """Yield the shards."""
        ...


Codes: TypeAlias = "SparseCodes | CodeShards"
"""What every function of this package takes as a corpus."""


def iter_shard_codes(codes: Codes) -> Iterator[SparseCodes]:
    """Yield the rows of ``codes`` as SparseCodes, shard by shard.

    Raises:
        TypeError: ``codes`` is neither SparseCodes nor has ``iter_shards``.
    """
    if isinstance(codes, SparseCodes):
        yield codes
        return
    if not isinstance(codes, CodeShards):
        raise TypeError(f"codes must be SparseCodes or have iter_shards(), got {type(codes).__name__}")
    for shard in codes.iter_shards():
        # The order says already where a shard starts.
        yield shard[-1] if isinstance(shard, tuple) else shard


def iter_blocks(codes: Codes, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Any]]:
    """Yield (first row, float64 CSR matrix [≤ rows, F]) over all rows of ``codes`` in order.

    Only one block is held in float64 at a time. No result of this package depends on where blocks or shards
    end.
    """
    start = 0
    for shard in iter_shard_codes(codes):
        for low in range(0, len(shard), rows):
            block = shard[low : low + rows]
            yield start + low, to_csr64(block)
        start += len(shard)


def to_csr64(codes: SparseCodes) -> Any:
    """Return ``codes`` as a scipy CSR matrix [N,F] in float64 (exact for 16- and 32-bit values)."""
    from scipy.sparse import csr_matrix

    wide = np.int64 if codes.nnz > np.iinfo(np.int32).max else np.int32
    return csr_matrix(
        (
            codes.values.to(torch.float64).numpy(),
            codes.indices.numpy().astype(wide),
            codes.indptr.numpy().astype(wide),
        ),
        shape=codes.shape,
    )


class CodeRows:
    """Access by row to codes in shards, which stay where they are (memory-mapped, for a store)."""

    def __init__(self, codes: Codes):
        """Look at every shard's length.

        Args:
            codes: N rows over F latents.

        Raises:
            InputError: there is no shard, so not even F is known.
        """
        self._parts = list(iter_shard_codes(codes))
        if not self._parts:
            raise InputError("there are no codes; embed a corpus first")
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.num_latents = self._parts[0].num_latents

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, rows: IntArray) -> SparseCodes:
        """Return some rows as SparseCodes, in the order asked for (repeats allowed)."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(self._parts) == 1:
            return self._parts[0][rows]
        owner = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(owner, kind="stable")
        found = []
        for number in np.unique(owner):
            part = self._parts[number]
            found.append(part[rows[owner == number] - (int(self._ends[number]) - len(part))])
        if not found:
            return self._parts[0][rows]
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return SparseCodes.cat(found)[place]


def resident_codes(codes: Codes) -> SparseCodes:
    """Return all rows as one SparseCodes; several shards are copied into memory."""
    parts = list(iter_shard_codes(codes))
    if not parts:
        raise InputError("there are no codes; embed a corpus first")
    return parts[0] if len(parts) == 1 else SparseCodes.cat(parts)


def weighted_norms(block: Any, squared_weights: FloatArray | None) -> FloatArray:
    """Return ‖w∘c‖ of every row of a CSR block, float64, summed in ascending order of latents.

    Args:
        block: scipy CSR [n,F].
        squared_weights: w² as float64 [F]; None means all ones.
    """
    squares = block.copy()
    squares.data = squares.data * squares.data
    ones = np.ones(block.shape[1]) if squared_weights is None else squared_weights
    # A CSR matrix-vector product adds along each row in storage order: same bytes on every machine.
    return np.asarray(np.sqrt(squares @ ones), dtype=np.float64)


def scale_rows(block: Any, factors: FloatArray) -> Any:
    """Return a CSR block with row i multiplied by ``factors[i]``."""
    scaled = block.copy()
    scaled.data = scaled.data * np.repeat(factors, np.diff(scaled.indptr))
    return scaled


def reciprocal(norms: FloatArray) -> FloatArray:
    """Return 1/norm, and 0 where the norm is 0, so that a zero vector has cosine 0 with everything."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def unit_rows(codes: SparseCodes, weights: FloatArray | None = None) -> Any:
    """Return w∘c/‖w∘c‖ for every row, as float64 CSR [N,F]; zero rows stay zero."""
    block = to_csr64(codes)
    if weights is not None:
        block.data = block.data * weights[block.indices]
    return scale_rows(block, reciprocal(weighted_norms(block, None)))


def add_rows(total: FloatArray, block: Any) -> None:
    """Add all rows of a CSR block to ``total`` [F], one entry after the other.

    ``np.add.at`` runs strictly in order, so the sum does not depend on how the rows were split into blocks.
    """
    np.add.at(total, block.indices, block.data)


def panel_columns(num_latents: int, wanted: int) -> int:
    """Return how many of ``wanted`` dense columns of length F fit into one panel (at least 1)."""
    return max(1, min(wanted, PANEL_BYTES // (8 * max(1, num_latents))))

"""Codes as they are read here: blocks in row order for a pass, or single rows on demand; never all at once.

Blocks start at multiples of their length, wherever the shards of a store end, so that no result of this
package can depend on how the rows are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cached_property
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from finescope.codes import SparseCodes
from finescope.errors import InputError
from finescope.ops import sparse_matmul

BLOCK_ROWS = 8192
"""Rows worked on at a time."""
PANEL_BYTES = 64 << 20
"""Upper size of a dense float64 [F, columns] panel."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@runtime_checkable
class CodeShards(Protocol):
    """Anything that yields its rows as consecutive SparseCodes, in row order, as often as asked.

    A shard is SparseCodes, or a pair (first row, SparseCodes) as ``CodeStore`` yields them. Where there is a
    ``stream()`` too, a pass takes that: it gives pages back that have been used.
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
        ValueError: shards with different numbers of latents.
    """
    if isinstance(codes, SparseCodes):
        yield codes
        return
    if not isinstance(codes, CodeShards):
        raise TypeError(f"codes must be SparseCodes or have iter_shards(), got {type(codes).__name__}")
    yield from _parts(codes.iter_shards())


def _parts(shards: Iterable[Any]) -> Iterator[SparseCodes]:
    width: int | None = None
    for shard in shards:
        # The order says already where a shard starts.
        part: SparseCodes = shard[-1] if isinstance(shard, tuple) else shard
        width = part.num_latents if width is None else width
        if part.num_latents != width:
            raise ValueError(
                f"shards of codes have different numbers of latents: {width}, {part.num_latents}"
            )
        yield part


def iter_blocks(codes: Codes, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, SparseCodes]]:
    """Yield (first row, SparseCodes [≤ rows, F]) over all rows of ``codes`` in order.

    Every block but the last has exactly ``rows`` rows, across the ends of shards too.

    Raises:
        TypeError, ValueError: as ``iter_shard_codes``.
    """
    stream = getattr(codes, "stream", None)
    start, held, kept = 0, 0, list[SparseCodes]()
    for shard in iter_shard_codes(codes) if stream is None else _parts(stream()):
        low = 0
        while low < len(shard):
            part = shard[low : low + rows - held]
            kept.append(part)
            held, low = held + len(part), low + len(part)
            if held == rows:
                yield start, _joined(kept)
                start, held, kept = start + rows, 0, []
    if held:
        yield start, _joined(kept)


def _joined(parts: list[SparseCodes]) -> SparseCodes:
    return parts[0] if len(parts) == 1 else SparseCodes.cat(parts)


def latents_of(codes: Codes) -> int:
    """Return F.

    Raises:
        InputError: there is no shard, so F is not known.
        TypeError, ValueError: as ``iter_shard_codes``.
    """
    known = getattr(codes, "num_latents", None)
    if known is not None:
        return int(known)
    widths = {shard.num_latents for shard in iter_shard_codes(codes)}
    if not widths:
        raise InputError("there are no codes; embed a corpus first")
    return widths.pop()


def rows_of(codes: Codes) -> int:
    """Return N."""
    if isinstance(codes, Sized):
        return len(codes)
    return sum(len(shard) for shard in iter_shard_codes(codes))


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


class PickedRows:
    """Some rows of codes, in the order asked for, read as they are needed."""

    def __init__(self, codes: Codes, rows: IntArray):
        """Choose int64 rows [R] of ``codes`` (repeats allowed)."""
        self._source: RowAccess = row_access(codes)
        self._rows = np.asarray(rows, dtype=np.int64)
        self.num_latents: int = self._source.num_latents

    def __len__(self) -> int:
        return int(self._rows.size)

    def take(self, rows: IntArray) -> SparseCodes:
        """Return some of the chosen rows, by their place among them."""
        return self._source.take(self._rows[rows])

    def iter_shards(self) -> Iterator[SparseCodes]:
        """Yield the rows, a block at a time."""
        for low in range(0, len(self), BLOCK_ROWS):
            yield self._source.take(self._rows[low : low + BLOCK_ROWS])


class MappedCodes:
    """Codes seen through a change of their values, made block by block as they are read."""

    def __init__(self, base: Codes, change: Callable[[SparseCodes], SparseCodes]):
        """Wrap ``base``, N rows over F latents; ``change`` gives as many rows over as many latents."""
        self.base, self.change = base, change
        self.num_latents = latents_of(base)

    def __len__(self) -> int:
        return rows_of(self.base)

    def take(self, rows: IntArray) -> SparseCodes:
        """Return some rows, changed."""
        return self.change(self._source.take(rows))

    def iter_shards(self) -> Iterator[SparseCodes]:
        """Yield changed blocks, in row order."""
        for _, block in iter_blocks(self.base):
            yield self.change(block)

    @cached_property
    def _source(self) -> RowAccess:
        return row_access(self.base)


class RowAccess(Protocol):
    """What gives single rows."""

    num_latents: int

    def take(self, rows: IntArray) -> SparseCodes:
        """Return some rows, in the order asked for (repeats allowed)."""
        ...


def row_access(codes: Codes) -> RowAccess:
    """Return something that takes single rows of ``codes``.

    Raises:
        InputError: there is no shard.
    """
    return cast(RowAccess, codes) if hasattr(codes, "take") else CodeRows(codes)


def with_values(codes: SparseCodes, values: torch.Tensor) -> SparseCodes:
    """Return codes with the same latents and other values [nnz]."""
    return SparseCodes(codes.indptr, codes.indices, values, codes.num_latents, check=False)


def values64(codes: SparseCodes) -> FloatArray:
    """Return the values of codes in float64, [nnz].

    By NumPy, in this thread: a block is small, and waking others takes longer than the work.
    """
    values = codes.values.detach()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy(), np.float64)


def to_csr64(codes: SparseCodes) -> Any:
    """Return ``codes`` as a scipy CSR matrix [N,F] in float64 (exact for 16- and 32-bit values)."""
    from scipy.sparse import csr_matrix

    wide = np.int64 if codes.nnz > np.iinfo(np.int32).max else np.int32
    return csr_matrix(
        (
            values64(codes),
            codes.indices.numpy().astype(wide),
            codes.indptr.numpy().astype(wide),
        ),
        shape=codes.shape,
    )


def product(codes: SparseCodes, panel: FloatArray) -> FloatArray:
    """Return codes @ panel, float64 [N,C], the entries of a row added one after the other.

    Args:
        codes: N rows over F latents.
        panel: float64 [F,C].
    """
    return sparse_matmul(codes, torch.from_numpy(panel)).numpy()


def weighted_norms(block: SparseCodes, weights: FloatArray | None) -> FloatArray:
    """Return ‖w∘c‖ of every row, float64 [n], summed in ascending order of latents.

    Args:
        block: n rows over F latents.
        weights: w as float64 [F]; None means all ones.
    """
    held = block.values.detach()
    # The square of a float16 has 22 bits and an exponent that float32 holds: exact, in half the bytes.
    half = held.dtype == torch.float16
    squares = with_values(
        block, held.float().square_() if half else torch.from_numpy(np.square(values64(block)))
    )
    factors = np.ones(block.num_latents) if weights is None else weights * weights
    return np.asarray(np.sqrt(product(squares, factors[:, None])[:, 0]))


def scaled_values(block: SparseCodes, factors: FloatArray) -> FloatArray:
    """Return the values of a block with those of row i multiplied by ``factors[i]``, float64 [nnz]."""
    return values64(block) * np.repeat(factors, np.diff(block.indptr.numpy()))


def reciprocal(norms: FloatArray) -> FloatArray:
    """Return 1/norm, and 0 where the norm is 0, so that a zero vector has cosine 0 with everything."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)


def unit_rows(codes: SparseCodes, weights: FloatArray | None = None) -> Any:
    """Return w∘c/‖w∘c‖ for every row, as float64 CSR [N,F]; zero rows stay zero."""
    unit = to_csr64(codes)
    if weights is not None:
        unit.data = unit.data * weights[unit.indices]
    unit.data = unit.data * np.repeat(reciprocal(weighted_norms(codes, weights)), np.diff(unit.indptr))
    return unit


def add_at(total: FloatArray, places: NDArray[Any], values: FloatArray) -> None:
    """Add ``values`` to ``total`` at ``places``, one after the other in their order.

    So the sum does not depend on how the values were split into calls.
    """
    np.add.at(total, places.astype(np.intp, copy=False), values)  # casting narrow places itself, it is slower


def panel_columns(num_latents: int, wanted: int) -> int:
    """Return how many of ``wanted`` dense columns of length F fit into one panel (at least 1)."""
    return max(1, min(wanted, PANEL_BYTES // (8 * max(1, num_latents))))

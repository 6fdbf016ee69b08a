"""Exact search over a corpus that may be larger than memory: one pass over blocks, one exact merge."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks, cosine_topk, pair_scores, sparse_cosine_topk, sparse_pair_scores
from finescope.ops.engine import NEVER, ordered
from finescope.ops.packed import PackedCache
from finescope.ops.schemas import call

# What is read from a file at a time.
_BLOCK_BYTES = 64 << 20

Rows = Tensor | np.ndarray[Any, Any] | SparseCodes


class Index:
    """The rows of a corpus, searched exactly by cosine similarity or inner product.

    Arrays and tensors in memory are shared, not copied, and must not change while they are indexed: from the
    second search on, a packed copy of about a quarter of their float32 size is what is looked at first.
    Memory-mapped arrays are read block by block in every search, so the corpus may be larger than memory.
    Results do not depend on how the rows were split into blocks.
    """

    def __init__(self, corpus: Rows, *, metric: str = "cosine", ids: Any = None) -> None:
        """Index a first block of rows; ``add`` takes more.

        Args:
            corpus: [N,D], a tensor (float16, bfloat16, float32, float64), an array or memory-mapped array
                (float16, float32, float64), or N sparse codes.
            metric: "cosine" or "ip" (inner product).
            ids: whole numbers [N], 0 or more and distinct, what a search returns for each row; the positions
                0 … N-1 if None.

        Raises:
            ValueError: not two-dimensional, an unknown metric, ids that repeat, are negative or do not fit.
            TypeError: a dtype or object that can't be searched, ids that aren't whole numbers.
        """
        checks.option(metric, "metric", checks.METRICS)
        self.metric = metric
        self._parts: list[Rows] = []
        self._packed: dict[int, PackedCache] = {}
        self._starts: list[int] = [0]
        self._ids: Tensor | None = None
        self._named = ids is not None
        self.add(corpus, ids=ids)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def width(self) -> int:
        """D of dense rows, F of sparse codes."""
        part = self._parts[0]
        return part.num_latents if isinstance(part, SparseCodes) else int(part.shape[1])

    def __repr__(self) -> str:
        kind = "sparse" if isinstance(self._parts[0], SparseCodes) else "dense"
        return f"Index({kind}, N={len(self)}, width={self.width}, metric={self.metric!r})"

    def add(self, block: Rows, *, ids: Any = None) -> None:
        """Append rows of the same kind and width; the positions go on from the last.

        Args:
            block: like ``corpus``.
            ids: int64 [rows of the block], if and only if the index has ids.

        Raises:
            ValueError: another width, ids that repeat, are negative, do not fit, or are missing.
            TypeError: another kind of rows, ids that aren't whole numbers.
        """
        part = _as_rows(block)
        if self._parts:
            if isinstance(part, SparseCodes) != isinstance(self._parts[0], SparseCodes):
                held = type(self._parts[0]).__name__
                raise TypeError(f"the index holds {held} rows, got {type(block).__name__}")
            width = part.num_latents if isinstance(part, SparseCodes) else part.shape[1]
            if width != self.width:
                raise ValueError(f"the index has width {self.width}, got a block of width {width}")
        if self._named != (ids is not None):
            raise ValueError("give ids for every block or for none")
        count = len(part)
        if ids is not None:
            named = _as_ids(ids)
            if named.shape[0] != count:
                raise ValueError(f"ids must have shape [N] with N={count}, got {list(named.shape)}")
            if named.numel() and int(named.min()) < 0:
                raise ValueError(f"ids must not be negative (-1 means no result), got {int(named.min())}")
            together = named if self._ids is None else torch.cat([self._ids, named])
            if torch.unique(together).shape[0] != together.shape[0]:
                raise ValueError("ids must be distinct")
            self._ids = together
        self._parts.append(part)
        self._starts.append(self._starts[-1] + count)

    def search(
        self,
        queries: Tensor | np.ndarray[Any, Any] | SparseCodes,
        k: int,
        *,
        min_score: float | None = None,
        exclude: Tensor | np.ndarray[Any, Any] | None = None,
        mask: Tensor | np.ndarray[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the k most similar rows of each query, best first; ties go to the earlier row.

        Args:
            queries: [Q,D], or Q sparse codes.
            k: neighbours, 0 or more; more than N pads.
            min_score: drop results whose returned (rounded) score is below this.
            exclude: ids [Q,E], int64, never returned for that query; -1 stands for none.
            mask: [N], bool, True where a row may be returned, by position.

        Returns:
            scores [Q,k], float32 (float64 if any row or query is), and ids [Q,k], int64; -inf and -1 where
            there are fewer than k results.

        Raises:
            ValueError: shapes that do not fit, a negative k.
            TypeError: sparse queries for dense rows or the reverse, wrong dtypes.
        """
        sparse = isinstance(self._parts[0], SparseCodes)
        if isinstance(queries, SparseCodes) != sparse:
            kind = "SparseCodes" if sparse else "a tensor or an array"
            raise TypeError(f"queries must be {kind} like the index, got {type(queries).__name__}")
        if isinstance(queries, np.ndarray):
            queries = torch.from_numpy(_native(queries))
        exclude, mask = _as_tensor(exclude), _as_tensor(mask)
        if mask is not None and tuple(mask.shape) != (len(self),):
            raise ValueError(f"mask must have shape [N] with N={len(self)}, got {list(mask.shape)}")
        exclude = self._positions(exclude)
        scores, found = self._search(queries, k, exclude, mask)
        if min_score is not None:
            gone = ~(scores.double() >= min_score)
            scores, found = scores.masked_fill(gone, NEVER), found.masked_fill(gone, -1)
        if self._ids is None:
            return scores, found
        named = self._ids.to(found.device)
        return scores, torch.where(found >= 0, named[found.clamp(min=0)], -1) if len(named) else found

    def _search(
        self, queries: Any, k: int, exclude: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sparse = isinstance(queries, SparseCodes)
        search: Any = sparse_cosine_topk if sparse else cosine_topk
        rescore: Any = sparse_pair_scores if sparse else pair_scores
        dtype, best, found = None, None, None
        for start, block, more in self._blocks():
            allowed = None if mask is None else mask[start : start + len(block)]
            packed = self._pack(start, block)
            if packed is not None and isinstance(block, Tensor):
                checks.cosine_topk(queries, block, k, self.metric, "auto", exclude, allowed, start)
                args = (k, self.metric, None, exclude, allowed, start)
                scores, ids = call("cosine_topk_packed", queries, block, packed, *args)
            else:
                scores, ids = search(
                    queries, block, k, metric=self.metric, exclude=exclude, mask=allowed, id_offset=start
                )
            dtype = scores.dtype if dtype is None else torch.promote_types(dtype, scores.dtype)
            if best is None and not more:
                return scores, ids
            # Rounded scores of different blocks may tie where the true ones do not, so merge by the latter.
            wide = rescore(queries, block, torch.where(ids >= 0, ids - start, -1), metric=self.metric)
            if best is not None and found is not None:
                wide, ids = ordered(torch.cat([best, wide], dim=1), torch.cat([found, ids], dim=1), k)
            best, found = wide, ids
        if best is None or found is None:
            raise RuntimeError("an index without blocks")
        return best.to(dtype), found

    def _pack(self, start: int, block: Tensor | SparseCodes) -> Tensor | None:
        """The packed copy of a part in memory; blocks of memory-mapped parts are read anew every time."""
        part = self._parts[bisect_right(self._starts, start, hi=len(self._parts)) - 1]
        if block is not part or not isinstance(block, Tensor):
            return None
        return self._packed.setdefault(start, PackedCache()).get(block, self.metric)

    def _blocks(self) -> Iterator[tuple[int, Tensor | SparseCodes, bool]]:
        """First position, rows, and whether more blocks follow."""
        last = len(self._parts) - 1
        for number, (start, part) in enumerate(zip(self._starts, self._parts, strict=False)):
            if not isinstance(part, np.ndarray):
                yield start, part, number < last
                continue
            tall = max(1, _BLOCK_BYTES // max(1, part.itemsize * part.shape[1]))
            for first in range(0, max(1, len(part)), tall):
                rows = torch.from_numpy(_native(part[first : first + tall]))
                yield start + first, rows, number < last or first + tall < len(part)

    def _positions(self, exclude: Tensor | None) -> Tensor | None:
        """Turn ids to exclude into positions; ids that the index lacks become -1."""
        if exclude is None or self._ids is None or exclude.dtype != torch.int64:
            return exclude  # the operation refuses other dtypes
        if not len(self._ids):
            return torch.full_like(exclude, -1)
        named, order = torch.sort(self._ids.to(exclude.device))
        place = torch.searchsorted(named, exclude.contiguous()).clamp(max=len(named) - 1)
        return torch.where((named[place] == exclude) & (exclude >= 0), order[place], -1)


def _as_tensor(given: Tensor | np.ndarray[Any, Any] | None) -> Tensor | None:
    return torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given


def _as_ids(ids: Any) -> Tensor:
    given = ids.detach().cpu() if isinstance(ids, Tensor) else torch.as_tensor(np.asarray(ids))
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TypeError(f"ids must be whole numbers, got {given.dtype}")
    return given.to(torch.int64).reshape(-1)


def _native(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A writable copy in memory, in this machine's byte order."""
    return np.array(rows, dtype=rows.dtype.newbyteorder("="), order="C")


def _as_rows(block: Rows) -> Rows:
    if isinstance(block, SparseCodes):
        return block
    if isinstance(block, np.ndarray):
        if block.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise TypeError(f"corpus must be float16, float32 or float64, got {block.dtype}")
        if block.ndim == 2:
            plain = block.dtype.isnative and block.flags.writeable and min(block.strides) > 0
            return torch.from_numpy(block) if plain and not isinstance(block, np.memmap) else block
    elif not isinstance(block, Tensor):
        raise TypeError(f"corpus must be a tensor, an array or SparseCodes, got {type(block).__name__}")
    elif not block.is_floating_point():
        raise TypeError(f"corpus must be floating point, got {block.dtype}")
    if block.ndim != 2:
        raise ValueError(f"corpus must have shape [N, D], got {list(block.shape)}")
    return block

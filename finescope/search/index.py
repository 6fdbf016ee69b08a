"""Exact search over a corpus that may be larger than memory: one pass over blocks, one exact merge."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks, cosine_topk, pair_scores, sparse_cosine_topk, sparse_pair_scores
from finescope.ops.engine import NEVER, ordered
from finescope.ops.packed import PackedCache
from finescope.ops.packed_sparse import PackedCodes
from finescope.ops.schemas import call
from finescope.search import file as indexfile
from finescope.search.blocked import PACKED_BYTES, READ_BYTES, BlockedRows, native
from finescope.search.rows import (
    Part,
    Rows,
    as_codes,
    as_device,
    as_ids,
    as_part,
    as_tensor,
    is_sparse,
    sparse_matrix,
    stacked,
    width_of,
)
from finescope.search.streaming import DEFAULT_MEMORY, part_device, stream
from finescope.storage.files import PathLike

_SPARSE = ("indptr", "indices", "values")


class Index:
    """The rows of a corpus, searched exactly by cosine similarity or inner product.

    Arrays and tensors in memory are shared, not copied, and must not change while they are indexed: from the
    second search on, a packed copy of about a quarter of their float32 size is what is looked at first.
    Memory-mapped arrays and a ``CodeStore`` are read block by block in every search, ahead of their use, and
    their memory is given back, so the corpus may be larger than memory. After ``pack``, or loaded from a file
    that ``save`` wrote, only the packed copies of arrays are read in full. With ``device``, rows in memory or
    in files are searched on that device: every search brings them there block by block, reading,
    copying and computing at once. Results do not depend on how the rows were split into blocks, nor on the
    device.
    """

    def __init__(
        self,
        corpus: Rows,
        *,
        metric: str = "cosine",
        ids: Any = None,
        device: torch.device | str | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        """Index a first block of rows; ``add`` takes more.

        Args:
            corpus: [N,D], a tensor (float16, bfloat16, float32, float64), an array or memory-mapped array
                (float16, float32, float64), or N sparse codes: SparseCodes, a ``CodeStore``, a sparse matrix
                of torch or scipy, or a list of N tensors (which are copied).
            metric: "cosine" or "ip" (inner product).
            ids: whole numbers [N], 0 or more and distinct, what a search returns for each row; the positions
                0 … N-1 if None.
            device: "cuda", "cuda:1" or "cpu": where the rows are searched, wherever they and the queries lie.
                None searches rows where they lie; queries must lie there too.
            memory: with ``device``, bytes of that device that blocks on their way may take; searching one
                takes about as much again. The same of pinned memory is taken on the host, each third of it
                rounded up to a power of two, and kept by torch for the next search.

        Raises:
            ValueError: not two-dimensional, an unknown metric, no such device, ids that repeat, are negative
                or do not fit.
            TypeError: a dtype or object that can't be searched, ids that aren't whole numbers.
        """
        checks.option(metric, "metric", checks.METRICS)
        self.metric = metric
        self._place(device, memory)
        self._parts: list[Part] = []
        self._packed: dict[int, PackedCache] = {}
        self._turned: dict[int, PackedCodes | None] = {}
        self._starts: list[int] = [0]
        self._ids: Tensor | None = None
        self._named = ids is not None
        self.add(corpus, ids=ids)

    def _place(self, device: torch.device | str | None, memory: int) -> None:
        if memory < 1:
            raise ValueError(f"memory must be a positive number of bytes, got {memory}")
        self.device = None if device is None else as_device(device)
        self.memory = memory
        self._ids_at: dict[torch.device, Tensor] = {}  # copies on other devices, so that searches need none

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def width(self) -> int:
        """D of dense rows, F of sparse codes."""
        return width_of(self._parts[0])

    def __repr__(self) -> str:
        kind = "sparse" if is_sparse(self._parts[0]) else "dense"
        return f"Index({kind}, N={len(self)}, width={self.width}, metric={self.metric!r})"

    def add(self, block: Rows, *, ids: Any = None) -> None:
        """Append rows of the same kind and width; the positions go on from the last.

        Args:
            block: like ``corpus``.
            ids: int64 [rows of the block], if and only if the index has ids.

        Raises:
            ValueError: another width, rows on a third device, ids that repeat, are negative, do not fit, or
                are missing.
            TypeError: another kind of rows, ids that aren't whole numbers.
        """
        part = as_part(block)
        if self.device is not None and part_device(part) not in (torch.device("cpu"), self.device):
            raise ValueError(
                f"rows must lie on the CPU or on the index's device {self.device}, got {part_device(part)}"
            )
        if self._parts:
            if is_sparse(part) != is_sparse(self._parts[0]):
                held = type(self._parts[0]).__name__
                raise TypeError(f"the index holds {held} rows, got {type(block).__name__}")
            if width_of(part) != self.width:
                raise ValueError(f"the index has width {self.width}, got a block of width {width_of(part)}")
        if self._named != (ids is not None):
            raise ValueError("give ids for every block or for none")
        count = len(part)
        if ids is not None:
            named = as_ids(ids)
            if named.shape[0] != count:
                raise ValueError(f"ids must have shape [N] with N={count}, got {list(named.shape)}")
            if named.numel() and int(named.min()) < 0:
                raise ValueError(f"ids must not be negative (-1 means no result), got {int(named.min())}")
            together = named if self._ids is None else torch.cat([self._ids, named])
            if torch.unique(together).shape[0] != together.shape[0]:
                raise ValueError("ids must be distinct")
            self._ids, self._ids_at = together, {}
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
            queries: [Q,D], or Q sparse codes or rows of a sparse matrix, or a list of Q tensors.
            k: neighbours, 0 or more; more than N pads.
            min_score: drop results whose returned (rounded) score is below this.
            exclude: ids [Q,E], int64, never returned for that query; -1 stands for none.
            mask: [N], bool, True where a row may be returned, by position.

        Returns:
            scores [Q,k], float32 (float64 if any row or query is), and ids [Q,k], int64; -inf and -1 where
            there are fewer than k results. They lie where the queries do, arrays' on the CPU.

        Raises:
            ValueError: shapes that do not fit, a negative k; with ``device``, a row larger than a third of
                ``memory``.
            RuntimeError: rows could not be read.
            torch.OutOfMemoryError: the device has no room for ``memory``.
            TypeError: sparse queries for dense rows or the reverse, wrong dtypes.
        """
        sparse = is_sparse(self._parts[0])
        queries = stacked(queries)
        if sparse_matrix(queries):
            queries = as_codes(queries)
        if isinstance(queries, SparseCodes) != sparse:
            kind = "SparseCodes" if sparse else "a tensor or an array"
            raise TypeError(f"queries must be {kind} like the index, got {type(queries).__name__}")
        if isinstance(queries, np.ndarray):
            queries = torch.from_numpy(native(queries))
        asked_on = part_device(queries)
        exclude, mask = as_tensor(exclude, asked_on), as_tensor(mask, asked_on)
        if mask is not None and tuple(mask.shape) != (len(self),):
            raise ValueError(f"mask must have shape [N] with N={len(self)}, got {list(mask.shape)}")
        exclude = self._positions(exclude)
        if self.device is not None:
            queries = queries.to(self.device)
            exclude, mask = (None if given is None else given.to(self.device) for given in (exclude, mask))
        with closing(self._blocks(len(queries), k)) as blocks:
            scores, found = self._search(blocks, queries, k, exclude, mask)
        scores, found = scores.to(asked_on), found.to(asked_on)
        if min_score is not None:
            gone = ~(scores.double() >= min_score)
            scores, found = scores.masked_fill(gone, NEVER), found.masked_fill(gone, -1)
        if self._ids is None:
            return scores, found
        named = self._ids_on(found.device)
        return scores, torch.where(found >= 0, named[found.clamp(min=0)], -1) if len(named) else found

    def pack(self) -> None:
        """Make the packed copies of rows in memory now, rather than when they are searched a second time.

        Memory-mapped rows, which are never packed unasked, are read once; their packed copies are kept in
        memory where they spare enough of reading the rows. To have them in a file, see ``save``. Packed rows
        must not change any more.
        """
        for number, (start, part) in enumerate(zip(self._starts, self._parts, strict=False)):
            if isinstance(part, BlockedRows):
                part.keep_packed(self.metric)
            elif isinstance(part, Tensor):
                self._packed.setdefault(start, PackedCache(constant=True)).pack(part, self.metric)
            elif isinstance(part, SparseCodes) and self._turned.get(number) is None:
                self._turned[number] = PackedCodes(part)

    def save(self, path: PathLike, *, packed: bool = True) -> None:
        """Write the index to one file, under a temporary name, then rename.

        The file holds the rows as they were given (float16, bfloat16, float32 or float64), the ids, and the
        packed copies. Memory holds a block at a time, so this also turns a memory-mapped array into an index
        that is searched by reading about a quarter of it.

        Args:
            path: the file. What it held is replaced; an index that was loaded from it stays whole.
            packed: whether to write packed copies. They are made for this machine's instruction set; another
                machine may have to read the rows instead, to the same results.

        Raises:
            StoreError: the disk is full, or the place can't be written to. Nothing is left behind.
            TypeError: the index holds a ``CodeStore``.
        """
        parts: list[dict[str, Any]] = []
        if any(is_sparse(part) and not isinstance(part, SparseCodes) for part in self._parts):
            raise TypeError("codes of a CodeStore lie in files already: index the store instead of saving it")
        dense = {
            n: _blocked(part) for n, part in enumerate(self._parts) if isinstance(part, (Tensor, BlockedRows))
        }
        copies = sum(len(rows) // rows.height + 1 for rows in dense.values())
        with indexfile.writing(path, copies + 3 * len(self._parts) + 1) as file:
            for number, part in enumerate(self._parts):
                if isinstance(part, SparseCodes):
                    parts.append({"kind": "sparse", "latents": part.num_latents})
                    continue
                parts.append({"kind": "dense", "tall": dense[number].height, "packed": 0})
                for block in dense[number].pack(self.metric) if packed else ():
                    file.add(f"packed.{number}.{parts[-1]['packed']}", block.dtype, block.shape, [block])
                    parts[-1]["packed"] += 1
            if self._ids is not None:
                file.add("ids", torch.int64, self._ids.shape, [self._ids])
            columns = {f"rows.{n}": rows for n, rows in dense.items()}
            for number, part in enumerate(self._parts):
                if isinstance(part, SparseCodes):
                    named = {name: getattr(part, name) for name in _SPARSE}
                    columns |= {f"{name}.{number}": column for name, column in named.items()}
            for name, column in sorted(columns.items(), key=lambda pair: -pair[1].dtype.itemsize):
                whole = [column] if isinstance(column, Tensor) else (b.rows for b in column.blocks(0, 0, 0))
                file.add(name, column.dtype, column.shape, whole)
            file.facts = {"metric": self.metric, "ids": self._named, "parts": parts}

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        mmap: bool = True,
        device: torch.device | str | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> Index:
        """Open what ``save`` wrote.

        Args:
            path: the file.
            device: as for a new index.
            memory: as for a new index.
            mmap: map the file, which must stay as it is, and read what a search needs when it needs it;
                otherwise read all of it now. A mapped file that was touched since it was written (copied, for
                one) is read once to see that its bytes are still those.

        Raises:
            StoreError: the file is missing, truncated, corrupt, changed since it was written, or no index.
        """
        tensors, facts, mapping = indexfile.read(path, mmap=mmap)
        index = cls.__new__(cls)
        index.metric, index._named = facts["metric"], facts["ids"]
        index._place(device, memory)
        index._parts, index._packed, index._turned, index._starts = [], {}, {}, [0]
        index._ids = tensors["ids"].clone() if index._named else None
        for number, part in enumerate(facts["parts"]):
            rows: Tensor | BlockedRows | SparseCodes
            if part["kind"] == "sparse":
                indptr, indices, values = (tensors[f"{name}.{number}"] for name in _SPARSE)
                rows = SparseCodes(indptr, indices, values, part["latents"])
            else:
                rows = tensors[f"rows.{number}"]
                packed = [tensors[f"packed.{number}.{copy}"] for copy in range(part["packed"])]
                indexfile.check_packed(path, rows, packed, part["tall"], index.metric)
                if packed or mapping is not None:
                    rows = BlockedRows(rows, mapping=mapping, packed=packed, tall=part["tall"])
            index._parts.append(rows)
            index._starts.append(index._starts[-1] + len(rows))
        return index

    def _search(
        self, blocks: Iterable[Any], queries: Any, k: int, exclude: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sparse = isinstance(queries, SparseCodes)
        search: Any = sparse_cosine_topk if sparse else cosine_topk
        rescore: Any = sparse_pair_scores if sparse else pair_scores
        dtype, best, found = None, None, None
        for start, block, packed, more in blocks:
            allowed = None if mask is None else mask[start : start + len(block)]
            floor: float | None = None if best is None else _floor(best, queries, block)
            if isinstance(packed, Tensor) and isinstance(block, Tensor):
                args = (k, self.metric, floor, exclude, allowed, start)
                checks.cosine_topk(queries, block, checks.Search.packed(*args))
                scores, ids = call("cosine_topk_packed", queries, block, packed, *args)
            elif isinstance(packed, PackedCodes):
                scores, ids = packed.search(
                    queries,
                    k,
                    metric=self.metric,
                    min_score=floor,
                    exclude=exclude,
                    mask=allowed,
                    id_offset=start,
                )
            else:
                options: dict[str, Any] = {"metric": self.metric, "exclude": exclude, "mask": allowed}
                scores, ids = search(queries, block, k, min_score=floor, id_offset=start, **options)
            dtype = scores.dtype if dtype is None else torch.promote_types(dtype, scores.dtype)
            if best is None and not more:
                return scores, ids
            if best is not None:
                # Most of what a block offers lies below what is held already, and need not be looked at.
                alive = (ids >= 0) & (scores >= best[:, -1:].to(scores.dtype))
                width = int(alive.sum(dim=1).max()) if alive.numel() else 0
                ids = torch.where(alive, ids, -1)[:, :width]
            # Rounded scores of different blocks may tie where the true ones do not, so merge by the latter.
            wide = rescore(queries, block, torch.where(ids >= 0, ids - start, -1), metric=self.metric)
            if best is not None and found is not None:
                wide, ids = ordered(torch.cat([best, wide], dim=1), torch.cat([found, ids], dim=1), k)
            best, found = wide, ids
        if best is None or found is None:
            raise RuntimeError("an index without blocks")
        return best.to(dtype), found

    def _blocks(
        self, queries: int, k: int
    ) -> Generator[tuple[int, Tensor | SparseCodes, Tensor | PackedCodes | None, bool], None, None]:
        """First position, rows, their packed copy or None, and whether more blocks follow."""
        if self.device is not None:
            for first, rows, more in stream(self._parts, self._starts, self.device, self.memory):
                yield first, rows, None, more
            return
        last = len(self._parts) - 1
        # A small corpus may stay mapped from one search to the next.
        release = sum(part.nbytes for part in self._parts if isinstance(part, BlockedRows)) > PACKED_BYTES
        for number, (start, part) in enumerate(zip(self._starts, self._parts, strict=False)):
            if isinstance(part, BlockedRows):
                for block in part.blocks(queries, k, release=release):
                    more = number < last or block.first + len(block.rows) < len(part)
                    yield start + block.first, block.rows, block.packed, more
            elif isinstance(part, Tensor):
                packed = self._packed.setdefault(start, PackedCache(constant=True)).get(part, self.metric)
                yield start, part, packed, number < last
            elif isinstance(part, SparseCodes):
                yield start, part, self._turn(number, part), number < last
            else:
                for first, codes in part.stream(READ_BYTES // 2):
                    more = number < last or first + len(codes) < len(part)
                    yield start + first, codes, None, more

    def _turn(self, number: int, codes: SparseCodes) -> PackedCodes | None:
        """Codes in memory, packed when they are searched for the second time."""
        if number not in self._turned:
            self._turned[number] = None
        elif self._turned[number] is None and codes.nnz * 8 <= _free_memory():
            self._turned[number] = PackedCodes(codes)
        return self._turned[number]

    def _ids_on(self, device: torch.device) -> Tensor:
        if self._ids is None:
            raise RuntimeError("the index has no ids")
        if device == self._ids.device:
            return self._ids
        if device not in self._ids_at:
            self._ids_at[device] = self._ids.to(device)
        return self._ids_at[device]

    def _positions(self, exclude: Tensor | None) -> Tensor | None:
        """Turn ids to exclude into positions; ids that the index lacks become -1."""
        if exclude is None or self._ids is None or exclude.dtype != torch.int64:
            return exclude  # the operation refuses other dtypes
        if not len(self._ids):
            return torch.full_like(exclude, -1)
        named, order = torch.sort(self._ids_on(exclude.device))
        place = torch.searchsorted(named, exclude.contiguous()).clamp(max=len(named) - 1)
        return torch.where((named[place] == exclude) & (exclude >= 0), order[place], -1)


def _blocked(part: Tensor | BlockedRows) -> BlockedRows:
    return part if isinstance(part, BlockedRows) else BlockedRows(part.detach().cpu())


def _floor(best: Tensor, queries: Any, block: Any) -> float | None:
    """A score that every further result must reach: the least k-th best of any query so far, as rounded.

    Rounding keeps the order, so what is dropped by its rounded score lies below in truth as well.
    """
    values = queries.values if isinstance(queries, SparseCodes) else queries
    others = block.values if isinstance(block, SparseCodes) else block
    if not best.numel() or not checks.all_finite(values):
        return None
    least = best[:, -1].min().to(checks.result_dtype(values, others)).item()
    return None if least == NEVER else float(least)


def _free_memory() -> int:
    """Bytes the system says are free, or no limit where it doesn't say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize

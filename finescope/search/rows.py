"""What an index takes as rows, and how it holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.device import usable_device
from finescope.search.blocked import BlockedRows, in_place


@runtime_checkable
class CodeBlocks(Protocol):
    """Sparse codes that stay on disk, such as a ``CodeStore``."""

    num_latents: int

    def __len__(self) -> int:
        """N."""
        ...

    def stream(self, block_bytes: int) -> Iterator[tuple[int, SparseCodes]]:
        """Yield (number of the first row, codes) in order; a block is valid until the next is asked for."""
        ...


#: what users give
Rows: TypeAlias = Tensor | np.ndarray[Any, Any] | SparseCodes | CodeBlocks | Sequence[Tensor]
#: what an index holds
Part: TypeAlias = Tensor | BlockedRows | SparseCodes | CodeBlocks


def as_part(block: Rows) -> Part:
    """Check rows and make them what an index holds.

    Raises:
        ValueError: not two-dimensional.
        TypeError: a dtype or object that can't be searched.
    """
    block = stacked(block)
    if sparse_matrix(block):
        return as_codes(block)
    if isinstance(block, SparseCodes):
        return block
    if isinstance(block, np.ndarray):
        if block.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise TypeError(f"corpus must be float16, float32 or float64, got {block.dtype}")
    elif not isinstance(block, Tensor):
        if isinstance(block, CodeBlocks):
            return block
        raise TypeError(
            f"corpus must be a tensor, an array, SparseCodes or a CodeStore, got {type(block).__name__}"
        )
    elif not block.is_floating_point():
        raise TypeError(f"corpus must be floating point, got {block.dtype}")
    if block.ndim != 2:
        raise ValueError(f"corpus must have shape [N, D], got {list(block.shape)}")
    if isinstance(block, Tensor):
        return block
    here = None if isinstance(block, np.memmap) else in_place(block)
    return BlockedRows(block) if here is None else here


def stacked(rows: Any) -> Any:
    """Tensors in a list, dense or sparse, as one: how encoders return the embeddings of several texts."""
    if isinstance(rows, Sequence) and len(rows) and all(isinstance(row, Tensor) for row in rows):
        return torch.stack(list(rows))
    return rows


def sparse_matrix(rows: Any) -> bool:
    """Whether rows are a sparse matrix of torch (in any layout) or of scipy."""
    return rows.layout != torch.strided if isinstance(rows, Tensor) else hasattr(rows, "tocsr")


def as_codes(matrix: Any) -> SparseCodes:
    """A sparse matrix of torch or scipy as codes; whole numbers become float64."""
    if isinstance(matrix, Tensor):
        return SparseCodes.from_torch_sparse(matrix if matrix.is_floating_point() else matrix.double())
    return SparseCodes.from_scipy(matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64))


def is_sparse(part: Part) -> bool:
    """Whether rows are codes."""
    return not isinstance(part, (Tensor, BlockedRows))


def width_of(part: Part) -> int:
    """D of dense rows, F of codes."""
    return int(part.shape[1]) if isinstance(part, (Tensor, BlockedRows)) else part.num_latents


def as_ids(ids: Any) -> Tensor:
    """Whole numbers as int64 [N].

    Raises:
        TypeError: other numbers.
    """
    given = ids.detach().cpu() if isinstance(ids, Tensor) else torch.as_tensor(np.asarray(ids))
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TypeError(f"ids must be whole numbers, got {given.dtype}")
    return given.to(torch.int64).reshape(-1)


def as_tensor(given: Tensor | np.ndarray[Any, Any] | None, device: torch.device) -> Tensor | None:
    """An argument that may be an array, as a tensor on a device; tensors stay where they are."""
    return torch.from_numpy(np.array(given)).to(device) if isinstance(given, np.ndarray) else given


def as_device(device: torch.device | str) -> torch.device:
    """The device with its number: that is how tensors name theirs.

    Raises:
        ValueError: not the CPU or a CUDA device, or one that can't be used.
    """
    chosen = usable_device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be the CPU or a CUDA device, got {str(device)!r}")
    return chosen

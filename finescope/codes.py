"""SparseCodes: N sparse rows over F latents in CSR form, in memory or memory-mapped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finescope.errors import StoreError
from finescope.html.notebook import ROWS, notebook
from finescope.progress import counted
from finescope.storage.files import map_tensors, write_tensors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FORMAT = "finescope-sparse-codes"
_UINT16_LATENTS = 1 << 16
_MOST_LATENTS = 1 << 31  # latents are int32
_STRONGEST = 5  # latents of a row that a notebook shows


class SparseCodes:
    """N sparse vectors over F latents (compressed sparse rows).

    Attributes:
        indptr: int64 [N+1], where each row starts; ``indptr[0]`` is 0.
        indices: uint16 (F ≤ 65536) or int32 [nnz], latents in ascending order inside a row.
        values: float16, bfloat16, float32 or float64 [nnz].
        num_latents: F.
    """

    __slots__ = ("indices", "indptr", "num_latents", "values")

    def __init__(
        self, indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int, *, check: bool = True
    ):
        """Wrap the three CSR tensors.

        Args:
            indptr: int64 [N+1].
            indices: integer [nnz].
            values: floating [nnz].
            num_latents: F.
            check: verify structure and order; pass False only for tensors that are known to be right.

        Raises:
            ValueError: shapes, dtypes, ranges or the order of latents are wrong.
        """
        self.indptr = indptr
        self.indices = indices
        self.values = values
        self.num_latents = int(num_latents)
        if check:
            self.validate()

    def validate(self) -> None:
        """Check structure, ranges, and that latents rise strictly inside every row.

        Raises:
            ValueError: naming the first thing that is wrong and the row it is in.
        """
        if not 0 <= self.num_latents <= _MOST_LATENTS:
            raise ValueError(f"num_latents must be 0 … {_MOST_LATENTS}, got {self.num_latents}")
        if self.indptr.dtype != torch.int64 or self.indptr.dim() != 1 or self.indptr.numel() < 1:
            raise ValueError(f"indptr must be int64 [N+1], got {self.indptr.dtype} {list(self.indptr.shape)}")
        if self.indices.dim() != 1 or self.indices.dtype not in (torch.int32, torch.int64, torch.uint16):
            raise ValueError(
                f"indices must be integer [nnz], got {self.indices.dtype} {list(self.indices.shape)}"
            )
        if self.values.shape != self.indices.shape or not self.values.is_floating_point():
            raise ValueError(
                f"values must be floating {list(self.indices.shape)} like indices, "
                f"got {self.values.dtype} {list(self.values.shape)}"
            )
        indptr, indices = self.indptr.numpy(), self.indices.numpy()
        if indptr[0] != 0 or indptr[-1] != indices.size:
            raise ValueError(f"indptr must run from 0 to nnz={indices.size}, got {indptr[0]} to {indptr[-1]}")
        falls = np.flatnonzero(np.diff(indptr) < 0)
        if falls.size:
            raise ValueError(f"indptr falls at row {falls[0]}")
        if indices.size:
            if int(indices.min()) < 0 or int(indices.max()) >= self.num_latents:
                place = int(np.flatnonzero((indices < 0) | (indices >= self.num_latents))[0])
                row = int(np.searchsorted(indptr, place, side="right")) - 1
                raise ValueError(f"latent {indices[place]} in row {row} is outside 0..{self.num_latents - 1}")
            rises = indices[1:] > indices[:-1]
            starts = indptr[1:-1]
            rises[starts[(starts > 0) & (starts < indices.size)] - 1] = True
            if not rises.all():
                place = int(np.flatnonzero(~rises)[0])
                row = int(np.searchsorted(indptr, place, side="right")) - 1
                raise ValueError(f"latents must rise strictly inside a row; row {row} does not")

    # ------------------------------------------------------------------ shape

    def __len__(self) -> int:
        return self.indptr.numel() - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(N, F)."""
        return len(self), self.num_latents

    @property
    def nnz(self) -> int:
        """Stored entries of all rows."""
        return self.indices.numel()

    def __repr__(self) -> str:
        return f"SparseCodes(N={len(self)}, F={self.num_latents}, nnz={self.nnz}, dtype={self.values.dtype})"

    def _repr_html_(self) -> str:
        """Return the first rows and their strongest latents, for notebooks."""
        first = self[:ROWS]
        held = first.indptr.diff().tolist()
        strongest = []
        for at in range(len(first)):
            row = first[at]
            order = row.values.double().abs().argsort(descending=True, stable=True)[:_STRONGEST]
            latents, values = row.indices.to(torch.int64)[order].tolist(), row.values.double()[order].tolist()
            pairs = zip(latents, values, strict=True)
            strongest.append(", ".join(f"{latent} ({value:.3g})" for latent, value in pairs))
        return notebook(
            f"Codes of {counted(len(self), 'row')} over {counted(self.num_latents, 'latent')}",
            {"row": range(len(first)), "latents": held, f"its strongest {_STRONGEST}, and values": strongest},
            said=[f"{self.nnz / max(1, len(self)):,.1f} latents a row on average, {self.values.dtype}"],
            caption="The first rows; rows and latents are counted from 0",
            more=len(self) - len(first),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseCodes):
            return NotImplemented
        return (
            self.num_latents == other.num_latents
            and torch.equal(self.indptr, other.indptr)
            and torch.equal(self.indices.to(torch.int64), other.indices.to(torch.int64))
            and torch.equal(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]

    # ------------------------------------------------------------------ rows

    def __getitem__(self, rows: Any) -> SparseCodes:
        """Return some rows: an int, a slice, a boolean mask [N], or integer positions [R] (repeats allowed).

        A slice of step 1 shares memory with this object; everything else copies.

        Raises:
            IndexError: a position is outside 0..N-1.
        """
        n = len(self)
        if isinstance(rows, (int, np.integer)):
            row = int(rows) + (n if rows < 0 else 0)
            if not 0 <= row < n:
                raise IndexError(f"row {int(rows)} is outside 0..{n - 1}")
            rows = slice(row, row + 1)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(n)
            if step == 1:
                stop = max(start, stop)
                low, high = int(self.indptr[start]), int(self.indptr[stop])
                return SparseCodes(
                    self.indptr[start : stop + 1] - low,
                    self.indices[low:high],
                    self.values[low:high],
                    self.num_latents,
                    check=False,
                )
            positions = np.arange(start, stop, step)
        else:
            positions = np.asarray(rows)
            if positions.dtype == np.bool_:
                if positions.shape != (n,):
                    raise IndexError(f"a mask must have shape [{n}], got {list(positions.shape)}")
                positions = np.flatnonzero(positions)
            if positions.size and positions.dtype.kind not in "iu":
                raise IndexError(f"rows are chosen by integers or a boolean mask, not {positions.dtype}")
            positions = positions.astype(np.int64).reshape(-1)
            if positions.size and (positions.min() < -n or positions.max() >= n):
                raise IndexError(
                    f"row positions run from {positions.min()} to {positions.max()}, outside 0..{n - 1}"
                )
            positions = np.where(positions < 0, positions + n, positions)
        starts = self.indptr.numpy()[positions] if positions.size else np.zeros(0, np.int64)
        lengths = np.diff(self.indptr.numpy())[positions] if positions.size else np.zeros(0, np.int64)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        gather = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        return SparseCodes(
            torch.from_numpy(indptr),
            torch.from_numpy(self.indices.numpy()[gather]),
            self.values[torch.from_numpy(gather)],  # NumPy has no bfloat16
            self.num_latents,
            check=False,
        )

    @staticmethod
    def cat(parts: Sequence[SparseCodes]) -> SparseCodes:
        """Stack the rows of several codes over the same F latents.

        Raises:
            ValueError: no parts, or parts with different F.
        """
        if not parts:
            raise ValueError("SparseCodes.cat needs at least one part")
        widths = sorted({part.num_latents for part in parts})
        if len(widths) > 1:
            raise ValueError(f"parts have different numbers of latents: {widths}")
        dtype = torch.uint16 if all(part.indices.dtype == torch.uint16 for part in parts) else torch.int32
        value_dtype = parts[0].values.dtype
        for part in parts[1:]:
            value_dtype = torch.promote_types(value_dtype, part.values.dtype)
        indptr, base = [parts[0].indptr.new_zeros(1)], 0
        for part in parts:
            indptr.append(part.indptr[1:] + base)
            base += part.nnz
        return SparseCodes(
            torch.cat(indptr),
            torch.cat([part.indices.to(dtype) for part in parts]),
            torch.cat([part.values.to(value_dtype) for part in parts]),
            widths[0],
            check=False,
        )

    def to(self, device: torch.device | str) -> SparseCodes:
        """Return the codes with their tensors on a device, as operands of a search there.

        What else this class does needs them on the CPU.
        """
        return SparseCodes(
            self.indptr.to(device),
            self.indices.to(device),
            self.values.to(device),
            self.num_latents,
            check=False,
        )

    # ------------------------------------------------------------------ other forms

    @classmethod
    def from_padded(cls, values: Tensor, indices: Tensor, num_latents: int) -> SparseCodes:
        """Build codes from the padded rows that ``pool_codes`` returns.

        Args:
            values: floating [N,M].
            indices: int64 [N,M], ascending inside a row, -1 where there is no entry.
            num_latents: F.

        Raises:
            ValueError: shapes that differ, latents that aren't below F or don't rise inside a row.
        """
        if values.dim() != 2 or values.shape != indices.shape:
            raise ValueError(
                f"values and indices must have one shape [N,M], got {list(values.shape)} and "
                f"{list(indices.shape)}"
            )
        values, indices = values.detach().cpu(), indices.detach().cpu()
        kept = indices >= 0
        beyond = (indices >= num_latents).nonzero()
        if len(beyond):  # found here: the narrow dtype below would wrap it into the range
            row, slot = beyond[0].tolist()
            latent = int(indices[row, slot])
            raise ValueError(f"latent {latent} in row {row} is outside 0..{num_latents - 1}")
        indptr = torch.zeros(indices.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(kept.sum(dim=1), dim=0, out=indptr[1:])
        return cls(indptr, indices[kept].to(_index_dtype(num_latents)), values[kept], num_latents)

    @classmethod
    def from_dense(cls, dense: Tensor) -> SparseCodes:
        """Build codes from a dense [N,F] tensor; zeros are dropped."""
        dense = dense.detach().cpu()
        kept = dense != 0
        indptr = torch.zeros(dense.shape[0] + 1, dtype=torch.int64)
        torch.cumsum(kept.sum(dim=1), dim=0, out=indptr[1:])
        indices = kept.nonzero()[:, 1].to(_index_dtype(dense.shape[1]))
        return cls(indptr, indices, dense[kept], dense.shape[1], check=False)

    def to_dense(self) -> Tensor:
        """Return the codes as a dense [N,F] tensor of the values' dtype. For small N only."""
        device = self.values.device
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=device)
        rows = torch.repeat_interleave(torch.arange(len(self), device=device), self.indptr.diff())
        dense[rows, self.indices.to(torch.int64)] = self.values
        return dense

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseCodes:
        """Build codes from any scipy sparse matrix [N,F]; duplicates are summed, explicit zeros dropped.

        float16, float32 and float64 keep their dtype; whole numbers and booleans become float32.

        Raises:
            TypeError: complex numbers or objects.
        """
        if matrix.dtype.kind not in "fiub":
            raise TypeError(f"codes are real numbers, got a matrix of {matrix.dtype}")
        csr = matrix.tocsr(copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        csr.sort_indices()
        values = (
            csr.data
            if csr.data.dtype in (np.float16, np.float32, np.float64)
            else csr.data.astype(np.float32)
        )
        return cls(
            torch.from_numpy(csr.indptr.astype(np.int64)),
            torch.from_numpy(csr.indices.astype(np.int32)).to(_index_dtype(csr.shape[1])),
            torch.from_numpy(values),
            csr.shape[1],
            check=False,
        )

    def to_scipy(self) -> csr_matrix:
        """Return the codes as a scipy CSR matrix [N,F], float32 (float64 when the values are)."""
        from scipy.sparse import csr_matrix

        values = self.values.detach()
        values = values if values.dtype == torch.float64 else values.float()
        # scipy wants both index arrays in one type; int32 only where nnz allows it.
        wide = np.int64 if self.nnz > np.iinfo(np.int32).max else np.int32
        return csr_matrix(
            (values.numpy(), self.indices.numpy().astype(wide), self.indptr.numpy().astype(wide)),
            shape=self.shape,
        )

    @classmethod
    def from_torch_sparse(cls, sparse: Tensor) -> SparseCodes:
        """Build codes from a torch sparse tensor [N,F] of any layout, coalesced or not.

        Duplicates are summed, explicit zeros dropped; floating values keep their dtype, others become
        float32.

        Raises:
            ValueError: not two-dimensional.
            TypeError: complex numbers.
        """
        if sparse.dim() != 2:
            raise ValueError(f"codes must have shape [N, F], got {list(sparse.shape)}")
        if sparse.is_complex():
            raise TypeError(f"codes are real numbers, got a tensor of {sparse.dtype}")
        count, width = sparse.shape
        coo = sparse.detach().cpu()
        coo = (coo if sparse.is_floating_point() else coo.float()).to_sparse(sparse_dim=2).coalesce()
        kept = coo.values() != 0
        rows, latents = coo.indices()[:, kept]
        indptr = torch.zeros(count + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=count), dim=0, out=indptr[1:])
        return cls(indptr, latents.to(_index_dtype(width)), coo.values()[kept], width, check=False)

    def to_torch_sparse(self) -> Tensor:
        """Return the codes as a torch CSR tensor [N,F] of the values' dtype."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            # Told about although the choice is made below, up to torch 2.11.
            warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
            return torch.sparse_csr_tensor(
                self.indptr,
                self.indices.to(torch.int64),
                self.values,
                size=self.shape,
                check_invariants=False,
            )

    def norms(self) -> Tensor:
        """Return the Euclidean norm of every row, float64 [N], summed in ascending order of latents."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr.numpy()))
        # bincount adds one weight after the other, so the sum has the same bytes on every machine.
        square = np.bincount(
            rows, weights=self.values.detach().double().square().numpy(), minlength=len(self)
        )
        return torch.from_numpy(np.sqrt(square))

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file (indptr, indices, values), under a temporary name, then rename.

        Missing parent folders are made.

        Raises:
            StoreError: the disk is full, or the place can't be written to. Nothing is left behind.
        """
        tensors = {
            "indptr": self.indptr,
            "indices": self.indices.to(_index_dtype(self.num_latents)),
            "values": self.values.detach(),
        }
        write_tensors(
            path, tensors, {"format": _FORMAT, "version": "1", "num_latents": str(self.num_latents)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True) -> SparseCodes:
        """Read codes written by ``save``.

        Args:
            path: the file.
            mmap: map the file instead of reading it; pages are read when touched.

        Raises:
            StoreError: the file is missing, truncated, or not a codes file.
        """
        tensors, metadata = map_tensors(path, remedy="embed it again")
        if metadata.get("format") != _FORMAT or not {"indptr", "indices", "values"} <= tensors.keys():
            raise StoreError(f"{path} is not a FineScope codes file; write one with SparseCodes.save")
        if not mmap:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            return cls(tensors["indptr"], tensors["indices"], tensors["values"], int(metadata["num_latents"]))
        except (KeyError, ValueError) as error:
            raise StoreError(f"{path} holds broken codes: {error}") from error


def _index_dtype(num_latents: int) -> torch.dtype:
    return torch.uint16 if num_latents <= _UINT16_LATENTS else torch.int32

"""Sparse codes packed once for many searches: the lists of rows per latent that the compiled engine screens.

The counterpart of ``packed`` for SparseCodes. The packed copy only ever decides how fast a result is found;
without a compiled engine, and where packing would not pay, it is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import checks
from finescope.ops.registry import default
from finescope.ops.schemas import _CSR_PAIR, _fake, call

torch.library.define(
    "finescope::pack_sparse_rows", "(Tensor indptr, Tensor indices, Tensor values, int num_latents) -> Tensor"
)
torch.library.define(
    "finescope::sparse_cosine_topk_packed",
    f'({_CSR_PAIR}, Tensor packed, int k, str metric="cosine", float? min_score=None, '
    "Tensor? exclude=None, Tensor? mask=None, int id_offset=0) -> (Tensor scores, Tensor ids)",
)


@_fake("pack_sparse_rows")
def _fake_pack(indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return indptr.new_empty((size,), dtype=torch.uint8)


@_fake("sparse_cosine_topk_packed")
def _fake_search(
    q_indptr: Tensor,
    q_indices: Tensor,
    q_values: Tensor,
    c_indptr: Tensor,
    c_indices: Tensor,
    c_values: Tensor,
    num_latents: int,
    packed: Tensor,
    k: int,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
    id_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    shape = (q_indptr.shape[0] - 1, k)
    dtype = checks.result_dtype(q_values, c_values)
    return q_values.new_empty(shape, dtype=dtype), q_values.new_empty(shape, dtype=torch.int64)


@default("pack_sparse_rows")
def _pack(indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int) -> Tensor:
    return indptr.new_empty((0,), dtype=torch.uint8)


@default("sparse_cosine_topk_packed")
def _search(
    q_indptr: Tensor,
    q_indices: Tensor,
    q_values: Tensor,
    c_indptr: Tensor,
    c_indices: Tensor,
    c_values: Tensor,
    num_latents: int,
    packed: Tensor,
    k: int,
    metric: str = "cosine",
    min_score: float | None = None,
    exclude: Tensor | None = None,
    mask: Tensor | None = None,
    id_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    rows = (q_indptr, q_indices, q_values, c_indptr, c_indices, c_values, num_latents)
    found: tuple[Tensor, Tensor] = call(
        "sparse_cosine_topk", *rows, k, metric, "auto", min_score, exclude, mask, id_offset
    )
    return found


class PackedCodes:
    """Sparse codes and their packed copy: pack once, search many times.

    The codes are shared, not copied, and must not change; results are those of ``sparse_cosine_topk`` on
    them, byte for byte. Packed, an entry takes four bytes; latents that many rows hold take up to sixteen.
    """

    def __init__(self, codes: SparseCodes) -> None:
        """Pack N codes.

        Raises:
            TypeError: not SparseCodes.
            IndexError: a latent outside 0 … F-1.
        """
        if not isinstance(codes, SparseCodes):
            raise TypeError(f"codes must be SparseCodes, got {type(codes).__name__}")
        self.codes = codes
        self.packed: Tensor = call("pack_sparse_rows", *_tensors(codes), codes.num_latents)

    def __len__(self) -> int:
        return len(self.codes)

    def __repr__(self) -> str:
        return f"PackedCodes({self.codes!r}, packed={self.packed.numel() / 2**20:.1f} MiB)"

    def search(
        self,
        queries: SparseCodes,
        k: int,
        *,
        metric: str = "cosine",
        min_score: float | None = None,
        exclude: Tensor | None = None,
        mask: Tensor | None = None,
        id_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """``finescope.ops.sparse_cosine_topk`` over these codes; the arguments are explained there.

        Raises:
            ValueError: different F, shapes that do not fit, a negative k, an unknown metric.
            TypeError: not ``SparseCodes``, or wrong dtypes.
        """
        if not isinstance(queries, SparseCodes):
            raise TypeError(f"queries must be SparseCodes, got {type(queries).__name__}")
        latents = self.codes.num_latents
        if queries.num_latents != latents:
            raise ValueError(f"queries have F={queries.num_latents} latents but corpus has F={latents}")
        query, rows = _tensors(queries), _tensors(self.codes)
        checks.sparse_cosine_topk(query, rows, latents, k, metric, "auto", exclude, mask, id_offset)
        args: tuple[Any, ...] = (k, metric, min_score, exclude, mask, id_offset)
        return call("sparse_cosine_topk_packed", *query, *rows, latents, self.packed, *args)  # type: ignore[no-any-return]


def _tensors(codes: SparseCodes) -> tuple[Tensor, Tensor, Tensor]:
    return codes.indptr, codes.indices, codes.values.detach()

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
from finescope.ops.checks import Search
from finescope.ops.public import csr_of, shared_latents
from finescope.ops.registry import default
from finescope.ops.schemas import call, csr_pair


@default("pack_sparse_rows")
def _pack(indptr: Tensor, indices: Tensor, values: Tensor, num_latents: int) -> Tensor:
    checks.pack_sparse_rows((indptr, indices, values), num_latents)
    return indptr.new_empty((0,), dtype=torch.uint8)


@default("sparse_cosine_topk_packed")
def _search(*args: Any) -> tuple[Tensor, Tensor]:
    query, corpus, num_latents, (packed, *options) = csr_pair(*args)
    checks.packed(packed)
    return call(  # type: ignore[no-any-return]
        "sparse_cosine_topk", *query, *corpus, num_latents, *Search.packed(*options)
    )


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
        self.codes = codes
        self.packed: Tensor = call("pack_sparse_rows", *csr_of(codes, "codes"), codes.num_latents)

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
        query, rows = csr_of(queries, "queries"), csr_of(self.codes, "corpus")
        latents = shared_latents(queries, self.codes)
        args: tuple[Any, ...] = (k, metric, min_score, exclude, mask, id_offset)
        checks.sparse_cosine_topk(query, rows, latents, Search.packed(*args))
        return call("sparse_cosine_topk_packed", *query, *rows, latents, self.packed, *args)  # type: ignore[no-any-return]

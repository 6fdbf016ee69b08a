"""Groupmax (sparsify): the strongest latent of each of K groups."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.errors import InputError
from finescope.ops import topk_encode
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.ragged import top_rows


class GroupmaxAutoencoder(Autoencoder):
    """The largest relu(encoder.weight @ x' + encoder.bias) of each of K groups of F/K consecutive latents."""

    architecture = "groupmax"

    def check_sizes(self) -> None:
        if self.num_latents % self.cfg.k:
            raise InputError(
                f"groupmax needs groups of equal size, and {self.num_latents} latents don't make"
                f" k={self.cfg.k} of them"
            )

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        # A call for each of the K groups: the more rows it is for, the better.
        return top_rows(rows, max(1, self.cfg.k // 8), self.num_latents, self._top)

    def _top(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = self.num_latents // self.cfg.k
        kind = torch.promote_types(rows.dtype, torch.float32)
        values = rows.new_empty(len(rows), self.cfg.k, dtype=kind)
        indices = rows.new_empty(len(rows), self.cfg.k, dtype=torch.int64)
        for place in range(self.cfg.k):
            group = slice(place * size, (place + 1) * size)
            value, index = topk_encode(rows, self.encoder.weight[group], self.encoder.bias[group], 1)
            values[:, place], indices[:, place] = value[:, 0], index[:, 0] + group.start
        return values, indices

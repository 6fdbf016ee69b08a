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
        return top_rows(rows, self.cfg.k, self.num_latents, self._top)

    def _top(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = self.num_latents // self.cfg.k
        values, indices = [], []
        for first in range(0, self.num_latents, size):
            group = slice(first, first + size)
            value, index = topk_encode(rows, self.encoder.weight[group], self.encoder.bias[group], 1)
            values.append(value)
            indices.append(index + first)
        return torch.cat(values, 1), torch.cat(indices, 1)

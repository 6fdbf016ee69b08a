"""AbsTopK (Zhu et al., 2025): the K pre-activations of the largest size, with their signs."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.sae.architectures.base import Autoencoder, check_k
from finescope.sae.ragged import top_rows


class AbsTopKAutoencoder(Autoencoder):
    """The K largest |encoder.weight @ x' + encoder.bias| keep their signed values; ties go to the lower
    latent."""

    architecture = "abstopk"
    signed = True

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        # Of each row 2K candidates are sorted by five tensors.
        return top_rows(rows, 8 * self.cfg.k, self.num_latents, self._top)

    def _top(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        bias, k = self.encoder.bias, self.cfg.k
        # The K largest of p and the K largest of −p, which is exactly the pre-activation of −x with −bias.
        above, below = self.top(rows, bias, k), self.top(-rows, -bias, k)
        sizes = torch.cat([above[0], below[0].nan_to_num(0.0)], 1)  # a broken token is NaN once
        indices, order = torch.cat([above[1], below[1]], 1).sort(dim=1, stable=True)
        sizes, best = sizes.gather(1, order).sort(dim=1, descending=True, stable=True)
        order, indices = order.gather(1, best)[:, :k], indices.gather(1, best)[:, :k]
        values = torch.where(order < k, sizes[:, :k], -sizes[:, :k])
        return self.scaled(values, indices), indices

"""LISTA TopK (latentsae): the strongest latents inhibit those whose decoder rows are like theirs, then K are
kept."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops.engine import WIDE_ELEMENTS
from finescope.sae.architectures.base import Autoencoder, check_k
from finescope.sae.ragged import top_rows

_CANDIDATES = 4  # times K


class ListaAutoencoder(Autoencoder):
    """The top-K of a ← relu(a − eta · (G − diag G) a) over the 4K largest a = relu(encoder.weight @ x' + b).

    G holds the inner products of the decoder's rows. Buffers: ``eta`` [], and ``steps`` [], how often.
    """

    architecture = "lista"

    eta: Tensor
    steps: Tensor

    def add_parameters(self) -> None:
        self.register_buffer("eta", self.b_dec.new_empty(()))
        self.register_buffer("steps", self.b_dec.new_empty(()))

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        few = min(_CANDIDATES * self.cfg.k, self.num_latents)
        # What a later step may look at: each can bring up at most as many as the first.
        many = min(few * int(self.steps), self.num_latents)
        return top_rows(rows, 4 * many, self.num_latents, partial(self._top, few=few, many=many))

    def _top(self, rows: Tensor, few: int, many: int) -> tuple[Tensor, Tensor]:
        values, indices = self.top(rows, self.encoder.bias, many)
        tall = max(1, WIDE_ELEMENTS // (few * max(few, self.d_out)))
        best, latents = values[:, : self.cfg.k].clone(), indices[:, : self.cfg.k].clone()
        for first in range(0, len(values), tall):
            part = slice(first, first + tall)
            found = self._inhibit(values[part], indices[part], few, int(self.steps))
            best[part], latents[part] = (each[:, : self.cfg.k] for each in found)
        return best, latents

    def _inhibit(self, values: Tensor, indices: Tensor, few: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return values [b,few] after inhibition, descending, and their latents."""
        acts = values.double()
        for _ in range(steps):
            acts, indices = _strongest_first(acts, indices)
            rows = self.W_dec[indices[:, :few]].double()
            products = rows @ rows.mT
            products.diagonal(dim1=1, dim2=2).zero_()
            strong = acts[:, :few]
            weaker = torch.relu(strong - float(self.eta) * (products @ strong[:, :, None]).squeeze(2))
            acts = torch.cat([weaker, acts[:, few:]], 1)
        # The library chooses among the candidates of the last step only.
        acts, indices = _strongest_first(acts[:, :few], indices[:, :few])
        return acts.to(values.dtype), indices


def _strongest_first(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows by value descending, then latent ascending."""
    indices, order = indices.sort(dim=1)
    values, best = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, best)

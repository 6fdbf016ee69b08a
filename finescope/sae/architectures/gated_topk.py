"""Gated TopK (latentsae): K latents chosen by a gate, worth what another matrix says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.ops.dense import Encode
from finescope.ops.engine import NEVER, certified_topk
from finescope.ops.schemas import call
from finescope.sae.architectures.base import Autoencoder, check_k
from finescope.sae.ragged import top_rows


class GatedTopKAutoencoder(Autoencoder):
    """The K largest g = encoder.weight @ x' + encoder.bias, worth relu(exp(r_mag) · W_mag @ x' · sigmoid(g)).

    Parameters besides those of all: ``W_mag`` [F,D], ``r_mag`` [F].
    """

    architecture = "gated_topk"

    W_mag: Tensor
    r_mag: Tensor

    def add_parameters(self) -> None:
        self.W_mag = nn.Parameter(torch.empty_like(self.encoder.weight))
        self.r_mag = nn.Parameter(self.b_dec.new_empty(self.num_latents))

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return top_rows(rows, 4 * self.cfg.k, self.num_latents, self._top)

    def _top(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        problem = Encode(rows, self.encoder.weight, self.encoder.bias, NEVER)
        gates, indices = certified_topk(problem, self.cfg.k)
        sizes = call("sampled_dot", rows.double(), indices, self.W_mag)
        values = torch.relu(sizes * self.r_mag.double().exp()[indices] * torch.sigmoid(gates))
        return values.to(rows.dtype), indices

"""Cosine-scored TopK (latentsae): how much the length of an activation counts is learned by each latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finescope.codes import SparseCodes
from finescope.ops.engine import WIDE_ELEMENTS
from finescope.ops.fixed_order import pair_dots, squared_norms
from finescope.sae.architectures.base import Autoencoder, check_k
from finescope.sae.ragged import from_rows

# Candidates beyond K that are scored again in the fixed order.
_SPARE = 8
_ROWS = 256


class CosineAutoencoder(Autoencoder):
    """The top-K of relu(cos(x', w) · ‖x'‖^α + encoder.bias), w a row of encoder.weight, α =
    sigmoid(alpha_logit).

    Parameters besides those of all: ``alpha_logit`` [F], or [] for one α.
    """

    architecture = "cosine"

    alpha_logit: Tensor

    def add_parameters(self) -> None:
        self.alpha_logit = nn.Parameter(self.b_dec.new_empty(self.num_latents))

    def check_sizes(self) -> None:
        check_k(self)

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        weight, k = self.encoder.weight, self.cfg.k
        smallest = torch.finfo(weight.dtype).eps  # the library's floor under both lengths
        positions = torch.arange(len(weight), device=rows.device)
        lengths = squared_norms(weight, positions).sqrt().clamp(min=smallest)
        alpha = torch.sigmoid(self.alpha_logit.double()).expand(self.num_latents)
        bias = self.encoder.bias.double()
        tall = max(1, min(len(rows), WIDE_ELEMENTS // max(k + _SPARE, self.d_in), _ROWS))
        wide = max(1, WIDE_ELEMENTS // max(tall, self.d_in))
        values, indices = [], []
        for part in rows.split(tall):  # type: ignore[no-untyped-call]
            positions = torch.arange(len(part), device=part.device)
            size = squared_norms(part, positions).sqrt().clamp(min=smallest)[:, None]
            scores = torch.empty(len(part), 0, dtype=torch.float64, device=part.device)
            found = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
            for first in range(0, self.num_latents, wide):
                cols = slice(first, min(first + wide, self.num_latents))
                near = part.double() @ weight[cols].double().T / (size * lengths[cols])
                near = near * size ** alpha[cols] + bias[cols]
                latents = torch.arange(cols.start, cols.stop, device=part.device).expand(len(part), -1)
                scores, found = torch.cat([scores, near], 1), torch.cat([found, latents], 1)
                scores, best = scores.topk(min(scores.shape[1], k + _SPARE), dim=1)
                found = found.gather(1, best)
            found = found.sort(dim=1).values
            dots = pair_dots(part, positions, weight, found)
            exact = dots / (size * lengths[found]) * size ** alpha[found] + bias[found]
            best_scores, place = exact.sort(dim=1, descending=True, stable=True)
            values.append(torch.relu(best_scores[:, :k]).to(rows.dtype))
            indices.append(found.gather(1, place[:, :k]))
        if not values:
            return from_rows(rows.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64), self.num_latents)
        return from_rows(torch.cat(values), torch.cat(indices), self.num_latents)

"""Groupmax (sparsify): the strongest latent of each of K groups."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.errors import InputError
from finescope.ops import topk_encode
from finescope.ops.dense import Encode
from finescope.ops.engine import NEVER, WIDE_ELEMENTS
from finescope.sae.architectures.base import Autoencoder
from finescope.sae.ragged import top_rows

# From so many groups on, a search of its own for each costs more than looking at many of them together.
_MANY = 512


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
        if self.cfg.k >= _MANY:
            # Beside its K values and latents a row holds their exact scores.
            return top_rows(rows, 2 * self.cfg.k, self.num_latents, self._together)
        # A call for each of the K groups: the more rows it is for, the better.
        return top_rows(rows, max(1, self.cfg.k // 8), self.num_latents, self._one_by_one)

    def _one_by_one(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = self.num_latents // self.cfg.k
        kind = torch.promote_types(rows.dtype, torch.float32)
        values = rows.new_empty(len(rows), self.cfg.k, dtype=kind)
        indices = rows.new_empty(len(rows), self.cfg.k, dtype=torch.int64)
        for place in range(self.cfg.k):
            group = slice(place * size, (place + 1) * size)
            value, index = topk_encode(rows, self.encoder.weight[group], self.encoder.bias[group], 1)
            values[:, place], indices[:, place] = value[:, 0], index[:, 0] + group.start
        return values, indices

    def _together(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from blocks of whole groups, by exact scores where the screen leaves doubt."""
        k, size = self.cfg.k, self.num_latents // self.cfg.k
        problem = Encode(rows, self.encoder.weight, self.encoder.bias, NEVER)
        every, positions = slice(0, len(rows)), torch.arange(len(rows), device=rows.device)
        scores = torch.empty(len(rows), k, dtype=torch.float64, device=rows.device)
        indices = torch.empty(len(rows), k, dtype=torch.int64, device=rows.device)
        wide = max(1, WIDE_ELEMENTS // (max(1, len(rows)) * size))
        for first in range(0, k, wide):
            groups = slice(first, min(first + wide, k))
            starts = torch.arange(groups.start, groups.stop, device=rows.device) * size
            cols = slice(groups.start * size, groups.stop * size)
            block = problem.screen(every, cols).view(len(rows), -1, size)
            best, place = block.max(dim=2)
            latents = starts + place
            exact = problem.exact(positions, latents)
            room = problem.bound(every, best)
            # Whatever else of a group could be the largest lies within twice the bound of it.
            near = (block >= (best.double() - 2 * room)[:, :, None]).sum(2)
            doubtful = ~((near == 1) & ((best.double() - exact).abs() <= room))
            row, group = doubtful.nonzero(as_tuple=True)
            if len(row):
                members = starts[group, None] + torch.arange(size, device=rows.device)
                found, place = problem.exact(row, members).max(dim=1)
                exact[row, group], latents[row, group] = found, starts[group] + place
            exact[problem.bad_rows], latents[problem.bad_rows] = torch.nan, starts  # a broken token is broken
            scores[:, groups], indices[:, groups] = exact, latents
        kind = torch.promote_types(rows.dtype, torch.float32)
        return torch.relu(scores).to(kind), indices

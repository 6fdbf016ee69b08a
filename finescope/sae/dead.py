"""Which latents are dead: tokens since each one last fired, counted where the training runs."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.sae.parallel import Ranks


class DeadLatents:
    """Counts tokens since each of F latents last fired, and names those that haven't for too long.

    AuxK's problem is as large as their number, so the host has to know it. On an accelerator it is looked up
    right after the forward pass of the step before: the host then waits for that pass at most, while the
    device still has a backward pass and an optimiser step to do.
    """

    def __init__(self, num_latents: int, device: torch.device) -> None:
        # The extra entry takes the writes of activations that are zero, so that counting needs neither a
        # boolean index nor, with it, a wait for the device.
        self.since_fired = torch.zeros(num_latents + 1, dtype=torch.int64, device=device)
        self._found: Tensor | None = None
        if device.type == "cuda":
            self._count = torch.zeros((), dtype=torch.int64, device="cpu", pin_memory=True)
            self._counted = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @property
    def num_latents(self) -> int:
        """F."""
        return len(self.since_fired) - 1

    def count(self, fired: Tensor, tokens: int) -> None:
        """Take note of some tokens: the latents ``fired``, int64 [n], were active, F standing for none."""
        self.since_fired += tokens
        self.since_fired.index_fill_(0, fired, 0)
        self._found = None

    def agree(self, ranks: Ranks) -> None:
        """Take over what the other ranks counted: their latents have fired too."""
        if not ranks.alone:
            ranks.least_(self.since_fired)
            self._found = None

    def mask(self, threshold: int) -> Tensor:
        """Return bool [F], True for latents that were silent for ``threshold`` tokens."""
        return self.since_fired[:-1] >= threshold

    def look(self, threshold: int) -> None:
        """Begin to find the dead latents, for the next call of :meth:`latents`."""
        mask = self.mask(threshold)
        if mask.is_cuda:
            self._found = mask.logical_not().byte().argsort(stable=True)  # the dead first, in order
            self._count.copy_(mask.sum(), non_blocking=True)
            self._counted.record(torch.cuda.current_stream(mask.device))
        else:
            self._found = mask.nonzero().squeeze(1)

    def latents(self, threshold: int) -> Tensor:
        """Return the dead latents, int64 [n], ascending."""
        if self._found is None:
            self.look(threshold)
        found = self._found
        assert found is not None
        if not found.is_cuda:
            return found
        self._counted.synchronize()
        return found[: int(self._count)]

"""BatchTopK (Bussmann et al., 2024): K latents per token on average; one threshold once it is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import topk_encode
from finescope.sae.architectures.base import check_k
from finescope.sae.architectures.threshold import ThresholdAutoencoder, TrainingCodes
from finescope.sae.entries import Entries, exceeding, with_gradient
from finescope.sae.objective import Batch
from finescope.sae.parallel import ALONE, Ranks

# The strongest of a batch are looked for above this much of the weakest of the batch before; if those are too
# few, above this much of that, and so on.
_MARGIN = 0.94
_WIDER = 0.7


class BatchTopKAutoencoder(ThresholdAutoencoder):
    """Codes p · [p > threshold], p = relu(encoder.weight @ x' + encoder.bias).

    In training the K·B strongest of a batch of B tokens are kept instead, and the threshold is the running
    mean of the weakest of them. A negative one is of an SAE that never got there: every positive p is kept
    then.

    Besides what all have: the buffer ``threshold`` [], float64.
    """

    architecture = "batchtopk"

    threshold: Tensor
    _weakest: Tensor | None = None
    """The weakest that the last step kept: it decides how fast the next are found, not which they are."""

    def add_parameters(self) -> None:
        self.register_buffer("threshold", self.b_dec.new_empty((), dtype=torch.float64))

    def check_sizes(self) -> None:
        check_k(self)

    def reset_parameters(self, seed: int = 42) -> None:
        super().reset_parameters(seed)
        self.threshold.zero_()

    def encode_rows(self, rows: Tensor) -> SparseCodes:
        return self.exceeding(rows, self.threshold.clamp(min=0))

    # ------------------------------------------------------------------ training

    @property
    def additive(self) -> bool:
        return False

    def start_from(self, sample: Tensor) -> None:
        """Guess the threshold: the mean of the K-th strongest latents of a sample [n,D]."""
        values, _ = topk_encode(sample - self.b_dec, self.encoder.weight, self.encoder.bias, self.cfg.k)
        self.threshold.copy_(values[:, -1].double().mean())
        self.expected_l0 = float(self.cfg.k)

    def training_codes(self, batch: Batch) -> TrainingCodes:
        weight, bias = self.encoder.weight, self.encoder.bias
        with torch.no_grad():
            entries, pre = self._strongest(batch.x - self.b_dec, self.cfg.k * batch.tokens, batch.ranks)
        values = with_gradient(pre, entries, batch.x, self.b_dec, weight, bias)
        return TrainingCodes(entries, values, values, batch.variance.new_zeros(()))

    def _strongest(self, centred: Tensor, count: int, ranks: Ranks = ALONE) -> tuple[Entries, Tensor]:
        """Return of the ``count`` strongest pairs of all ranks those of this one; take note of the weakest.

        Only pairs above 0 are kept.
        """
        usual = float(self.threshold if self._weakest is None else self._weakest)
        limit = usual * _MARGIN
        weight, bias = self.encoder.weight, self.encoder.bias
        while True:
            floor = max(limit, 0.0)
            entries, pre = exceeding(centred, weight, bias, floor, crowded=False)
            found = ranks.total(len(entries), pre.device)
            if found >= count or floor == 0:
                break
            limit = limit * _WIDER if found > count // 2 else limit / 4
            if limit < 1e-3 * usual:
                limit = 0.0
        values = ranks.gather_lists(pre)
        every = torch.cat(values)
        if found > count:
            least = every.kthvalue(found - count + 1).values
            kept = ~(every <= least)
            kept[(every == least).nonzero().squeeze(1)[: count - int(kept.sum())]] = True
            mine = torch.split(kept, [len(part) for part in values])[ranks.rank]
            entries, pre, every = entries.chosen(mine), pre[mine], every[kept]
        if len(every):
            self._weakest, rate = every.min().double(), self.cfg.threshold_rate
            self.threshold.mul_(1 - rate).add_(rate * self._weakest)
        return entries, pre

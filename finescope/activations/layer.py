"""One module of a model as a function from tokens to vectors, and what trying it once tells of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finescope.activations.hookpoints import (
    count_runs,
    output_of,
    resolve_hookpoint,
    split_run,
    split_side,
)
from finescope.errors import InputError
from finescope.progress import counted


class Layer:
    """Reads the output, or the input, of one module as [rows, length, D]; nothing after it is computed.

    What can't be seen from outside is found by running the whole model once, on two short rows: how often the
    module runs, whether it gives [rows, length, D] or, as XLNet does, [length, rows, D], and whether a longer
    output ends in padding that the model adds by itself: Longformer and Reformer fill up their windows.

    Attributes:
        name: full name of the module, with ``.input`` if what goes into it is read, and with ``@n`` if its
            n-th run is asked for.
        run: which run of the module is read: the one asked for, else the last.
        runs: how often it runs in a forward pass; more than once where blocks share it.
        width: D.
    """

    def __init__(
        self, model: nn.Module, name: str, device: torch.device, options: dict[str, Any], probe: list[int]
    ) -> None:
        """Find the module and try it.

        Args:
            model: in eval mode.
            name: as ``resolve_hookpoint`` takes it, with ``@n`` behind it for the n-th run.
            device: where token ids go.
            options: for every forward pass.
            probe: token ids of a short text.

        Raises:
            InputError: no such module or run, a module that doesn't run, or an output that isn't one vector a
                token.
        """
        self.name = resolve_hookpoint(model, name)
        found, run = split_run(self.name)
        found, self._before = split_side(model, found)
        self._model, self._module = model, model.get_submodule(found)
        self._device, self._options = device, options
        rows, length = (3 if len(probe) == 2 else 2), len(probe)
        self._probe = torch.tensor([probe] * rows)
        self._whole = torch.ones_like(self._probe)
        self.runs = count_runs(model, self._module, self.name, self._inputs(self._probe, self._whole))
        self.run = run or self.runs
        if self.run > self.runs:
            raise InputError(
                f"there is no {self.name!r}: the module runs {counted(self.runs, 'time')} in a forward pass"
            )
        tried = self._output(self._probe, self._whole)
        self._length_first = tried.shape[:-1] == (length, rows)
        self._fills_up = self._length_first or self._ends_at(tried, length)
        self.width = int(self(self._probe, self._whole).shape[-1])

    @property
    def identity(self) -> str:
        """What tells what is read from other runs of the module."""
        return self.name if self.runs == 1 else f"{self.name.partition('@')[0]}@{self.run}"

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the layer's output [rows, length, D].

        Args:
            ids: int64 [rows, length], tokens.
            mask: int64 [rows, length], 0 for padding.

        Raises:
            InputError: the layer doesn't run, or gives something else.
        """
        hidden = self._output(ids, mask)
        if hidden.dim() == 2 and hidden.shape[0] == ids.numel():
            hidden = hidden.reshape(*ids.shape, -1)  # mixture-of-experts layers flatten their rows
        elif self._length_first:
            hidden = hidden.transpose(0, 1)
        if hidden.dim() == 3 and self._fills_up:
            hidden = hidden[:, : ids.shape[1]]
        if hidden.dim() != 3 or hidden.shape[:2] != ids.shape or not hidden.is_floating_point():
            raise InputError(
                f"layer {self.name!r} gives {hidden.dtype} {list(hidden.shape)} for tokens "
                f"{list(ids.shape)}; name a layer whose output is one vector a token"
            )
        return hidden

    def _ends_at(self, tried: Tensor, length: int) -> bool:
        """Whether an output that is longer than its rows, if there is one, holds padding behind them.

        A text that fills what the model fills up gets no padding; tokens put before every text would stay.
        """
        if tried.dim() != 3 or tried.shape[1] <= length:
            return True
        longer = self._probe.repeat(1, -(-tried.shape[1] // length))[:, : tried.shape[1]]
        return self._output(longer, torch.ones_like(longer)).shape[1] == tried.shape[1]

    def change_under_padding(self, padding: int, limit: int) -> float:
        """Return by how much of its length a token's vector changes, at most, when its row is padded.

        Some families look at padding whatever the mask says: FNet's Fourier transform goes over the whole
        row, the convolutions of ConvBERT and the trigrams of MobileBERT cross its end.

        Args:
            padding: the token id that rows are filled up with.
            limit: the longest row that the model takes.
        """
        length = self._probe.shape[1]
        more = min(limit, length + max(1, length // 2)) - length
        if more < 1:
            return 0.0
        ids = torch.nn.functional.pad(self._probe, (0, more), value=padding)
        mask = torch.zeros_like(ids)
        mask[:, :length] = 1
        alone = self(self._probe, self._whole).double()
        change = (self(ids, mask)[:, :length].double() - alone).norm(dim=-1)
        return float((change / alone.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)).max())

    @torch.no_grad()
    def _output(self, ids: Tensor, mask: Tensor) -> Tensor:
        inputs = self._inputs(ids, mask)
        return output_of(self._model, self._module, self.name, self.run, inputs, before=self._before)

    def _inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device), **self._options}

"""Activations on their way: of whole documents, and of batches of windows as they are computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finescope.activations.windows import Document
from finescope.errors import InputError
from finescope.ops.checks import all_finite

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""What activations are rounded to and stored as."""


_NORM_ROWS = 4096


class TooLargeError(InputError):
    """Activations that the dtype they are rounded to can't hold.

    Attributes:
        what: which they are, without a remedy.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; round them to bfloat16 or float32 instead (activation_dtype)")
        self.what = what

    def __reduce__(self) -> tuple[type[TooLargeError], tuple[str]]:
        return type(self), (self.what,)


@dataclass(frozen=True)
class DocumentActivations:
    """The activations of one document."""

    index: int
    """Position of its row among the rows given."""
    id: str
    token_ids: Tensor
    """int64 [T]: the tokens kept, special ones left out."""
    activations: Tensor
    """[T,D] in the tap's dtype, on its device."""
    place: str = ""
    windows: tuple[int, ...] = ()
    """Tokens of each window that it was read in; () if there was one."""
    bad: str = ""
    """Why it is set aside, and has no activations; "" if it isn't."""


@dataclass(frozen=True)
class ActivationBatch:
    """The activations of a batch of windows, one after the other."""

    documents: list[Document]
    """Document of each window."""
    parts: list[int]
    """Number of each window in its document."""
    offsets: list[int]
    """Where each window's tokens start; one more at the end."""
    token_ids: Tensor
    """int64 [B]."""
    activations: Tensor
    """[B,D]."""

    def first_broken(self) -> int | None:
        """Return the number of the first window with NaN or infinite activations; None if there is none."""
        if all_finite(self.activations):
            return None
        token = int((~torch.isfinite(self.activations).all(dim=1)).nonzero()[0])
        return next(number for number in range(len(self.documents)) if self.offsets[number + 1] > token)

    def without_sinks(self, max_norm: float) -> ActivationBatch:
        """Return the batch without the tokens whose norm is above ``max_norm``."""
        kept = within(self.activations, max_norm)
        return self if bool(kept.all()) else self._keeping(kept)

    def setting_aside(self, reason: str) -> ActivationBatch:
        """Set the documents aside that have NaN or infinite activations; return the batch without these.

        The windows of such documents stay, without tokens, so that whoever has seen others of them knows.
        """
        kept = torch.isfinite(self.activations).all(dim=1)
        spans = list(itertools.pairwise(self.offsets))
        for document, (low, high) in zip(self.documents, spans, strict=True):
            if not bool(kept[low:high].all()):
                document.bad = reason
        for document, (low, high) in zip(self.documents, spans, strict=True):
            if document.bad:
                kept[low:high] = False
        return self._keeping(kept)

    def _keeping(self, kept: Tensor) -> ActivationBatch:
        """The batch with some of its tokens, bool [B]."""
        places = [0, *kept.cumsum(dim=0).tolist()]
        return replace(
            self,
            offsets=[places[offset] for offset in self.offsets],
            token_ids=self.token_ids[kept.cpu()],
            activations=self.activations[kept],
        )


def norms(activations: Tensor) -> Tensor:
    """Return the Euclidean norms float64 [B] of activations [B,D]."""
    parts = activations.split(_NORM_ROWS)  # type: ignore[no-untyped-call]
    # In parts: they are held in float64.
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def within(activations: Tensor, most: float) -> Tensor:
    """Return, bool [B], of which activations [B,D] the norm is at most ``most``."""
    if activations.dtype == torch.float64:
        return norms(activations) <= most
    # float32 nearly always tells: a sum of D squares has a relative error below D·2⁻²⁴ and a few roundings.
    quick = torch.linalg.vector_norm(activations, dim=1, dtype=torch.float32)
    kept: Tensor = quick <= most
    width = activations.shape[1]
    near = (quick - most).abs() <= most * (width + 16) * 2.0**-23 + math.sqrt(width) * 2.0**-62
    unsure = near | ~quick.isfinite()
    if bool(unsure.any()):
        kept[unsure] = norms(activations[unsure]) <= most
    return kept


def rounded(batch: ActivationBatch, dtype: torch.dtype) -> ActivationBatch:
    """Return a batch of finite activations, rounded to another dtype.

    Raises:
        TooLargeError: they don't fit; the document is named.
    """
    found = ActivationBatch(
        batch.documents, batch.parts, batch.offsets, batch.token_ids, batch.activations.to(dtype)
    )
    number = found.first_broken()
    if number is not None:
        low, high = batch.offsets[number], batch.offsets[number + 1]
        document = batch.documents[number]
        where = f" ({document.place})" if document.place else ""
        name = str(dtype).removeprefix("torch.")
        raise TooLargeError(
            f"activations of document {document.id!r}{where} reach "
            f"{float(batch.activations[low:high].abs().max()):.3g}, more than {name} holds"
        )
    return found


def joined(document: Document, parts: Mapping[int, tuple[Tensor, Tensor]]) -> DocumentActivations:
    """Return a document put together from its windows' tokens [T] and activations [T,D], by number."""
    ordered = [parts[number] for number in range(document.parts)]
    tokens, activations = ordered[0] if len(ordered) == 1 else map(torch.cat, zip(*ordered, strict=True))
    windows = () if len(ordered) == 1 else tuple(len(part[0]) for part in ordered)
    return DocumentActivations(
        document.index, document.id, tokens, activations, document.place, windows, document.bad
    )

"""Codes of tokens between encoder and pooling: K latents each, or as many as fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from finescope.codes import SparseCodes
from finescope.ops import pool_codes
from finescope.ops.checks import all_finite

_Tokens = TypeVar("_Tokens", bound="TokenCodes")


class TokenCodes(Protocol):
    """Codes of B tokens, where the SAE lies."""

    def __len__(self) -> int: ...

    def rows(self: _Tokens, low: int, high: int) -> _Tokens:
        """Return the tokens low … high-1; shares memory."""

    def kept(self: _Tokens) -> _Tokens:
        """Return a copy in the CPU's memory."""

    def joined(self: _Tokens, others: Sequence[_Tokens]) -> _Tokens:
        """Return these tokens and, behind them, those of others."""

    def finite(self) -> bool:
        """Return whether all values are numbers."""

    def pool(self, offsets: Tensor, reduce: str, keep: int) -> tuple[Tensor, Tensor]:
        """Pool documents by offsets [n+1], as ``pool_codes`` does; the result is on the CPU."""


@dataclass(frozen=True)
class PaddedTokens:
    """K latents of every token."""

    values: Tensor
    """[B,K]"""
    indices: Tensor
    """[B,K] int64"""

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, low: int, high: int) -> PaddedTokens:
        return PaddedTokens(self.values[low:high], self.indices[low:high])

    def kept(self) -> PaddedTokens:
        return PaddedTokens(self.values.to("cpu", copy=True), self.indices.to("cpu", copy=True))

    def joined(self, others: Sequence[PaddedTokens]) -> PaddedTokens:
        parts = [self, *others]
        return PaddedTokens(
            torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
        )

    def finite(self) -> bool:
        return all_finite(self.values)

    def pool(self, offsets: Tensor, reduce: str, keep: int) -> tuple[Tensor, Tensor]:
        offsets = offsets.to(self.values.device)
        values, indices = pool_codes(self.values, self.indices, offsets, reduce=reduce, keep=keep)
        return values.cpu(), indices.cpu()


@dataclass(frozen=True)
class SparseTokens:
    """As many latents of every token as fire: a token costs what it holds."""

    codes: SparseCodes
    """[B,F]"""

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, low: int, high: int) -> SparseTokens:
        return SparseTokens(self.codes[low:high])

    def kept(self) -> SparseTokens:
        indptr, indices, values = (
            side.to("cpu", copy=True) for side in (self.codes.indptr, self.codes.indices, self.codes.values)
        )
        return SparseTokens(SparseCodes(indptr, indices, values, self.codes.num_latents, check=False))

    def joined(self, others: Sequence[SparseTokens]) -> SparseTokens:
        return SparseTokens(SparseCodes.cat([self.codes, *(other.codes for other in others)]))

    def finite(self) -> bool:
        return all_finite(self.codes.values)

    def pool(self, offsets: Tensor, reduce: str, keep: int) -> tuple[Tensor, Tensor]:
        return pool_codes(self.codes.to("cpu"), None, offsets, reduce=reduce, keep=keep)

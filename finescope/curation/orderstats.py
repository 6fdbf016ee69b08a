"""Quantiles of very many numbers, found by counting, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import FloatArray, IntArray

_DIGIT = 16
"""Bits that a pass looks at."""
MOST_HELD = 1 << 20
"""Numbers at most that are held, and looked through once."""


def quantiles(blocks: Callable[[], Iterable[FloatArray]], shares: Sequence[float]) -> FloatArray:
    """Return quantiles of n numbers, float64, as NumPy's ``quantile`` finds them among all at once.

    Between two neighbours in order they are interpolated. Among more than a million numbers they are found
    digit by digit: a pass counts how many have which first 16 bits, the next looks at the following 16 of
    those that matter.

    Args:
        blocks: gives the numbers, float64, block by block, in the same order as often as it is called.
        shares: in [0, 1].

    Returns:
        NaN for each where there is no number, or one of them is NaN.
    """
    count, broken, held = 0, False, list[FloatArray]()
    for numbers in blocks():
        count, broken = count + numbers.size, broken or bool(np.isnan(numbers).any())
        held = [*held, numbers] if count <= MOST_HELD else []
    if not count or broken:
        return np.full(len(shares), np.nan)
    places = np.array([share * (count - 1) for share in shares])
    low = np.floor(places).astype(np.int64)
    ranks = np.unique(np.concatenate([low, np.minimum(low + 1, count - 1)]))
    values = np.partition(np.concatenate(held), ranks)[ranks] if held else _at_ranks(blocks, ranks)
    pairs = [values[np.searchsorted(ranks, [rank, min(rank + 1, count - 1)])] for rank in low]
    found = [np.quantile(pair, place - rank) for pair, place, rank in zip(pairs, places, low, strict=True)]
    return np.array(found) + 0.0  # of -0 and 0, which are equal, any may stand first


def _at_ranks(blocks: Callable[[], Iterable[FloatArray]], ranks: IntArray) -> FloatArray:
    """Return the numbers that stand at some places of all in ascending order."""
    prefix, left = np.zeros(ranks.size, np.uint64), ranks.copy()
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        known = np.unique(prefix)
        counts = np.zeros((known.size, 1 << _DIGIT), np.int64)
        for numbers in blocks():
            keys = _ordered(numbers)
            digits = ((keys >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)).astype(np.int64)
            if shift + _DIGIT == 64:
                counts[0] += np.bincount(digits, minlength=1 << _DIGIT)
                continue
            heads = keys >> np.uint64(shift + _DIGIT)
            for place, head in enumerate(known):
                counts[place] += np.bincount(digits[heads == head], minlength=1 << _DIGIT)
        before = np.cumsum(counts, axis=1)
        for at, (head, rank) in enumerate(zip(prefix, left.tolist(), strict=True)):
            row = before[np.searchsorted(known, head)]
            digit = int(np.searchsorted(row, rank, side="right"))
            left[at] = rank - (row[digit - 1] if digit else 0)
            prefix[at] = (head << np.uint64(_DIGIT)) | np.uint64(digit)
    return _numbers(prefix)


def _ordered(numbers: FloatArray) -> NDArray[np.uint64]:
    """Return whole numbers that ascend where the numbers do."""
    bits = np.ascontiguousarray(numbers).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _numbers(keys: NDArray[np.uint64]) -> FloatArray:
    """Undo ``_ordered``."""
    sign = np.uint64(1 << 63)
    return np.where(keys & sign, keys & ~sign, ~keys).view(np.float64)

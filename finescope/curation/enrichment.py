"""Which latents are more frequent in one set of rows than in another, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finescope.curation.blocks import Codes, FloatArray, IntArray, iter_blocks, latents_of, values64
from finescope.errors import InputError


@dataclass(frozen=True)
class Enriched:
    """Latents whose frequencies differ, the surest first.

    Attributes:
        latents: int64 [L].
        first, second: int64 [L], rows of either side that hold the latent.
        rows: how many rows either side has.
        ratio: float64 [L], the frequency in the first over that in the second, with half a row added to both
            counts.
        low, high: float64 [L], its interval, which holds for all latents at once; from 0 to infinity.
    """

    latents: IntArray
    first: IntArray
    second: IntArray
    rows: tuple[int, int]
    ratio: FloatArray
    low: FloatArray
    high: FloatArray


def holders(codes: Codes, groups: IntArray | None = None, count: int = 1) -> tuple[IntArray, IntArray]:
    """Count by groups of rows how many rows hold each latent.

    Args:
        codes: N rows over F latents, streamed.
        groups: int64 [N], each row's group; below 0 it is passed over. None: all are of group 0.
        count: of groups, G.

    Returns:
        int64 [G,F] and int64 [G], the rows of each group that hold any latent.
    """
    width = latents_of(codes)
    found, rows = np.zeros(count * width, np.int64), np.zeros(count, np.int64)
    for start, block in iter_blocks(codes):
        lengths = np.diff(block.indptr.numpy())
        mine = np.zeros(len(block), np.int64) if groups is None else groups[start : start + len(block)]
        used = (mine >= 0) & (lengths > 0)
        rows += np.bincount(mine[used], minlength=count)
        owner = np.repeat(mine, lengths)
        entries = (owner >= 0) & (values64(block) != 0)
        places = owner[entries] * width + block.indices.numpy()[entries]
        found += np.bincount(places, minlength=found.size)
    return found.reshape(count, width), rows


def enriched(counts: IntArray, rows: Sequence[int] | IntArray, *, level: float = 0.95) -> Enriched:
    """Compare how often two sets of rows hold each latent.

    Of the a + b rows that hold a latent, a are in the first set of n rows, with probability π, and b in the
    second of m. The interval of π is Clopper and Pearson's (1934), exact for rare latents and too wide for
    others; π/(1 − π)·m/n is the ratio of frequencies. The tails are shared among all latents (Bonferroni):
    there are many to be surprised by.

    Args:
        counts: int64 [2,F], from ``holders``; no row may be in both sets.
        rows: of either set.
        level: coverage of all intervals together.

    Returns:
        the latents that any row holds, by the end of the interval that is nearer to 1, the farthest above
        it first.

    Raises:
        InputError: a set without rows that hold a latent.
        ValueError: level outside (0, 1).
    """
    from scipy.special import betaincinv

    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    sizes = int(rows[0]), int(rows[1])
    if min(sizes) == 0:
        raise InputError("one of the two sides has no row with a latent, so there is nothing to compare")
    seen = np.flatnonzero(counts.sum(axis=0))
    a, b = (side[seen].astype(np.float64) for side in counts)
    tail = (1 - level) / (2 * max(1, seen.size))
    known = np.ones_like(a)  # where a count is 0 the interval has no end on that side
    low = np.where(a > 0, betaincinv(np.maximum(a, known), b + 1, tail), 0.0)
    high = np.where(b > 0, betaincinv(a + 1, np.maximum(b, known), 1 - tail), 1.0)
    odds = sizes[1] / sizes[0]
    with np.errstate(divide="ignore"):
        low, high = (odds * end / (1 - end) for end in (low, high))
    ratio = odds * (a + 0.5) / (b + 0.5)
    with np.errstate(divide="ignore"):
        nearer = np.where(ratio >= 1, np.maximum(np.log(low), 0.0), np.minimum(np.log(high), 0.0))
    order = np.lexsort((seen, -ratio, -nearer))
    first, second = (side[seen][order] for side in counts)
    return Enriched(seen[order], first, second, sizes, ratio[order], low[order], high[order])


def sure(found: Enriched, sign: int) -> IntArray:
    """Return the places of latents whose whole interval is above 1 (sign 1) or below (−1), surest first."""
    if sign > 0:
        return np.flatnonzero(found.low > 1)
    return np.flatnonzero(found.high < 1)[::-1]


def neighbours(decoder: FloatArray, latent: int, count: int) -> list[tuple[int, float]]:
    """Return the latents whose decoder rows have the largest cosines with one's, and the cosines.

    Args:
        decoder: [F,D].
        latent: whose neighbours; it is none itself.
        count: how many, at most.
    """
    norms = np.sqrt(np.square(decoder).sum(axis=1))
    along = (decoder * decoder[latent]).sum(axis=1)
    length = norms * norms[latent]
    cosines = np.divide(along, length, out=np.full(len(decoder), -math.inf), where=length > 0)
    cosines[latent] = -math.inf
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(int(at), float(cosines[at])) for at in order if math.isfinite(cosines[at])]

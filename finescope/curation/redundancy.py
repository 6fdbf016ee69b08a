"""Walking down a ranking while leaving out rows too close to one already taken.

One greedy pass serves near-duplicate removal (a cosine near 1) and the diversity filter (a lower one): a row
is taken unless its cosine with a taken row reaches the limit, so of every group of copies the best-ranked one
stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from finescope.curation.blocks import Codes, FloatArray, IntArray, panel_columns, row_access, unit_rows

_BLOCK = 256


def greedy_filter(
    codes: Codes, order: Iterable[int], max_cosine: float, *, block: int = _BLOCK
) -> Iterator[tuple[int, int, float]]:
    """Walk rows in the given order and say for each whether it is too close to one taken before.

    The cosine is that of the codes as they are, exact in float64. Lazy: a consumer that has enough rows
    stops, and the rest is never compared. Work grows with rows walked × rows taken; memory is bounded by the
    taken rows' codes and one dense panel.

    Args:
        codes: N rows over F latents.
        order: row numbers, best first: an array [n], or whatever yields them as they are asked for.
        max_cosine: rows with a cosine ≥ this to a taken row are refused.
        block: rows compared at once; never changes a result.

    Yields:
        (row, -1, 0.0) for a taken row; (row, taken row it resembles, cosine) for a refused one, where the
        taken row is the most similar one, the first taken of equals.
    """
    source = row_access(codes)
    taken = _Taken(source.num_latents)
    coming = iter(order)
    while (rows := np.fromiter(itertools.islice(coming, block), np.int64)).size:
        unit = unit_rows(source.take(rows))
        nearest, cosine = taken.nearest(unit)
        inside = np.asarray((unit @ unit.T).todense())
        kept: list[int] = []
        for place, row in enumerate(rows.tolist()):
            best, other = float(cosine[place]), int(nearest[place])
            if kept:
                near = inside[place, kept]
                index = int(near.argmax())
                if near[index] > best:
                    best, other = float(near[index]), int(rows[kept[index]])
            if best >= max_cosine:
                yield row, other, min(best, 1.0)
            else:
                kept.append(place)
                yield row, -1, 0.0
        taken.add(rows[kept], unit[kept])


class _Taken:
    """The rows taken so far, in panels that fit into memory densified."""

    def __init__(self, num_latents: int):
        self._width = panel_columns(num_latents, 512)
        self._panels: list[tuple[IntArray, Any]] = []

    def add(self, rows: IntArray, unit: Any) -> None:
        from scipy.sparse import vstack

        if rows.size == 0:
            return
        if self._panels and self._panels[-1][0].size + rows.size <= self._width:
            before, codes = self._panels.pop()
            rows, unit = np.concatenate([before, rows]), vstack([codes, unit], format="csr")
        self._panels.append((rows, unit))

    def nearest(self, unit: Any) -> tuple[IntArray, FloatArray]:
        """The most similar taken row and its cosine for each row; -1 and -inf when none is taken."""
        count = unit.shape[0]
        name, cosine = np.full(count, -1, np.int64), np.full(count, -np.inf)
        for rows, codes in self._panels:
            for low in range(0, rows.size, self._width):
                part = codes[low : low + self._width]
                products = np.asarray(unit @ np.ascontiguousarray(part.toarray().T))
                place = products.argmax(axis=1)
                top = products[np.arange(count), place]
                better = top > cosine
                name[better] = rows[low + place[better]]
                cosine[better] = top[better]
        return name, cosine

"""What a latent stands for: the rows in which it is strongest, and words that are typical for them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finescope.curation.blocks import Codes, iter_blocks, latents_of, reciprocal, weighted_norms
from finescope.curation.ranking import each

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes

_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")


def latent_examples(codes: Codes, latents: Iterable[int], count: int = 12) -> dict[int, NDArray[np.int64]]:
    """Return for every latent the rows in whose code it has the largest share, best first.

    The share of latent f in row i is c_if / ‖c_i‖; the lower row comes first among equals. One pass over the
    corpus; besides a block of rows, only ``count`` rows per latent are held.

    Args:
        codes: N rows over F latents.
        latents: numbers of latents, L of them.
        count: rows per latent.

    Returns:
        int64 [≤ count] row numbers by latent; a latent that fires nowhere has none.
    """
    wanted = np.unique(np.fromiter(latents, np.int64))
    if wanted.size == 0 or count < 1:
        return {int(latent): np.zeros(0, np.int64) for latent in wanted}
    best = _Best(wanted, count, latents_of(codes))
    blocks = iter_blocks(codes)
    while some := list(itertools.islice(blocks, torch.get_num_threads())):
        for found in each(best.among, some):
            best.merge(*found)
    return best.rows()


class _Best:
    """The rows with the largest shares so far, for each of some latents."""

    def __init__(self, latents: NDArray[np.int64], count: int, num_latents: int):
        self._latents, self._count = latents, count
        self._floor = np.zeros(latents.size)  # shares that don't exceed it can't get in any more
        self._kept = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
        self._place = np.full(num_latents, -1, np.int64)
        inside = latents < num_latents
        self._place[latents[inside]] = np.flatnonzero(inside)

    def among(self, numbered: tuple[int, SparseCodes]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return, of some rows and the number of the first, which may get in: latent's place, share, row."""
        start, block = numbered
        indices = block.indices.numpy()
        at = np.flatnonzero((self._place >= 0).take(indices))
        place = self._place[indices[at]]
        row = np.searchsorted(block.indptr.numpy(), at, side="right") - 1
        values = block.values[torch.from_numpy(at)].to(torch.float64).numpy()
        with np.errstate(invalid="ignore"):  # a row with an infinity or a NaN has no shares
            share = values * reciprocal(weighted_norms(block, None))[row]
        better = share > self._floor[place]
        return place[better], share[better], start + row[better]

    def merge(self, place: NDArray[np.int64], share: NDArray[np.float64], row: NDArray[np.int64]) -> None:
        """Take rows into account that come after all before."""
        if not place.size:
            return
        place, share, row = (
            np.concatenate(both) for both in zip(self._kept, (place, share, row), strict=True)
        )
        order = np.lexsort((row, -share, place))
        place, share, row = place[order], share[order], row[order]
        first = np.searchsorted(place, np.arange(self._latents.size))
        rank = np.arange(place.size) - first[place]
        kept = rank < self._count
        self._kept = (place[kept], share[kept], row[kept])
        last = rank == self._count - 1
        self._floor[place[last]] = share[last]

    def rows(self) -> dict[int, NDArray[np.int64]]:
        """Row numbers by latent, best first."""
        place, _, row = self._kept
        ends = np.searchsorted(place, np.arange(self._latents.size + 1))
        return {int(latent): row[ends[at] : ends[at + 1]] for at, latent in enumerate(self._latents)}


class LatentWords:
    """Words for latents, from texts that are shown one after the other and not kept.

    A word's weight is (rows of the latent that hold it) · log(background rows / background rows that hold
    it); words that only one row holds are passed over when the latent has several rows. The words are a hint,
    not a proof.
    """

    def __init__(self, examples: Mapping[int, NDArray[np.int64]], background: Iterable[int]):
        """Prepare to see texts.

        Args:
            examples: row numbers by latent, from ``latent_examples``.
            background: row numbers of a sample of the corpus.
        """
        self._rows = {latent: len(rows) for latent, rows in examples.items()}
        self._latents: dict[int, list[int]] = {}
        for latent, rows in examples.items():
            for row in rows:
                self._latents.setdefault(int(row), []).append(latent)
        self._background = {int(row) for row in background}
        self._common: Counter[str] = Counter()
        self._held: dict[int, Counter[str]] = {latent: Counter() for latent in examples}

    def wanted(self) -> set[int]:
        """Return the rows whose texts ``see`` wants, each once."""
        return self._background | set(self._latents)

    def see(self, row: int, text: str) -> None:
        """Take the text of a row into account."""
        words = {word.lower() for word in _WORD.findall(text)}
        if row in self._background:
            self._common.update(words)
        for latent in self._latents.get(row, ()):
            self._held[latent].update(words)

    def words(self, latent: int, count: int = 4) -> str:
        """Return up to ``count`` words for a latent, the most typical first, with commas between."""
        enough = 2 if self._rows[latent] > 2 else 1
        total = len(self._background) + 1
        weighed = sorted(
            (-held * float(np.log(total / (1 + self._common[word]))), word)
            for word, held in self._held[latent].items()
            if held >= enough
        )
        return ", ".join(word for weight, word in weighed[:count] if weight < 0)

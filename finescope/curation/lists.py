"""Each target's nearest rows, in lists that become as long as they are needed, and no longer than fits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import BoolArray, IntArray
from finescope.curation.scoring.onepass import CorpusScorer

ENTRIES = 1 << 22
"""Rows in all lists together, at once: with their cosines, 64 MiB."""
_FEWEST = 1024
"""Rows of a list that are found in one pass, at least: fewer would save next to nothing."""


def each_part(targets: IntArray, entries: int) -> Iterator[IntArray]:
    """Yield targets by number, as many at a time as there is room for with ``entries`` rows each, or one."""
    step = max(1, ENTRIES // max(1, entries))
    for low in range(0, len(targets), step):
        yield targets[low : low + step]


def among_nearest(scorer: CorpusScorer, targets: SparseCodes, most: int, allowed: BoolArray) -> BoolArray:
    """Return which rows are among the ``most`` allowed ones that are nearest to any target, bool [N].

    Args:
        scorer: the corpus, N rows.
        targets: T rows.
        most: rows a target.
        allowed: bool [N].

    Raises:
        InputError: as ``Space.targets``.
    """
    usable = scorer.targets(targets).usable
    every: BoolArray = allowed & scorer.valid
    if most >= np.count_nonzero(every):  # whatever is nearest, it is all of them
        return every
    found = np.zeros(len(scorer), np.bool_)
    for part in each_part(usable, most):
        ids, _ = scorer.nearest_rows(targets[part], most, mask=allowed)
        found[ids[ids >= 0]] = True
    return found


def in_turns(
    scorer: CorpusScorer, targets: SparseCodes, allowed: BoolArray, *, about: int, most: int | None = None
) -> Iterator[int]:
    """Yield the rows that targets take in turns, each the next of its nearest that none has taken.

    A pass over the corpus finds the beginnings of all lists; whoever comes to the end of one causes another.

    Args:
        scorer: the corpus, N rows.
        targets: T rows.
        allowed: bool [N], rows that may be taken.
        about: rows that will be taken, as far as is known: so long are the lists of the first pass, at most.
        most: where each target's list ends, counting rows that others have taken. None: with the rows.

    Raises:
        InputError: as ``Space.targets``.
    """
    turns = targets[scorer.targets(targets).usable]
    free = allowed & scorer.valid
    count = int(np.count_nonzero(free))
    ends = count if most is None else min(most, count)
    room = max(1, ENTRIES // len(turns))
    length = min(ends, about, room, max(_FEWEST, 2 * about // len(turns)))
    if not length:
        return
    lists = scorer.nearest_rows(turns, length, mask=free)[0]
    places, taking = [0] * len(turns), list(range(len(turns)))
    taken = np.zeros(len(scorer), np.bool_)
    while taking:
        left = []
        for target in taking:
            row = -1
            while row < 0 or taken[row]:
                if places[target] == length:
                    if most is None:
                        # What stands before a place is taken, so a list of free rows goes on where it ended.
                        free &= ~taken
                        length, places = min(2 * length, room), [0] * len(turns)
                    elif length < ends:
                        length = min(2 * length, ends)
                    else:
                        break
                    lists = scorer.nearest_rows(turns, length, mask=free)[0]
                row = int(lists[target, places[target]])
                if row < 0:
                    break
                places[target] += 1
            else:
                taken[row] = True
                left.append(target)
                yield row
        taking = left

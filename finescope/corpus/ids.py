"""Finding an id that occurs twice, in 8 bytes a row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from finescope.errors import InputError

_BLOCK = 1 << 16


class UniqueIds:
    """Refuses an id that occurred before.

    Only 64-bit hashes are kept, in sorted runs that double in size, so a billion ids take 8 GB and not 100.
    Two ids with one hash are told apart by reading the corpus again, which also finds the first's place.
    """

    def __init__(self, again: Callable[[], Iterator[tuple[str, str]]]) -> None:
        """Check ids as they are added.

        Args:
            again: iterates (id, place) of all rows from the start; called only when two hashes are equal.
        """
        self._again = again
        self._pending: list[int] = []
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, row_id: str) -> None:
        """Take the next id; duplicates are looked for every 65 536 ids and in ``close``.

        Raises:
            InputError: an id occurred twice; names it and both places.
        """
        digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._pending.append(int.from_bytes(digest, "little"))
        if len(self._pending) >= _BLOCK:
            self.close()

    def close(self) -> None:
        """Check the ids taken since the last check.

        Raises:
            InputError: an id occurred twice; names it and both places.
        """
        run = np.sort(np.array(self._pending, dtype=np.uint64))
        self._pending = []
        repeated = run[1:][run[1:] == run[:-1]]
        for older in self._runs:
            if repeated.size:
                break
            where = np.searchsorted(older, run).clip(max=older.size - 1)
            repeated = run[older[where] == run]
        if repeated.size:
            self._explain()
        while self._runs and self._runs[-1].size <= run.size:
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if run.size:
            self._runs.append(run)

    def _explain(self) -> None:
        # Rare: name both places by reading again. Falls through if only the hashes were equal.
        seen: dict[str, str] = {}
        for row_id, place in self._again():
            if row_id in seen:
                raise InputError(
                    f"id {row_id!r} occurs twice: at {seen[row_id]} and at {place}; make ids unique, name "
                    "another column, or number the rows with --id-column none (id_column=None)"
                )
            seen[row_id] = place

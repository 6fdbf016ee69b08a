"""Shares of a plan: which shards the i-th of n processes works on that know nothing of each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finescope.corpus.plan import Shard
from finescope.errors import InputError

_WRITTEN = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Share:
    """One of several shares.

    Attributes:
        number: of the share, from 1.
        count: of the shares.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] | None = None) -> Share:
        """Return what ``i/n`` says, or what a launcher says to ``auto``.

        Args:
            text: "3/8" is the third of eight.
            environment: by default this process's.

        Raises:
            InputError: it is neither, or no launcher has started this process.
        """
        if text == "auto":
            return cls._launched(os.environ if environment is None else environment)
        found = _WRITTEN.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"a share is written i/n, from 1/n to n/n, or auto; got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _launched(cls, environment: Mapping[str, str]) -> Share:
        def number(name: str, default: int | None = None) -> int:
            try:
                return int(environment.get(name, "" if default is None else default))
            except ValueError:
                raise InputError(f"{name} is {environment.get(name)!r}, not a number") from None

        if "SLURM_ARRAY_TASK_ID" in environment:
            first, step = number("SLURM_ARRAY_TASK_MIN", 0), number("SLURM_ARRAY_TASK_STEP", 1)
            return cls((number("SLURM_ARRAY_TASK_ID") - first) // step + 1, number("SLURM_ARRAY_TASK_COUNT"))
        for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if rank in environment:
                return cls(number(rank) + 1, number(size))
        raise InputError(
            "--shard auto asks SLURM_ARRAY_TASK_ID, RANK or SLURM_PROCID, and none of them is set; start "
            "this with sbatch --array, torchrun or srun, or write --shard i/n"
        )

    def of(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards of this share: neighbours, and of about as many characters as the others'."""
        total, before, found = sum(shard.characters + shard.rows for shard in shards), 0, []
        for shard in shards:
            size = shard.characters + shard.rows
            if (2 * before + size) * self.count // (2 * total) + 1 == self.number:
                found.append(shard)
            before += size
        return found

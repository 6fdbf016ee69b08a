"""Shares of a whole: how they are written, and how many rows or tokens they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from finescope.errors import InputError


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Return the shares that are written as ``NAME=X``, by name.

    Raises:
        InputError: a text of another form, a share that isn't a positive number, or a name that comes twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not name or not (math.isfinite(share) and share > 0):
            raise InputError(f"share {text!r} is not of the form NAME=X with a number X above 0")
        if name in found:
            raise InputError(f"two shares are given to {name!r}")
        found[name] = share
    return found


def split(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many of ``total`` each name gets: in proportion, and the rest to the largest remainders.

    Among equal remainders the first name comes first (Hamilton's method).

    Raises:
        InputError: a share that isn't a positive number.
    """
    wrong = [name for name, share in shares.items() if not (math.isfinite(share) and share > 0)]
    if wrong:
        raise InputError(f"the share of {wrong[0]} must be a positive number, got {shares[wrong[0]]}")
    whole = math.fsum(shares.values())
    exact = {name: total * share / whole for name, share in shares.items()}
    counts = {name: math.floor(number) for name, number in exact.items()}
    names = list(shares)
    order = sorted(names, key=lambda name: (counts[name] - exact[name], names.index(name)))
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts

"""Shares of a whole: how they are written, and how many rows or tokens they come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from finescope.errors import InputError


def written_shares(name: str) -> str:
    """Return in words how shares are written, with what stands for the name."""
    return f"texts of the form {name}=X with a number X above 0"


def is_share(text: str) -> bool:
    """Return whether a text is of the form ``NAME=X``."""
    try:
        return bool(parse_shares([text]))
    except InputError:
        return False


def named_twice(texts: Sequence[str]) -> str | None:
    """Return a name to which two of the texts, ``NAME=X`` each, give a share; None if there is none."""
    return repeated([text.rpartition("=")[0] for text in texts])


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that was there before; None if all differ."""
    return next((name for at, name in enumerate(names) if name in names[:at]), None)


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
        found[name] = share
    twice = named_twice(texts)
    if twice is not None:
        raise InputError(f"two shares are given to {twice!r}")
    return found


def unequal_shares(shares: Iterable[str], names: Iterable[str]) -> str:
    """Return the words that refuse shares of other names than there are."""
    return f"give a share to each of the sets {', '.join(names)}; got {', '.join(shares)}"


def split(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many of ``total`` each name gets: in proportion, and the rest to the largest remainders.

    Among equal remainders the first name comes first (Hamilton's method).

    Raises:
        InputError: a share that isn't a positive number.
    """
    wrong = [name for name, share in shares.items() if not (math.isfinite(share) and share > 0)]
    if wrong:
        raise InputError(f"the share of {wrong[0]} must be a positive number, got {shares[wrong[0]]}")
    # Of the decimal numbers that were written, so that equal remainders are equal, and none is too large.
    written = {name: Fraction(str(float(share))) for name, share in shares.items()}
    whole = sum(written.values())
    exact = {name: total * share / whole for name, share in written.items()}
    counts = {name: math.floor(number) for name, number in exact.items()}
    names = list(shares)
    order = sorted(names, key=lambda name: (counts[name] - exact[name], names.index(name)))
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts

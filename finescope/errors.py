"""The exceptions a caller may want to catch, and the suggestion that goes with a misspelt name.

API misuse stays ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FineScopeError(Exception):
    """Base of every error that FineScope raises on purpose about data, files or configuration.

    The message names the thing that is wrong, the place (file, line, row, option) and the remedy.
    """


class InputError(FineScopeError, ValueError):
    """Bad data or a bad option from the user: the run can't go on until it is corrected."""


class ReadError(InputError):
    """A user's file couldn't be read just now: its medium or the network failed, not what stands in it."""


class StoreError(FineScopeError):
    """A file of ours is missing, truncated, corrupt, from another input, or can't be written."""


def nearest_names(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return the known names that resemble a misspelt one, the nearest first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean x?" for the known name that is nearest, or an empty string."""
    near = nearest_names(name, known)
    return f"did you mean {prefix}{near[0]}?" if near else ""

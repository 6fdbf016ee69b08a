"""Rounding activations to a narrow dtype, and what is done where it can't hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finescope.activations.batches import TooLargeError
from finescope.progress import Reporter
from finescope.storage.manifest import begun_with

if TYPE_CHECKING:
    from finescope.activations import ActivationTap

_Result = TypeVar("_Result")
WIDE = "bfloat16"
"""Takes the place of float16 where that can't hold the activations: as many bytes, float32's range."""


def rounded_work(
    work: Callable[[ActivationTap, str], _Result],
    tap: ActivationTap,
    dtype: str,
    folder: Path,
    *,
    reporter: Reporter,
    overwrite: bool = False,
) -> _Result:
    """Do work on activations rounded to ``dtype``, and all of it again in bfloat16 if they don't fit.

    What a folder holds is of one dtype: what was begun in float16 is thrown away then, and a killed run that
    had got as far as bfloat16 goes on in it.

    Args:
        work: writes into the folder; takes the tap and "resume" or "overwrite".
        tap: model and layer.
        dtype: float16, bfloat16 or float32.
        folder: what the work writes to.
        reporter: told of it.
        overwrite: begin anew whatever the folder holds.

    Raises:
        TooLargeError: they don't fit the dtype, which isn't float16.
    """
    if dtype == "float16" and not overwrite:
        begun = begun_with(folder) or {}
        dtype = WIDE if begun.get("tap", {}).get("activation_dtype") == WIDE else dtype
    try:
        return work(tap.rounding_to(dtype), "overwrite" if overwrite else "resume")
    except TooLargeError as error:
        if dtype != "float16":
            raise
        reporter.say(f"{error.what}: going on in {WIDE}, from the first row")
    return work(tap.rounding_to(WIDE), "overwrite")

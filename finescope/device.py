"""The device that a name stands for, and how many processes were started together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from finescope.errors import InputError

if TYPE_CHECKING:
    import torch


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device by name, tried with a tensor; ``auto`` is a CUDA device if there is one, else the CPU.

    Raises:
        InputError: there is no such device, this torch isn't built for it, or it holds no values (meta).
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tensor = torch.zeros(1, device=device)
        tensor.cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} can't be used: {str(error).splitlines()[0]}") from error
    return tensor.device


def launched_processes() -> int:
    """Return how many processes a launcher such as torchrun started with this one; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1

"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 1 << 20


def give_back_large_blocks() -> None:
    """Let glibc hand large blocks back to the system as soon as they are freed.

    Left alone it raises the size from which it does so, up to 32 MiB, whenever such a block is freed. A model
    that is run on batches of ever new sizes then leaves a heap full of holes: hundreds of megabytes after
    some thousand texts, and more with every thousand. Other allocators are left as they are.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
    except (AttributeError, OSError):  # another C library
        return

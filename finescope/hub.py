"""Is the Hugging Face hub there? Asked once, in seconds, so that no run hangs without a network."""

from __future__ import annotations

import functools
import os
import threading
import urllib.error
import urllib.request

_TRUE = {"1", "ON", "YES", "TRUE"}


def offline_by_choice() -> bool:
    """Return whether the environment forbids the hub (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    return any(
        os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


@functools.cache
def reachable(timeout: float = 5.0) -> bool:
    """Return whether the hub answers within ``timeout`` seconds; asked once a process.

    The question runs in a thread of its own: resolving a name has no time limit in the standard library, and
    without a network it can block for half a minute.
    """
    if offline_by_choice():
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answered, whatever it said
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, name="finescope-hub", daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()

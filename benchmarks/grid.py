"""The sizes that are measured: those that decide, and, marked big, the rest of the grid."""

from __future__ import annotations

from typing import Any

import pytest

# B, D, F, K
ENCODER = [
    (4096, 512, 16384, 32),
    (1024, 512, 16384, 32),
    (512, 2048, 65536, 64),
    (1, 512, 16384, 32),
    (64, 512, 16384, 32),
    (2048, 384, 16384, 16),
    (256, 4096, 16384, 64),
]
ENCODER_BIG = [
    (8192, 512, 16384, 32),
    (1, 4096, 131072, 64),
    (64, 4096, 131072, 64),
    (1024, 768, 131072, 256),
    (1024, 1024, 65536, 32),
    (4096, 384, 65536, 64),
    (1024, 4096, 32768, 128),
    (8192, 768, 32768, 16),
]
# Data that isn't Gaussian: B, D, F, K.
ENCODER_KINDS = {
    "real": [(4096, 384, 16384, 32), (1024, 384, 16384, 32)],
    "heavy-tailed": [(4096, 512, 16384, 32), (1024, 512, 16384, 32), (512, 2048, 65536, 64)],
    "common mean": [(1024, 512, 16384, 32)],
}

# B, D, F, and how many latents of a row exceed their thresholds.
THRESHOLDS = [(4096, 512, 16384, 64), (1, 512, 16384, 64), (1024, 2048, 16384, 64)]
THRESHOLDS_BIG = [(512, 2304, 65536, 128), (4096, 512, 16384, 2048)]

# Q, N, D, k
SEARCH = [
    (64, 200_000, 384, 100),
    (1024, 200_000, 384, 100),
    (1, 200_000, 384, 100),
    (64, 200_000, 128, 1),
    (64, 100_000, 768, 10),
    (64, 200_000, 384, 1000),
    (64, 100_000, 1536, 100),
]
SEARCH_BIG = [
    (1, 2_000_000, 384, 10),
    (64, 2_000_000, 384, 100),
    (1024, 2_000_000, 128, 10),
    (1024, 2_000_000, 384, 100),
    (1, 2_000_000, 1536, 100),
    (64, 2_000_000, 1536, 1000),
]
SEARCH_KINDS = {
    "real": [(64, 60_000, 384, 100), (1024, 60_000, 384, 100)],
    "heavy-tailed": [(64, 200_000, 384, 100), (1024, 100_000, 768, 100)],
    "common mean": [(64, 200_000, 384, 100)],
}


def cases(
    usual: list[tuple[int, int, int, int]],
    big: list[tuple[int, int, int, int]],
    kinds: dict[str, list[tuple[int, int, int, int]]],
    letters: str,
) -> list[Any]:
    """pytest parameters (kind, size), named after what they are."""
    rows = [("gaussian", size, False) for size in usual] + [("gaussian", size, True) for size in big]
    rows += [(kind, size, False) for kind, sizes in kinds.items() for size in sizes]
    found = []
    for kind, size, is_big in rows:
        name = "-".join(f"{letter}{value}" for letter, value in zip(letters, size, strict=True))
        marks = [pytest.mark.big] if is_big else []
        found.append(pytest.param(kind, size, id=f"{name}-{kind.replace(' ', '-')}", marks=marks))
    return found

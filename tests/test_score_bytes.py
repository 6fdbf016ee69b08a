"""A score is the same number on every machine: in each byte, whatever NumPy, threads or BLAS are there.

Whatever goes through a library's vectorised logarithm, or through LAPACK, differs in the last place between
machines; a selection of one machine could then not be made again on another.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

from finescope.curation.scoring.scorers import TABLE
from finescope.curation.scoring.weighting import logarithm
from finescope.ops import native

SCRIPT = """
import hashlib, json
import numpy as np
from finescope import SparseCodes
from finescope.curation import Evidence, PRESETS, Scoring, Spaces
from finescope.curation.scoring.scorers import TABLE
from finescope.curation.scoring.weighting import idf_of
import torch

def evidence(rows, seed):
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, 70)) * (rng.random((rows, 70)) < 0.2)
    dense[:, 0] = 1.0
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 40, 12)) for _ in range(rows)]
    codes = SparseCodes.from_dense(torch.from_numpy(dense.astype(np.float32)))
    means = (rng.random((rows, 33)) @ np.diag(1.0 + np.arange(33))).astype(np.float32)
    return Evidence(codes, "", texts, torch.from_numpy(means), rng.integers(1, 9, rows))

corpus, targets = Spaces(evidence(1500, 1)), evidence(9, 2)
weights = idf_of(np.arange(30_000), 30_000)
found = {"idf": hashlib.sha256(weights.tobytes()).hexdigest()}
for name in [*PRESETS, *TABLE]:
    chosen = {"recipe": name} if name in PRESETS else {"scorer": name}
    scoring = Scoring(corpus, targets, **chosen)
    total = scoring.contributions(np.arange(40)).total()
    found[name] = hashlib.sha256(scoring.score().score.tobytes() + total.tobytes()).hexdigest()
print(json.dumps(found))
"""

CPU = native.module("cpu")
LEVELS = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
MACHINES = {
    "numpy without its vector kernels": {"NPY_DISABLE_CPU_FEATURES": " ".join(LEVELS)},
    "another BLAS kernel, one thread": {"OPENBLAS_CORETYPE": "Nehalem", "OMP_NUM_THREADS": "1"},
    "our scalar kernels": {"FINESCOPE_CPU_ISA": "scalar"},
}


def scored(**machine: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, **machine},
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    found = scored()
    assert {"idf", *TABLE} < set(found)
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_every_scorer_gives_the_same_bytes(here: dict[str, str], machine: str) -> None:
    assert scored(**MACHINES[machine]) == here


def test_logarithms_are_right_to_two_units_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([2.0 ** rng.uniform(-60, 60, 500), 1 + rng.uniform(-1e-3, 1e-3, 500)])
    with localcontext() as context:
        context.prec = 40
        for number, found in zip(numbers.tolist(), logarithm(numbers).tolist(), strict=True):
            exact = Decimal(number).ln()
            assert abs(Decimal(found) - exact) <= 2 * Decimal(math.ulp(float(exact)))
    assert logarithm(np.array([1.0])).tolist() == [0.0]


def test_bytes_of_logarithms() -> None:
    """As written down on one machine: no other may give other ones."""
    numbers = np.array([3.0, 70_001 / 13, 0.75, 1e9 + 1])
    assert [value.hex() for value in logarithm(numbers)] == [
        "0x1.193ea7aad030bp+0",
        "0x1.12ec0e607b6d9p+3",
        "-0x1.269621134db92p-2",
        "0x1.4b927f3304b3bp+4",
    ]

"""The CUDA kernels' own source, compiled for the CPU, passes the suites of the CPU kernels: same bytes.

``cuda_on_cpu/`` compiles kernels and bindings as C++ and registers them where the CPU's would be; each suite
below then runs in a process of its own, through the dispatcher, its threads in an order drawn from a seed. A
result that depends on the seed lacks a barrier. What needs a device to be seen (speed, blocks that run at the
same time, streams) is for the tests marked ``requires_cuda``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cuda_on_cpu import build as emulator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FINESCOPE_TEST_CUDA_ON_CPU" in os.environ, reason="runs inside itself"),
]

ROOT = Path(__file__).resolve().parent.parent
# File: which of its tests ("" for all). Left out are the default bodies, which are not kernels, and what
# takes long without adding a kernel or a boundary.
SUITES = {
    "test_cuda_sparse.py": "",
    "test_native_sparse_search.py": "",
    "test_native_pool.py": "",
    "test_native_training.py": "",
    "test_native_decode.py": "",
    "test_reference.py": "(sparse or pool) and not default",
    "test_edges.py": "not encode and not dense and not default",
    "test_cuda_topk.py": "",
    "test_cuda_threshold.py": "",
    "test_threshold_encode.py": "(types or hard or finite or beyond or affine or views) and not default",
    "test_autograd.py": "decode or helpers",
    "test_checks_agree.py": "",
    "test_sparse_matmul.py": "",
    "test_opcheck.py": "float32 and (decode or training or sparse) or pool",
}
# All once, and those whose kernels have most barriers and exchanges in another order of their threads.
RUNS = [*((suite, "1") for suite in SUITES), *((suite, "20") for suite in list(SUITES)[:4])]


@pytest.fixture(scope="module")
def module() -> Path:
    """The CUDA object compiled for the CPU."""
    return emulator.build(ROOT / "build" / "cuda-on-cpu")


def run(module: Path, suite: str, seed: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "FINESCOPE_TEST_CUDA_ON_CPU": str(module),
        "FINESCOPE_FIBER_ORDER": seed,
        "OMP_NUM_THREADS": "1",
    }
    chosen = ["-k", SUITES[suite]] if SUITES[suite] else []
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--run-slow", f"tests/{suite}", *chosen]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(module: Path) -> dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]]:
    """The runs, as many at a time as there are processors."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    return {(suite, seed): pool.submit(run, module, suite, seed) for suite, seed in RUNS}


@pytest.mark.parametrize(("suite", "seed"), RUNS)
def test_suite(
    results: dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]], suite: str, seed: str
) -> None:
    done = results[suite, seed].result()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed.group(1)) > 0


BAD_DATA = """
import sys, torch
sys.path.insert(0, "tests")
import conftest
op = torch.ops.finescope
values, rows = torch.ones(6, 3), torch.ones(6, 4)
bad = torch.zeros(6, 3, dtype=torch.int64)
bad[4, 2] = 9
row = torch.tensor([0, 2, 3]), torch.tensor([1, 9, 2], dtype=torch.int32), torch.ones(3)
good = torch.tensor([0, 1]), torch.tensor([1], dtype=torch.int32), torch.ones(1)
calls = {
    "sparse_decode": lambda: op.sparse_decode(values, bad, torch.ones(9, 4), None),
    "sampled_dot": lambda: op.sampled_dot(rows, bad, torch.ones(9, 4)),
    "scatter_rows": lambda: op.scatter_rows(values, bad, rows, 9),
    "scatter_values": lambda: op.scatter_values(values, bad, 9),
    "decode_residual": lambda: op.decode_residual(values, bad, torch.ones(9, 4), None, rows, 2),
    "weight_grads": lambda: op.weight_grads(values, values, bad, rows, rows[None], 3, 9),
    "pool_codes": lambda: op.pool_codes(values, bad - 9, torch.tensor([0, 6]), "sum", 2),
    "pool_offsets": lambda: op.pool_codes(values, bad, torch.tensor([0, 5, 3, 6]), "sum", 2),
    "pool_ends": lambda: op.pool_codes(values, bad, torch.tensor([0, 5]), "sum", 2),
    "sparse_cosine_topk": lambda: op.sparse_cosine_topk(*good, *row, 9, 1),
    "queries": lambda: op.sparse_cosine_topk(*row, *good, 9, 1),
    "pointers": lambda: op.sparse_cosine_topk(*good, row[0] + 1, *row[1:], 10, 1),
    "sparse_pair_scores": lambda: op.sparse_pair_scores(*good, *row, 10, torch.tensor([[2]])),
}
try:
    calls[sys.argv[1]]()
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("sparse_decode", "indices holds 9 at [4, 2], which is outside 0..8"),
        ("sampled_dot", "sampled_dot: indices holds 9 at [4, 2], which is outside 0..8"),
        ("scatter_rows", "scatter_rows: indices holds 9 at [4, 2], which is outside 0..8"),
        ("scatter_values", "scatter_values: indices holds 9 at [4, 2], which is outside 0..8"),
        ("decode_residual", "decode_residual: indices holds 9 at [4, 2], which is outside 0..8"),
        ("weight_grads", "weight_grads: indices holds 9 at [4, 2], which is outside 0..8"),
        ("pool_codes", "indices holds -9 with a positive value; latents start at 0"),
        ("pool_offsets", "offsets falls after document 1"),
        ("pool_ends", "offsets must run from 0 to B=6, got 0 to 5"),
        ("sparse_cosine_topk", "c_indices holds 9 in row 0, which is outside 0..8"),
        ("queries", "q_indices holds 9 in row 0, which is outside 0..8"),
        ("pointers", "c_indptr must rise from 0 to nnz=3"),
        ("sparse_pair_scores", "ids holds 2 at [0, 0], which is outside -1..1"),
    ],
)
def test_bad_data_stop_the_kernel_with_a_message(module: Path, call: str, words: str) -> None:
    """Before anything is read with them, and in words that name them."""
    environment = {**os.environ, "FINESCOPE_TEST_CUDA_ON_CPU": str(module), "FINESCOPE_FIBER_ORDER": "7"}
    done = subprocess.run(
        [sys.executable, "-c", BAD_DATA, call],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert "a kernel stopped" in done.stdout

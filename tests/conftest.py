"""Shared set-up: seeds, marks, and the options that choose slow tests."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# The build and the benchmarks of this checkout; last, so that the package may be another, installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))

# A test must never wait for, or depend on, the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# Workers of pytest-xdist share the processors.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // _WORKERS))

# The CUDA kernels compiled for the CPU (tests/cuda_on_cpu), to stand in for the CPU operations.
EMULATED = os.environ.get("FINESCOPE_TEST_CUDA_ON_CPU")
if EMULATED:
    os.environ["FINESCOPE_NATIVE"] = "0"
    import finescope.ops  # noqa: F401  defines the operations

    _spec = importlib.util.spec_from_file_location("_C_cuda_on_cpu", EMULATED)
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])


def _has_kernel(key: str) -> bool:
    import finescope.ops  # noqa: F401  registers the operations

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("finescope::sparse_decode", key))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--quick", action="store_true", help="each test once, with the first of its parameters")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "requires_native": None if _has_kernel("CPU") else "the compiled CPU operations are not loaded",
        "requires_cuda": None if torch.cuda.is_available() and _has_kernel("CUDA") else "no CUDA device",
        "slow": None if config.getoption("--run-slow") else "slow; use --run-slow",
    }
    if config.getoption("--quick"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        chosen = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]
    for item in items:
        for mark, reason in reasons.items():
            if reason and mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
        # A kernel of a device cannot raise; it stops, and takes the device's other work with it.
        if "names_bad_data" in item.keywords and (EMULATED or "cuda" in item.name):
            item.add_marker(pytest.mark.skip(reason="kernels on a device stop where the data are bad"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where ``backends.op`` runs: the CPU, or a GPU."""
    from support import backends

    backends.op.device = request.param
    yield request.param
    backends.op.device = "cpu"


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One entry of ``backends.ISAS``: the CPU kernels of an instruction set, or the operations on a GPU."""
    from support import backends

    if request.param in ("cuda", "emulated"):
        backends.op.device = "cuda" if request.param == "cuda" else "cpu"
        yield request.param
        backends.op.device = "cpu"
        return
    before = backends.CPU.active_isa()
    backends.CPU.set_isa(request.param)
    yield request.param
    backends.CPU.set_isa(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from support import backends

    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", backends.ISAS, indirect=True)
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", backends.DEVICES, indirect=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small job, of ``support.cli_job``, unless a file makes one of its own."""
    from support.cli_job import save_job

    return save_job(tmp_path_factory.mktemp("job"), animals=20, sky=40)


@pytest.fixture(scope="module")
def one(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, of four shards."""
    from support.run_files import in_small_shards

    return in_small_shards(job, tmp_path_factory.mktemp("one") / "run")


@pytest.fixture
def shards_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have plans made in small shards, in this process."""
    from support.run_files import small_shards

    small_shards(monkeypatch)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

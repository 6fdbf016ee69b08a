"""How everything here is measured: equality first, then interleaved runs, medians, and ratios of one run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import finescope
from finescope import diagnostics

RESULTS = Path(__file__).parent / "results"


def interleave(
    work: Mapping[str, Callable[[], object]], rounds: int = 7, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time several functions in turn, round by round, so that a noisy neighbour hits all of them alike.

    Args:
        work: what to run, by name.
        rounds: timed calls of each.
        warm_up: untimed calls of each.

    Returns:
        seconds of every timed call, by name.
    """
    for _ in range(warm_up):
        for run in work.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def compare(
    benchmark: Any, ours: Callable[[], object], peers: Mapping[str, Callable[[], object]], rounds: int = 7
) -> dict[str, float]:
    """Measure ours against peers and put the medians and ratios into pytest-benchmark's record.

    Args:
        benchmark: pytest-benchmark's fixture.
        ours: the call that is judged.
        peers: the calls it is judged against, and, by the name "limit", a bare loop of the same operations.
        rounds: timed calls of each.

    Returns:
        how many times longer each peer took (median over median).
    """
    times = interleave({"ours": ours, **peers}, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: medians[name] / medians["ours"] for name in peers}
    benchmark.extra_info["median_s"] = medians
    benchmark.extra_info["ratio"] = ratios
    benchmark.extra_info["machine"] = machine()
    # pytest-benchmark prints what it timed itself; one more round of ours gives it that.
    benchmark.pedantic(ours, rounds=1, iterations=1)
    print("  " + "  ".join(f"{name}: {ratio:.2f}x" for name, ratio in ratios.items()))
    return ratios


def machine() -> dict[str, Any]:
    """What a number depends on: processor, instruction set, threads, versions."""
    native = diagnostics.collect()["native"]["cpu"]
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "finescope": finescope.__version__,
        "isa": native.get("active", "none: pure torch"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

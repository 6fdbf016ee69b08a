"""How everything here is measured: equality first, then interleaved runs, medians, and ratios of one run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import finescope
from finescope import diagnostics
from finescope.ops import native

RESULTS = Path(__file__).parent / "results"
# Seconds that one benchmark may take, roughly: what is quick gets more rounds.
BUDGET = float(os.environ.get("FINESCOPE_BENCH_SECONDS", "8"))
# Seconds of rest before every timed call: a library's threads go on spinning after its call, and whoever
# comes next would pay for them (OpenBLAS's took up to 50 ms of a search of 7).
REST = 0.05
# Only ours: what comparing two commits needs.
ALONE = os.environ.get("FINESCOPE_BENCH_ALONE", "") == "1"

Work = Callable[[], object]


def interleave(work: Mapping[str, Work], rounds: int | None = None) -> dict[str, list[float]]:
    """Time several functions in turn, round by round, so that a noisy neighbour hits all of them alike.

    Args:
        work: what to run, by name.
        rounds: timed calls of each after one that isn't timed; 3 to 101 by their time if None. What alone
            would take too long is timed twice.

    Returns:
        seconds of every timed call, by name.
    """
    first = {name: _time(run) for name, run in work.items()}
    slow = {name for name, seconds in first.items() if rounds is None and seconds > BUDGET / 4}
    if rounds is None:
        one_round = sum(seconds + REST for name, seconds in first.items() if name not in slow)
        rounds = min(101, max(3, int(BUDGET / max(one_round, 1e-6)))) | 1
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            if number < 2 or name not in slow:
                times[name].append(_time(run))
    return times


def _time(run: Work) -> float:
    time.sleep(REST)
    seconds = _once(run)
    # After a rest threads have to be woken, which a short call would be measured with.
    return _once(run) if seconds < REST else seconds


def _once(run: Work) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass
class Limit:
    """A bare loop of the same multiplications, and a bare reading of the same bytes: the longer of the two.

    The loop is the fastest there is, of int8 wherever the processor has such a screen, also where the data
    allow only 16 bits.

    Attributes:
        products: multiplications of the work that is measured.
        depth: terms of one inner product.
        read: a matrix that has to be read once, or None where the products cost far more.
    """

    products: int
    depth: int
    read: torch.Tensor | None = None

    # A few rows and columns of any depth fit into the second-level cache, and into whole tiles.
    ROWS, COLUMNS = 84, 64
    #: a measurement stands for the whole work, but is not longer or shorter than this; seconds
    SPAN = (0.02, 0.25)

    def work(self) -> dict[str, Work]:
        """What to time; how much of the work it stands for is found out in the first call."""
        module = native.module("cpu")
        if module is None:
            return {}
        self._module = module
        self._kind = "int8"
        try:
            self._multiply(1)
        except ValueError:  # no such screen on this processor
            self._kind = "auto"
        start = time.perf_counter()
        self._multiply(50)
        done = self._done
        rate = done / (time.perf_counter() - start)
        self._repeats = max(
            1, int(min(max(self.products, rate * self.SPAN[0]), rate * self.SPAN[1]) * 50 / done)
        )
        found: dict[str, Work] = {"limit: multiply": lambda: self._multiply(self._repeats)}
        if self.read is not None:
            found["limit: read"] = self._read
        return found

    def seconds(self, times: Mapping[str, list[float]]) -> float:
        """The time that the whole work would take."""
        scale = self.products / self._done
        multiply = statistics.median(times["limit: multiply"]) * scale
        return max(multiply, statistics.median(times.get("limit: read", [0.0])))

    def _multiply(self, repeats: int) -> None:
        self._done = self._module.bare_multiply(self._kind, self.ROWS, self.COLUMNS, self.depth, repeats)

    def _read(self) -> None:
        if self.read is not None:
            self.read.view(torch.int32).max()


def compare(
    benchmark: Any,
    ours: Work,
    peers: Mapping[str, Work],
    rounds: int | None = None,
    limit: Limit | None = None,
    recall: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Measure ours against peers and put the medians and ratios into pytest-benchmark's record.

    Args:
        benchmark: pytest-benchmark's fixture.
        ours: the call that is judged.
        peers: the calls it is judged against.
        rounds: timed calls of each; by their time if None.
        limit: what the same multiplications would take with nothing around them.
        recall: of the peers that answer approximately, the share of our answer that they found.

    Returns:
        how many times longer each peer took (median over median); for "limit" the part of it that ours
        reaches, 1 at best.
    """
    bare = {} if limit is None or ALONE else limit.work()
    times = interleave({"ours": ours, **({} if ALONE else peers), **bare}, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    if limit is not None and bare:
        medians = {name: value for name, value in medians.items() if name not in bare}
        medians["limit"] = limit.seconds(times)
    ratios = {name: value / medians["ours"] for name, value in medians.items() if name != "ours"}
    benchmark.extra_info["median_s"] = medians
    benchmark.extra_info["ratio"] = ratios
    benchmark.extra_info["recall"] = dict(recall or {})
    benchmark.extra_info["machine"] = machine()
    # pytest-benchmark prints what it timed itself; one more round of ours gives it that.
    benchmark.pedantic(ours, rounds=1, iterations=1)
    print("  " + "  ".join(f"{name}: {ratio:.2f}x" for name, ratio in ratios.items()))
    if recall:
        print("  recall: " + "  ".join(f"{name}: {found:.4f}" for name, found in recall.items()))
    return ratios


def shares(benchmark: Any, work: Work, found: Mapping[str, float]) -> None:
    """Put shares of one, which aren't times, into pytest-benchmark's record."""
    benchmark.extra_info["share"] = dict(found)
    benchmark.extra_info["machine"] = machine()
    benchmark.pedantic(work, rounds=1, iterations=1)
    print("  " + "  ".join(f"{name}: {100 * share:.3g} %" for name, share in found.items()))


def machine() -> dict[str, Any]:
    """What a number depends on: processor, instruction set, threads, versions."""
    loaded = diagnostics.collect()["native"]["cpu"]
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "finescope": finescope.__version__,
        "isa": loaded.get("active", "none: pure torch"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

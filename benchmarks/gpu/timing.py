"""How to measure on a device: events, warm-up, rounds in turn, medians, peak memory, poisoned memory."""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]


class Bench:
    """One section's measurements, written to a file after each of them."""

    def __init__(self, device: str, tiny: bool, path: Path, seconds: float) -> None:
        self.device, self.tiny, self.path = torch.device(device), tiny, path
        self.cuda = self.device.type == "cuda"
        self.deadline = time.monotonic() + seconds
        # Fresh data every time: kept in the record, so that a failure can be repeated.
        self.seed = int(os.environ.get("FINESCOPE_BENCH_SEED") or int.from_bytes(os.urandom(4), "little"))
        torch.manual_seed(self.seed)
        self.record: dict[str, Any] = {
            "seed": self.seed,
            "checks": {},
            "timings": [],
            "ratios": [],
            "notes": [],
            "breakdowns": {},
        }
        self.save()

    def save(self) -> None:
        """Write what there is so far."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.record, indent=1))
        os.replace(fresh, self.path)

    def note(self, text: str) -> None:
        """Record and print a remark."""
        print(f"  {text}", flush=True)
        self.record["notes"].append(text)
        self.save()

    def left(self) -> float:
        """Seconds that the section still has."""
        return self.deadline - time.monotonic()

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def check(self, name: str, work: Work) -> bool:
        """Run a comparison with the truth; what it raises is the record's reason."""
        try:
            self.poison()
            work()
            self.synchronize()
            self.record["checks"][name] = "passed"
        except Exception as error:
            self.record["checks"][name] = f"failed: {_words(error)}"
            traceback.print_exc()
        print(f"  check {name}: {self.record['checks'][name]}", flush=True)
        self.save()
        return self.record["checks"][name] == "passed"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def poison(self, size: int = 1 << 30) -> None:
        """Fill memory that the next allocations get with bytes that are NaN as floats and -1 as integers."""
        if self.cuda:
            try:
                blocks = [
                    torch.full((count,), 255, dtype=torch.uint8, device=self.device)
                    for count in (size, 16 << 20, 1 << 20, 1 << 16, 512)
                ]
            except torch.OutOfMemoryError:
                return
            del blocks

    def free(self) -> None:
        """Give memory back that nothing refers to any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def seconds(self, work: Work) -> float:
        """Time one call."""
        if not self.cuda:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def peak(self, work: Work) -> int | None:
        """Bytes allocated at the peak of a call beyond those before it."""
        if not self.cuda:
            work()
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.synchronize()
        return int(torch.cuda.max_memory_allocated(self.device) - before)

    def measure(
        self, name: str, works: Mapping[str, Work], *, limit: float = 20.0, most: int = 15, warm_up: int = 2
    ) -> dict[str, float]:
        """Time several functions in turn, round by round.

        Args:
            name: of the comparison.
            works: what to run; one that raises is reported and left out.
            limit: seconds for all rounds; at least three are made.
            most: rounds at most.
            warm_up: untimed calls of each; the memory of the last is measured.

        Returns:
            median seconds by name.
        """
        usable: dict[str, Work] = {}
        memory: dict[str, int | None] = {}
        failed: dict[str, str] = {}
        expected = 0.0
        for label, work in works.items():
            if self.left() < 0:
                failed[label] = "no time left"
                continue
            try:
                for _ in range(warm_up - 1):
                    work()
                memory[label] = self.peak(work)
                once = self.seconds(work)
                # Known even if the next one takes all the time that is left, to be compiled for example.
                print(f"  {name}: {label}: once {once * 1e3:.3f} ms", flush=True)
                expected += once
                usable[label] = work
            except Exception as error:  # a peer that fails is a result, not an end
                failed[label] = _words(error)
                self.free()
        rounds = max(3, min(most, int(min(limit, max(self.left(), 1.0)) / max(expected, 1e-6))))
        times: dict[str, list[float]] = {label: [] for label in usable}
        for _ in range(rounds):
            for label, work in usable.items():
                times[label].append(self.seconds(work))
        medians = {label: statistics.median(values) for label, values in times.items()}
        for label, median in medians.items():
            extra = "" if memory[label] is None else f", peak extra {memory[label] / 2**20:.0f} MiB"
            spread = (max(times[label]) - min(times[label])) / median
            print(f"  {name}: {label}: {median * 1e3:.3f} ms ±{spread / 2:.0%}{extra}", flush=True)
        for label, reason in failed.items():
            print(f"  {name}: {label}: {reason}", flush=True)
        self.record["timings"].append(
            {"name": name, "seconds": times, "median_s": medians, "peak_bytes": memory, "failed": failed}
        )
        self.save()
        return medians

    def breakdown(self, name: str, work: Work, most: int = 12) -> None:
        """Print and record what one call spends its time on, by kernel, as torch's profiler sees it.

        The difference between the kernels' sum and the call's own time is what the device waited for.
        """
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        try:
            self.synchronize()
            with profile(activities=activities) as profiled:
                work()
                self.synchronize()
            kernels = sorted(
                (
                    {"kernel": _short(event.key), "count": event.count, "ms": _spent(event, self.cuda) / 1000}
                    for event in profiled.key_averages()
                    if _spent(event, self.cuda) > 0
                ),
                key=lambda kernel: -float(kernel["ms"]),
            )
        except Exception as error:  # not every machine lets itself be profiled
            self.note(f"{name}: no breakdown: {_words(error)}")
            return
        self.record["breakdowns"][name] = kernels[: 3 * most]
        total = sum(float(kernel["ms"]) for kernel in kernels)
        print(f"  {name}: {total:.3f} ms in kernels", flush=True)
        for kernel in kernels[:most]:
            print(f"    {kernel['ms']:9.3f} ms  {kernel['count']:5d} x  {kernel['kernel']}", flush=True)
        self.save()

    def peaks(self) -> dict[str, int]:
        """Peak bytes of what the last comparison ran."""
        return {
            name: size for name, size in self.record["timings"][-1]["peak_bytes"].items() if size is not None
        }

    def ratio(self, work: str, against: str, value: float | None, target: float | None = None) -> None:
        """Record how many times better ours is, and what it must be; None where it could not be measured."""
        self.record["ratios"].append({"work": work, "against": against, "ratio": value, "target": target})
        self.save()

    def compare(
        self, work: str, medians: Mapping[str, float], ours: str, targets: Mapping[str, float | None]
    ) -> None:
        """Record ours against others by their medians."""
        for name, target in targets.items():
            known = ours in medians and name in medians
            self.ratio(work, name, medians[name] / medians[ours] if known else None, target)


def _spent(event: Any, cuda: bool) -> float:
    """Microseconds of a profiled event on the device that is measured."""
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total)


def _short(kernel: str) -> str:
    """A kernel's name without the places that all of them share."""
    return re.sub(r"\bvoid |\(anonymous namespace\)::|finescope::cuda::|at::native::", "", kernel)[:90]


def _words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"

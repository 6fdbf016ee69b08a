"""What the card can do: bytes copied per second, bf16 and fp32 products per second, bytes from the host."""

from __future__ import annotations

import torch

from benchmarks.gpu.timing import Bench


def run(bench: Bench) -> None:
    """Measure the ceilings that the other sections are held against."""
    side, count = (256, 1 << 20) if bench.tiny else (8192, 1 << 31)
    source = torch.randint(0, 255, (count,), device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    left, right = (bench.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(side, side, device=bench.device, dtype=torch.bfloat16)
    works = {"copy": lambda: target.copy_(source), "bf16 product": lambda: torch.mm(left, right, out=out)}
    medians = bench.measure("ceilings", works, limit=4, most=30, warm_up=3)
    found = {
        "copy_bytes_per_s": 2 * count / medians["copy"],
        "bf16_flops": 2 * side**3 / medians["bf16 product"],
    }
    if bench.cuda:
        host = torch.empty(count // 4, dtype=torch.uint8, pin_memory=True).fill_(7)
        place = target[: count // 4]
        once = bench.measure("host", {"to the device": lambda: place.copy_(host, non_blocking=True)}, limit=2)
        found["host_bytes_per_s"] = count / 4 / once["to the device"]
    bench.record["ceilings"] = found
    bench.note(", ".join(f"{name} {value:.3g}" for name, value in found.items()))

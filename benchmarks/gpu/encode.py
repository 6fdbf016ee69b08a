"""The encoder against torch's linear + relu + topk, compiled too, and against the bare product."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.timing import Bench
from benchmarks.truth import activations, check_topk, same_results
from finescope.ops import topk_encode


def dense(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What one would write in torch."""
    values, indices = torch.topk(torch.relu(torch.nn.functional.linear(x, weight, bias)), k)
    return values, indices


def run(bench: Bench) -> None:
    """B=8192 D=4096 F=131072 K=64, inputs in bfloat16 and float32."""
    b, d, f, k = (64, 96, 3000, 16) if bench.tiny else (8192, 4096, 131_072, 64)
    bench.record["size"] = {"B": b, "D": d, "F": f, "K": k}
    for dtype in (torch.bfloat16, torch.float32):
        x = bench.randn(b, d, dtype=dtype)
        weight = bench.randn(f, d, dtype=dtype).mul_(d**-0.5)
        bias = bench.randn(f, dtype=dtype).mul_(0.01)
        name = "encode, bf16 inputs" if dtype == torch.bfloat16 else "encode, fp32 inputs"
        some = x[:: max(1, b // 16)][:16]

        def equal(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias, some: Tensor = some) -> None:
            values, ids = topk_encode(some, weight, bias, k)
            check_topk(values, ids, activations(some, weight, bias))
            whole = topk_encode(x, weight, bias, k)
            step = max(1, b // 16)
            same_results((side[::step][:16] for side in whole), (values, ids))
            bench.poison()
            same_results(topk_encode(x, weight, bias, k), whole)

        bench.check(name, equal)
        measured(bench, name, x, weight, bias, k)
        del x, weight, bias, some, equal
        bench.free()


def measured(bench: Bench, name: str, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> None:
    """Time the dtype's peers; float32 ones at both of torch's precisions."""
    compiled = torch.compile(dense)
    product = torch.empty(len(x), len(weight), device=x.device, dtype=x.dtype)
    half = x.dtype == torch.bfloat16

    def at(precision: str, work: object) -> object:
        def timed() -> object:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(precision)
            try:
                return work()  # type: ignore[operator]
            finally:
                torch.set_float32_matmul_precision(before)

        return timed

    works = {"ours": lambda: topk_encode(x, weight, bias, k)}
    if half:
        works["torch bf16"] = lambda: dense(x, weight, bias, k)
        works["torch bf16, compiled"] = lambda: compiled(x, weight, bias, k)
        works["bare bf16 product"] = lambda: torch.mm(x, weight.T, out=product)
    else:
        works["torch fp32 highest"] = at("highest", lambda: dense(x, weight, bias, k))
        works["torch fp32 highest, compiled"] = at("highest", lambda: compiled(x, weight, bias, k))
        works["torch TF32"] = at("high", lambda: dense(x, weight, bias, k))
        works["bare fp32 product"] = at("highest", lambda: torch.mm(x, weight.T, out=product))
    medians = bench.measure(name, works, limit=12)
    bench.breakdown(name, works["ours"])
    flops = 2 * len(x) * len(weight) * x.shape[1]
    if "ours" in medians:
        bench.note(
            f"{name}: ours at {flops / medians['ours'] / 1e12:.0f} TFLOP/s of the dense product's work"
        )
    if half:
        targets = {"torch bf16": 2.0, "torch bf16, compiled": None, "bare bf16 product": 0.7}
    else:
        targets = {
            "torch fp32 highest": 8.0,
            "torch fp32 highest, compiled": None,
            "torch TF32": None,
            "bare fp32 product": None,
        }
    bench.compare(name, medians, "ours", targets)
    peaks = bench.peaks()
    plain = "torch bf16" if half else "torch fp32 highest"
    known = peaks.get("ours") and plain in peaks
    bench.ratio(f"{name}: peak extra memory", plain, peaks[plain] / peaks["ours"] if known else None, 20.0)

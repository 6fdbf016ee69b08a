"""A corpus in the host's memory, searched on the device: how near to the bus's bandwidth."""

from __future__ import annotations

import torch

from benchmarks.gpu.timing import Bench
from benchmarks.truth import same_results
from finescope import Index
from finescope.ops import cosine_topk


def run(bench: Bench) -> None:
    """Q=256 N=4·10^6 D=768 k=100 in float32, pageable and pinned."""
    q, n, d, k = (4, 3000, 16, 5) if bench.tiny else (256, 4_000_000, 768, 100)
    bench.record["size"] = {"Q": q, "N": n, "D": d, "k": k}
    host = torch.empty(n, d)
    for block in host.split(1 << 18):
        block.copy_(bench.randn(len(block), d))
    queries = bench.randn(q, d)
    memory = 1 << 16 if bench.tiny else 1 << 30
    indexes = {"from memory": Index(host, device=bench.device, memory=memory)}
    if bench.cuda:
        try:
            indexes["from pinned memory"] = Index(host.pin_memory(), device=bench.device, memory=memory)
        except RuntimeError as error:  # torch takes the next power of two
            bench.note(f"no pinned memory: {str(error).splitlines()[0]}")

    def equal() -> None:
        part = host[: n // 8]
        got = Index(part, device=bench.device, memory=memory).search(queries, k)
        same_results(got, cosine_topk(queries, part.to(bench.device), k))

    bench.check("search from the host", equal)
    bench.free()
    works = {name: (lambda index=index: index.search(queries, k)) for name, index in indexes.items()}
    medians = bench.measure("search from the host", works, limit=10, most=5)
    ceiling = bench.record.get("ceilings", {}).get("host_bytes_per_s")
    for name, median in medians.items():
        rate = host.nbytes / median
        bench.note(f"{name}: {rate / 1e9:.1f} GB/s")
        bench.ratio(f"search {name}: bytes per second", "pinned copy", rate / ceiling if ceiling else None)

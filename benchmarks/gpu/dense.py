"""Dense search over ten million rows on the device, against torch, faiss, cuVS and flashinfer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import Bench
from benchmarks.truth import check_topk, cosines, same_results
from finescope import Index
from finescope.ops import cosine_topk

BLOCK = 1 << 17


def blocked(queries: Tensor, corpus: Tensor, k: int, topk: Callable[..., Any] = torch.topk) -> Any:
    """Product and topk block by block, as one writes it in torch; rows have unit length already."""
    best: Any = None
    for first in range(0, len(corpus), BLOCK):
        scores, ids = topk(queries @ corpus[first : first + BLOCK].T, min(k, len(corpus) - first))
        ids = ids + first
        if best is not None:
            scores, place = torch.topk(torch.cat([best[0], scores], dim=1), k)
            ids = torch.cat([best[1], ids], dim=1).gather(1, place)
        best = scores, ids
    return best


def peers(queries: Tensor, corpus: Tensor, k: int) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The libraries that are installed, and for the others why they take no part."""
    found: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    if queries.device.type != "cuda":
        return found, dict.fromkeys(("faiss-gpu", "cuVS", "flashinfer"), "needs a GPU")
    try:
        import faiss
        import faiss.contrib.torch_utils

        resources = faiss.StandardGpuResources()
        found["faiss-gpu"] = lambda: faiss.knn_gpu(
            resources, queries, corpus, k, metric=faiss.METRIC_INNER_PRODUCT
        )
    except Exception as error:
        missing["faiss-gpu"] = f"{type(error).__name__}: {error}"
    try:
        from cuvs.neighbors import brute_force

        index = brute_force.build(corpus, metric="inner_product")
        found["cuVS"] = lambda: brute_force.search(index, queries, k)
    except Exception as error:
        missing["cuVS"] = f"{type(error).__name__}: {error}"
    try:
        import flashinfer

        found["torch product, flashinfer topk"] = lambda: blocked(
            queries, corpus, k, lambda scores, k: flashinfer.top_k(scores, k)
        )
    except Exception as error:
        missing["flashinfer"] = f"{type(error).__name__}: {error}"
    return found, missing


def run(bench: Bench) -> None:
    """Q=1024 N=10^7 D=768 k=100 in float32."""
    q, n, d, k = (16, 5000, 32, 10) if bench.tiny else (1024, 10_000_000, 768, 100)
    bench.record["size"] = {"Q": q, "N": n, "D": d, "k": k}
    corpus = torch.empty(n, d, device=bench.device)
    for block in corpus.split(1 << 20):  # normalised in place: a second copy would not fit everywhere
        block.normal_()
        block.div_(torch.linalg.vector_norm(block, dim=1, keepdim=True))
    queries = torch.nn.functional.normalize(bench.randn(q, d))
    index = Index(corpus)

    def equal() -> None:
        scores, ids = cosine_topk(queries[:8], corpus, k)
        check_topk(scores, ids, cosines(queries[:8], corpus))
        whole = cosine_topk(queries, corpus, k)
        same_results((side[:8] for side in whole), (scores, ids))
        bench.poison()
        same_results(index.search(queries, k), whole)
        same_results(cosine_topk(queries, corpus, k, screen="int8"), whole)

    bench.check("search", equal)
    bench.free()

    def at(precision: str) -> Callable[[], Any]:
        def timed() -> Any:
            torch.set_float32_matmul_precision(precision)
            try:
                return blocked(queries, corpus, k)
            finally:
                torch.set_float32_matmul_precision("highest")

        return timed

    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: index.search(queries, k),
        "ours, int8 screen": lambda: cosine_topk(queries, corpus, k, screen="int8"),
        "torch fp32 highest": at("highest"),
        "torch TF32": at("high"),
    }
    others, missing = peers(queries, corpus, k)
    for name, reason in missing.items():
        bench.note(f"{name} takes no part: {reason.splitlines()[0][:120]}")
    medians = bench.measure("search", {**works, **others}, limit=15, most=9)
    targets: dict[str, float | None] = {
        "ours, int8 screen": None,
        "torch fp32 highest": 6.0,
        "torch TF32": None,
    }
    bench.compare("search, exact fp32", medians, "ours", {**targets, **dict.fromkeys(others)})
    for name in ("ours", "ours, int8 screen"):
        bench.breakdown(f"search: {name}", works[name])
    few = queries[: max(1, q // 16)]
    medians = bench.measure(
        "few queries",
        {"ours": lambda: index.search(few, k), "torch fp32 highest": lambda: blocked(few, corpus, k)},
        limit=4,
        most=9,
    )
    bench.compare(f"search, Q={len(few)}", medians, "ours", {"torch fp32 highest": None})
    if "ours" in medians:
        bench.note(f"Q={len(few)}: {corpus.nbytes / medians['ours'] / 1e12:.2f} TB/s over the corpus")

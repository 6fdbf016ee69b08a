"""Dense search over ten million rows on the device, against torch, faiss, cuVS, flashinfer and flashlib.

And the nearest of a few thousand centres, against these and flash-kmeans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
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


def faiss_gpu(queries: Tensor, corpus: Tensor, k: int) -> Callable[[], Any]:
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    return lambda: faiss.knn_gpu(resources, queries, corpus, k, metric=faiss.METRIC_INNER_PRODUCT)


def cuvs(queries: Tensor, corpus: Tensor, k: int) -> Callable[[], Any]:
    from cuvs.neighbors import brute_force

    index = brute_force.build(corpus, metric="inner_product")
    return lambda: brute_force.search(index, queries, k)


def flashinfer_topk(queries: Tensor, corpus: Tensor, k: int) -> Callable[[], Any]:
    import flashinfer

    return lambda: blocked(queries, corpus, k, lambda scores, k: flashinfer.top_k(scores, k))


def flashlib(queries: Tensor, corpus: Tensor, k: int) -> Callable[[], Any]:
    """By squared distance, the only one it has: of rows of unit length that is the order of the cosine."""
    from flashlib import flash_knn

    return lambda: flash_knn(queries, corpus, k)


def flash_kmeans(points: Tensor, centres: Tensor, k: int) -> Callable[[], Any]:
    """The step of k-means that finds each point's centre; squared norms are made once, as it does itself."""
    try:
        from flash_kmeans.kmeans_api import euclid_assign
    except ImportError:  # before 0.3
        from flash_kmeans.assign_euclid_triton import euclid_assign_triton as assign
    else:
        assign = partial(euclid_assign, backend="triton")
    assert k == 1
    squares = torch.cat([part.square().sum(1) for part in points.split(1 << 20)])[None]
    return lambda: assign(points[None], centres[None], squares)


Peer = Callable[[Tensor, Tensor, int], Callable[[], Any]]
SEARCHES: dict[str, Peer] = {
    "faiss-gpu": faiss_gpu,
    "cuVS": cuvs,
    "torch product, flashinfer topk": flashinfer_topk,
    "flashlib": flashlib,
}
NEAREST: dict[str, Peer] = {
    "faiss-gpu": faiss_gpu,
    "cuVS": cuvs,
    "flashlib": flashlib,
    "flash-kmeans": flash_kmeans,
}


def peers(
    known: Mapping[str, Peer], queries: Tensor, corpus: Tensor, k: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The libraries that are installed, and for the others why they take no part."""
    found: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    if queries.device.type != "cuda":
        return found, dict.fromkeys(known, "needs a GPU")
    for name, prepare in known.items():
        try:
            found[name] = prepare(queries, corpus, k)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def installed(
    bench: Bench, known: Mapping[str, Peer], queries: Tensor, corpus: Tensor, k: int
) -> dict[str, Callable[[], Any]]:
    """The libraries that take part; of the others it is noted why they don't."""
    found, missing = peers(known, queries, corpus, k)
    for name, reason in missing.items():
        bench.note(f"{name} takes no part: {(reason.splitlines() or [''])[0][:120]}")
    return found


def nearest(bench: Bench) -> None:
    """The nearest of K=4096 centres for each of N=10^6 points, D=128: what k-means does in every round."""
    n, d, k = (2000, 32, 50) if bench.tiny else (1_000_000, 128, 4096)
    points = torch.nn.functional.normalize(bench.randn(n, d))
    centres = torch.nn.functional.normalize(bench.randn(k, d))

    def equal() -> None:
        scores, ids = cosine_topk(points[:256], centres, 1)
        check_topk(scores, ids, cosines(points[:256], centres))

    bench.check("nearest centre", equal)
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: cosine_topk(points, centres, 1),
        "torch fp32 highest": lambda: [
            (part @ centres.T).max(1) for part in points.split(max(1, BLOCK * BLOCK // (8 * k)))
        ],
    }
    others = installed(bench, NEAREST, points, centres, 1)
    medians = bench.measure("nearest centre", {**works, **others}, limit=6, most=9)
    targets: dict[str, float | None] = dict.fromkeys(["torch fp32 highest", *others])
    bench.compare(f"nearest of {k} centres", medians, "ours", targets)


def search(bench: Bench) -> None:
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
    others = installed(bench, SEARCHES, queries, corpus, k)
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


def run(bench: Bench) -> None:
    """Both."""
    search(bench)
    bench.free()
    nearest(bench)

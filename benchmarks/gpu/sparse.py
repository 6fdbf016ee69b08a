"""Sparse search over ten million codes on the device, against torch.sparse and the memory's bandwidth."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from benchmarks.gpu.timing import Bench
from benchmarks.truth import check_topk, same_results
from finescope import SparseCodes
from finescope.ops import sparse_cosine_topk

CHUNK = 1 << 20


def codes(bench: Bench, n: int, nnz: int, f: int, permutation: Tensor) -> SparseCodes:
    """n codes of nnz entries each, made on the device; latents as unequally common as in an autoencoder."""
    common = 1.0 / torch.arange(1, f + 1, device=bench.device, dtype=torch.float64) ** 0.6
    edges = (common / common.sum()).cumsum(0)
    step = torch.arange(nnz, device=bench.device)
    indices = torch.empty(n * nnz, device=bench.device, dtype=torch.int32)
    values = torch.empty(n * nnz, device=bench.device, dtype=torch.float16)
    for first in range(0, n, CHUNK):
        rows = min(CHUNK, n - first)
        drawn = torch.rand(rows, nnz, device=bench.device, dtype=torch.float64)
        drawn = torch.searchsorted(edges, drawn).clamp_(max=f - 1).sort(dim=1).values
        # Repeated latents move on to the next free one: nnz is exact.
        drawn = torch.cummax(drawn - step, dim=1).values.add_(step)
        drawn = torch.minimum(drawn, f - nnz + step)
        place = slice(first * nnz, (first + rows) * nnz)
        indices[place] = permutation[drawn].sort(dim=1).values.view(-1).to(torch.int32)
        values[place] = torch.rand(rows * nnz, device=bench.device).log_().neg_().add_(0.1).half()
    try:
        indices = indices.to(torch.uint16)
    except RuntimeError as error:  # not every build of torch converts it on a device
        bench.note(f"indices stay int32: {error}")
    indptr = torch.arange(0, n * nnz + 1, nnz, device=bench.device)
    return SparseCodes(indptr, indices, values, f, check=False)


def oracle(queries: SparseCodes, corpus: SparseCodes, nnz: int) -> Tensor:
    """All cosines [Q,N] in float64, of codes with nnz entries each."""
    q = len(queries)
    panel = torch.zeros(queries.num_latents, q, device=queries.values.device, dtype=torch.float64)
    row = torch.arange(q, device=panel.device).repeat_interleave(nnz)
    panel[queries.indices.to(torch.int64), row] = queries.values.double()
    panel /= torch.linalg.vector_norm(panel, dim=0)
    parts = []
    for first in range(0, len(corpus), 1 << 16):
        rows = min(1 << 16, len(corpus) - first)
        place = slice(first * nnz, (first + rows) * nnz)
        value = corpus.values[place].double().view(rows, nnz)
        picked = panel[corpus.indices[place].to(torch.int64)].view(rows, nnz, q)
        norms = torch.linalg.vector_norm(value, dim=1, keepdim=True)
        parts.append(((picked * value[:, :, None]).sum(1) / norms).T)
    return torch.cat(parts, dim=1)


def run(bench: Bench) -> None:
    """Q=64 N=10^7, 64 of 16384 latents in every code, k=100."""
    q, n, nnz, f, k = (8, 3000, 8, 256, 10) if bench.tiny else (64, 10_000_000, 64, 16_384, 100)
    bench.record["size"] = {"Q": q, "N": n, "nnz": nnz, "F": f, "k": k}
    permutation = torch.randperm(f, device=bench.device)
    corpus, queries = codes(bench, n, nnz, f, permutation), codes(bench, q, nnz, f, permutation)
    few = SparseCodes(
        queries.indptr[:5], queries.indices[: 4 * nnz], queries.values[: 4 * nnz], f, check=False
    )

    def equal() -> None:
        scores, ids = sparse_cosine_topk(few, corpus, k)
        check_topk(scores, ids, oracle(few, corpus, nnz))
        whole = sparse_cosine_topk(queries, corpus, k)
        same_results((side[:4] for side in whole), (scores, ids))
        bench.poison()
        same_results(sparse_cosine_topk(queries, corpus, k), whole)

    bench.check("sparse search", equal)
    bench.free()
    # The peer gets rows of unit length and a dense panel of queries, ready made.
    norms = torch.linalg.vector_norm(corpus.values.view(n, nnz).float(), dim=1)
    unit = corpus.values.view(n, nnz).float().div_(norms[:, None]).view(-1)
    dense = torch.zeros(f, q, device=bench.device)
    row = torch.arange(q, device=bench.device).repeat_interleave(nnz)
    dense[queries.indices.to(torch.int64), row] = queries.values.float()
    dense /= torch.linalg.vector_norm(dense, dim=0)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    matrix = torch.sparse_csr_tensor(
        corpus.indptr.to(torch.int32),
        corpus.indices.to(torch.int32),
        unit,
        size=(n, f),
        check_invariants=False,
    )
    first = SparseCodes(few.indptr[:2], few.indices[:nnz], few.values[:nnz], f, check=False)
    works = {
        "ours": lambda: sparse_cosine_topk(queries, corpus, k),
        "torch.sparse": lambda: torch.topk(matrix @ dense, k, dim=0),
        "ours, one query": lambda: sparse_cosine_topk(first, corpus, k),
    }
    medians = bench.measure("sparse search", works, limit=10)
    bench.breakdown("sparse search", works["ours"])
    bench.compare("sparse search", medians, "ours", {"torch.sparse": 10.0})
    ceiling = bench.record.get("ceilings", {}).get("copy_bytes_per_s")
    size = sum(tensor.nbytes for tensor in (corpus.indptr, corpus.indices, corpus.values))
    for name, target in (("ours", 0.5), ("ours, one query", None)):
        share = size / medians[name] / ceiling if ceiling and name in medians else None
        bench.ratio(f"sparse search ({name}): bytes of the codes per second", "copy bandwidth", share, target)

"""Other libraries, each with its index ready and the best setting that its documentation gives.

A peer is a call that returns the ids it found, [Q,k]. What isn't installed is left out, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

Peer = Callable[[], Any]
BENCH = "pip install 'finescope[bench]'"
# Rows of a corpus whose scores are held at once.
BLOCK = 1 << 16
_said: set[str] = set()


@contextmanager
def installed(name: str, how: str = BENCH) -> Iterator[None]:
    """Leave a peer out where its library isn't there."""
    try:
        yield
    except ImportError as error:
        if name not in _said:
            print(f"  left out: {name} ({error}; {how})")
        _said.add(name)


def numkong(queries: Tensor, corpus: Tensor, k: int) -> Peer:
    """NumKong's products of bfloat16 with a packed corpus, and torch's topk, since it has none of its own.

    A product runs on one thread, so each thread takes blocks of the corpus.
    """
    import numkong as nk

    threads = torch.get_num_threads()
    blocks = threads * -(-len(corpus) // (threads * BLOCK))
    parts = corpus.bfloat16().chunk(blocks)
    packed = [nk.dots_pack(nk.from_dlpack(part), dtype="bf16") for part in parts]
    left = nk.from_dlpack(queries.bfloat16())
    pool = ThreadPoolExecutor(threads)

    def run() -> Tensor:
        values, ids, first = [], [], 0
        for group in range(0, len(packed), threads):
            of_group = packed[group : group + threads]
            for product in list(pool.map(lambda part: nk.dots_packed(left, part), of_group)):
                scores = torch.from_numpy(np.asarray(product))
                best = torch.topk(scores, k)
                values.append(best.values)
                ids.append(best.indices + first)
                first += scores.shape[1]
        return torch.cat(ids, dim=1).gather(1, torch.topk(torch.cat(values, dim=1), k).indices)

    return run


def scann(queries: Tensor, corpus: Tensor, k: int) -> Peer:
    """ScaNN over all rows in int8, of which the best 2k are scored again in float32."""
    return _scann(queries, _scann_builder(corpus, k).score_brute_force(quantize=True).reorder(2 * k))


def scann_tree(queries: Tensor, corpus: Tensor, k: int) -> Peer:
    """ScaNN over partitions, about as many as the root of the rows, as its documentation advises; a tenth."""
    leaves = int(len(corpus) ** 0.5)
    builder = _scann_builder(corpus, k).tree(
        num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=len(corpus)
    )
    return _scann(queries, builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(4 * k))


def _scann_builder(corpus: Tensor, k: int) -> Any:
    from scann import scann_ops_pybind

    builder = scann_ops_pybind.builder(corpus.numpy(), k, "dot_product")
    return builder.set_n_training_threads(torch.get_num_threads())


def _scann(queries: Tensor, builder: Any) -> Peer:
    searcher, threads, left = builder.build(), torch.get_num_threads(), queries.numpy()
    searcher.set_num_threads(threads)
    if len(left) == 1:
        return lambda: searcher.search(left[0])[0][None].astype(np.int64)
    share = -(-len(left) // threads)
    return lambda: searcher.search_batched_parallel(left, batch_size=share)[0].astype(np.int64)


def sparse_dot_topn(queries: csr_matrix, corpus: csr_matrix, k: int) -> Peer:
    """sparse_dot_topn with the corpus turned over; what it finds is a sparse matrix."""
    from sparse_dot_topn import sp_matmul_topn

    turned, threads = corpus.T.tocsr(), torch.get_num_threads()
    return lambda: sp_matmul_topn(queries, turned, k, n_threads=threads, sort=True)


def seismic(queries: csr_matrix, corpus: csr_matrix, k: int) -> dict[str, Peer]:
    """Seismic with its defaults and the cut and factor that its users are shown, and set to miss little."""
    import seismic

    n, f = corpus.shape
    rows = seismic.SeismicDataset(f)
    numbers = [str(row) for row in range(n)]
    rows.add_documents_by_id(
        numbers, corpus.indices.astype(np.int64), corpus.data, corpus.indptr.astype(np.int64)
    )
    threads, words = torch.get_num_threads(), seismic.get_seismic_string()
    names = np.array([str(q) for q in range(queries.shape[0])], dtype=words)
    bounds = queries.indptr[1:-1]
    latents = [part.astype(str).astype(words) for part in np.split(queries.indices, bounds)]
    values = [part.astype(np.float32) for part in np.split(queries.data, bounds)]

    def call(cut: int, factor: float, **options: Any) -> Peer:
        index = seismic.SeismicIndex.build_from_dataset(rows, num_threads=threads, **options)

        def run() -> np.ndarray:
            found = index.batch_search(names, latents, values, k, cut, factor, num_threads=threads)
            ids = np.full((len(found), k), -1)
            for hits in filter(None, found):  # in any order
                ids[int(hits[0][0]), : len(hits)] = [int(row) for _, _, row in hits]
            return ids

        return run

    most, longest = (int(np.diff(side.indptr).max()) for side in (queries, corpus))
    return {
        "Seismic": call(10, 0.7),
        "Seismic, all latents": call(most, 1.0, n_postings=n, doc_cut=longest, summary_energy=1.0),
    }


def splade_index(queries: csr_matrix, corpus: csr_matrix, k: int) -> Peer:
    """splade-index, compiled by numba, of codes that a model is said to have made."""
    import numba  # noqa: F401  it would go on without, and take long
    from splade_index import SPLADE

    bounds = queries.indptr[1:-1]
    pairs = zip(np.split(queries.indices, bounds), np.split(queries.data, bounds), strict=True)
    encoded = [
        torch.sparse_coo_tensor(latents[None], values, (queries.shape[1],), check_invariants=True)
        for latents, values in pairs
    ]
    turned = corpus.tocsc()
    columns = SimpleNamespace(
        values=lambda: torch.from_numpy(turned.data),
        row_indices=lambda: torch.from_numpy(turned.indices),
        ccol_indices=lambda: torch.from_numpy(turned.indptr),
    )
    model = SimpleNamespace(
        tokenizer=SimpleNamespace(get_vocab=dict),
        encode_document=lambda texts, **_: SimpleNamespace(to_sparse_csc=lambda: columns),
        encode_query=lambda texts, **_: encoded[: len(texts)],
    )
    retriever = SPLADE(backend="numba")
    retriever.index(model, [""] * corpus.shape[0], show_progress=False)
    texts, threads = [""] * queries.shape[0], torch.get_num_threads()
    return lambda: retriever.retrieve(
        texts, k=k, return_as="doc_ids", show_progress=False, n_threads=threads, chunksize=None
    )


def bm25s(queries: csr_matrix, corpus: csr_matrix, k: int) -> Peer:
    """bm25s, compiled by numba, with the codes for what it precomputes; a query's words have no weights."""
    import bm25s
    import numba  # noqa: F401  it would go on without, and take long

    turned = corpus.tocsc()
    retriever = bm25s.BM25(backend="numba")
    retriever.scores = {
        "data": turned.data,
        "indices": turned.indices.astype(np.int32),
        "indptr": turned.indptr.astype(np.int32),
        "num_docs": corpus.shape[0],
    }
    retriever.nonoccurrence_array = None
    retriever.vocab_dict = {str(latent): latent for latent in range(corpus.shape[1])}
    retriever.unique_token_ids_set = set(retriever.vocab_dict.values())
    tokens = [part.tolist() for part in np.split(queries.indices, queries.indptr[1:-1])]
    threads = torch.get_num_threads()
    return lambda: retriever.retrieve(tokens, k=k, show_progress=False, n_threads=threads).documents

"""A score may not show how the corpus was stored: same bytes for any shards, blocks, types and threads."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from finescope import SparseCodes
from finescope.curation import SCORERS, CorpusScorer, SelectionConfig, curation_quality, score_corpus, select
from finescope.curation.blocks import CodeRows
from support import curation_oracle as oracle


class Shards:
    """A store in miniature."""

    def __init__(self, codes, cuts):
        bounds = [0, *cuts, len(codes)]
        self.parts = [codes[low:high] for low, high in itertools.pairwise(bounds)]

    def iter_shards(self):
        return iter(self.parts)


class Numbered(Shards):
    """A store that names the first row of each shard, as CodeStore does."""

    def iter_shards(self):
        start = 0
        for part in self.parts:
            yield start, part
            start += len(part)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(1)
    make = lambda rows: SparseCodes.from_dense(torch.from_numpy(oracle.sparse_rows(rng, rows, 64)))  # noqa: E731
    return make(9), make(500)


def same(first, second):
    return all(
        np.array_equal(a, b) for a, b in zip(first.columns().values(), second.columns().values(), strict=True)
    )


@pytest.mark.parametrize("scorer", SCORERS)
def test_shards_and_blocks_leave_no_trace(problem, scorer):
    targets, corpus = problem
    whole = score_corpus(targets, corpus, scorer=scorer)
    for store in (Shards(corpus, [1, 2, 250]), Shards(corpus, [0, 499]), Numbered(corpus, [100])):
        assert same(whole, score_corpus(targets, store, scorer=scorer))
    for rows in (1, 7, 64):
        assert same(whole, CorpusScorer(corpus, weights="idf", block_rows=rows).score(targets, scorer))


def test_threads_leave_no_trace(problem):
    targets, corpus = problem
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = score_corpus(targets, corpus)
        torch.set_num_threads(2)
        assert same(one, score_corpus(targets, corpus))
    finally:
        torch.set_num_threads(before)


def test_a_row_scores_the_same_in_any_company(problem):
    targets, corpus = problem
    table = CorpusScorer(corpus).score(targets, "max")
    alone = CorpusScorer(corpus[123]).score(targets, "max")
    assert alone.score[0] == table.score[123]


def test_half_precision_codes_are_exact_for_the_values_they_hold(problem):
    targets, corpus = problem
    half = SparseCodes(corpus.indptr, corpus.indices, corpus.values.half(), 64)
    rounded = SparseCodes(corpus.indptr, corpus.indices, corpus.values.half().float(), 64)
    assert same(score_corpus(targets, half), score_corpus(targets, rounded))


def test_memory_does_not_grow_with_the_corpus():
    rng = np.random.default_rng(2)
    part = SparseCodes.from_dense(torch.from_numpy(oracle.sparse_rows(rng, 2000, 256, 0.05)))

    class Endless:
        def __init__(self, times):
            self.times = times

        def iter_shards(self):
            for _ in range(self.times):
                yield part

    def peak(times):
        tracemalloc.start()
        score_corpus(part[:5], Endless(times))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    short, long = peak(2), peak(20)
    per_row = (long - short) / (18 * 2000)
    assert (
        per_row < 120
    )  # a few numbers per row; the codes of a row alone are 13 latents × 12 bytes in float64


def test_something_else_is_refused_by_its_type():
    with pytest.raises(TypeError, match="list"):
        score_corpus(SparseCodes.from_dense(torch.ones(1, 2)), [[1.0, 2.0]])


def test_a_real_store_scores_like_the_codes_in_it(problem, tmp_path):
    from finescope.embeddings import CodeStore, CodeStoreWriter

    targets, corpus = problem
    half = SparseCodes(corpus.indptr, corpus.indices, corpus.values.half(), 64)
    with CodeStoreWriter(tmp_path / "codes", num_latents=64) as writer:
        for low in (0, 200, 400):
            part = half[low : low + 200]
            writer.write(part, [str(low + row) for row in range(len(part))])
        writer.finish()
    store = CodeStore(tmp_path / "codes")
    assert same(score_corpus(targets, half), score_corpus(targets, store))


def test_rows_are_taken_from_shards_in_the_order_asked_for(problem):
    _, corpus = problem
    rows = np.array([499, 0, 250, 249, 0, 100, 3])
    for store in (corpus, Shards(corpus, [1, 100, 100, 250])):
        source = CodeRows(store)
        assert len(source) == 500
        assert source.take(rows) == corpus[rows]
        assert len(source.take(rows[:0])) == 0


def test_selection_and_quality_read_shards_too(problem):
    targets, corpus = problem
    shards = Shards(corpus, [70, 300])
    table = score_corpus(targets, corpus)
    limits = SelectionConfig(k=60, strategy="clusters", near_duplicate=0.9, diversity=0.5)
    chosen = select(table, limits, corpus=corpus, targets=targets)
    assert select(table, limits, corpus=shards, targets=targets).indices.tolist() == chosen.indices.tolist()
    assert curation_quality(targets, shards, chosen.indices) == curation_quality(
        targets, corpus, chosen.indices
    )

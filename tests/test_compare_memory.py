"""A comparison reads the corpus in blocks: neither memory nor numbers show how it is cut."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from finescope import SparseCodes
from finescope.curation import Evidence, Scoring, compare, compare_methods, curation_quality, ranking
from support import curation_oracle as oracle


class Shards:
    """A store of equal shards that counts how often it is read."""

    def __init__(self, codes, times=1, cuts=()):
        bounds = [0, *cuts, len(codes)]
        self.parts = [codes[low:high] for low, high in itertools.pairwise(bounds)] * times
        self.num_latents, self.passes = codes.num_latents, 0

    def __len__(self):
        return sum(map(len, self.parts))

    def iter_shards(self):
        self.passes += 1
        return iter(self.parts)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(4)
    make = lambda rows: SparseCodes.from_dense(torch.from_numpy(oracle.sparse_rows(rng, rows, 64, 0.1)))  # noqa: E731
    return make(2000), make(7), rng.random(2000) < 0.1


def lines(relevant, corpus, targets, **options):
    methods = ("default", "paper", "contrast+0.5*max", "top_m_mean", "centroid", "random")
    found = compare_methods(
        relevant, Evidence(corpus, "sqrt_mean"), Evidence(targets, "sqrt_mean"), methods=methods, **options
    )
    return [line.to_dict() for line in found]


def test_shards_leave_no_trace(problem):
    corpus, targets, relevant = problem
    whole = lines(relevant, corpus, targets, draws=5)
    assert whole == lines(relevant, Shards(corpus, cuts=[1, 2, 900, 1999]), targets, draws=5)


def test_rounds_leave_no_trace(problem, monkeypatch):
    corpus, targets, relevant = problem
    whole = lines(relevant, corpus, targets, draws=9)
    monkeypatch.setattr(compare, "ROUND_BYTES", 100_000)  # two draws or so at a time
    assert whole == lines(relevant, corpus, targets, draws=9)


@pytest.mark.parametrize("terms", [0, 1, 3])
def test_scores_that_there_is_no_room_for_are_made_again(problem, monkeypatch, terms):
    corpus, targets, relevant = problem
    whole = lines(relevant, corpus, targets, draws=7)
    monkeypatch.setattr(ranking, "KEPT_BYTES", terms * 8 * 8 * 2000)  # those of 8 draws
    assert whole == lines(relevant, corpus, targets, draws=7)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_leave_no_trace(problem, threads):
    corpus, targets, relevant = problem
    whole = lines(relevant, corpus, targets, draws=7)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert whole == lines(relevant, corpus, targets, draws=7)
    finally:
        torch.set_num_threads(before)


def test_more_draws_are_no_more_passes(problem, monkeypatch):
    corpus, targets, relevant = problem
    passes = []
    for room, draws in itertools.product((ranking.KEPT_BYTES, 0), (0, 40)):
        monkeypatch.setattr(ranking, "KEPT_BYTES", room)
        store = Shards(corpus, cuts=[700])
        lines(relevant, store, targets, draws=draws)
        passes.append(store.passes)
    assert passes[0] == passes[1] == passes[2] - 1 == passes[3] - 1


def peak(work):
    tracemalloc.start()
    work()
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_memory_of_a_comparison_grows_by_a_few_numbers_a_row(problem, monkeypatch):
    corpus, targets, _ = problem
    monkeypatch.setattr(ranking, "KEPT_BYTES", 1 << 20)
    few = np.arange(2000) % 100 == 0

    def bytes_for(times):
        store = Shards(corpus, times)
        return peak(lambda: lines(np.tile(few, times), store, targets, draws=20))

    # Two whole blocks are in memory either way.
    per_row = (bytes_for(80) - bytes_for(40)) / (40 * 2000)
    # Norms, masks and a random order, and 84 scores of one row in a hundred; a row's codes alone are 77 bytes
    # in float64, and the scores of 84 draws would be 672.
    assert per_row < 150


def test_memory_of_a_score_and_of_a_quality_does_not_hold_the_codes(problem):
    corpus, targets, _ = problem
    rows, seeds = np.arange(0, 40_000, 2), Evidence(targets)

    def work(times):
        store = Shards(corpus, times)
        scoring = Scoring(Evidence(store), seeds)
        scoring.score()
        curation_quality(targets, scoring.space, rows[rows < 2000 * times])

    assert (peak(lambda: work(60)) - peak(lambda: work(20))) / (40 * 2000) < 120

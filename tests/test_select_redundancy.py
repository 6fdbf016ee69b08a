"""Copies in a training set waste it: the greedy filter must equal the plain double loop, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import InputError, SparseCodes
from finescope.curation import REASONS, ScoreTable, SelectionConfig, greedy_filter, redundancy, select
from support import curation_oracle as oracle


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def scores(values):
    values = np.asarray(values, np.float64)
    return ScoreTable(values, np.zeros(values.size, np.int64), values, np.ones(values.size, np.bool_), "max")


def double_loop(dense, order, limit):
    """(row, resembled or -1) by the definition."""
    unit, taken, found = oracle.unit(dense), [], []
    for row in order:
        cosines = [float(unit[row] @ unit[other]) for other in taken]
        if cosines and max(cosines) >= limit:
            found.append((row, taken[int(np.argmax(np.round(cosines, 12)))]))
        else:
            taken.append(row)
            found.append((row, -1))
    return found


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    limit=st.sampled_from([0.2, 0.5, 0.8, 0.999]),
    block=st.sampled_from([1, 3, 64]),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_double_loop(seed, rows, limit, block):
    rng = np.random.default_rng(seed)
    dense = oracle.sparse_rows(rng, rows, 12, 0.3)
    dense[rng.integers(rows)] = 0
    dense[rng.integers(rows)] = 2 * dense[rng.integers(rows)]  # a scaled copy
    order = rng.permutation(rows)
    found = list(greedy_filter(codes(dense), order, limit, block=block))
    assert [(row, other) for row, other, _ in found] == double_loop(dense, order.tolist(), limit)


def test_many_narrow_panels_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    dense = oracle.sparse_rows(rng, 120, 10, 0.3)
    order = rng.permutation(120)
    whole = list(greedy_filter(codes(dense), order, 0.6, block=16))
    monkeypatch.setattr(redundancy, "panel_columns", lambda latents, wanted: 3)
    assert [found[:2] for found in greedy_filter(codes(dense), order, 0.6, block=16)] == [
        found[:2] for found in whole
    ]


def test_the_best_copy_stays_and_the_others_say_whom_they_resemble():
    dense = np.zeros((6, 8))
    dense[[0, 2, 4], 0] = [1, 2, 3]  # three copies
    dense[1, [0, 1]] = [1, 0.8]  # cosine 0.78 with them
    dense[3, 3] = dense[5, 4] = 1
    selection = select(
        scores([1, 6, 5, 4, 3, 2]),
        SelectionConfig(near_duplicate=0.99, diversity=0.7),
        corpus=codes(dense),
    )
    assert selection.indices.tolist() == [1, 3, 5]
    named = [REASONS[code] for code in selection.reason]
    assert named == ["not_diverse", "selected", "not_diverse", "selected", "not_diverse", "selected"]
    selection = select(scores([1, 6, 5, 4, 3, 2]), SelectionConfig(near_duplicate=0.99), corpus=codes(dense))
    assert selection.indices.tolist() == [1, 2, 3, 5]
    assert selection.resembles == {4: 2, 0: 2}
    assert selection.counts["near_duplicate"] == 2


def test_removed_copies_are_replaced_so_that_k_is_reached():
    dense = np.repeat(np.eye(6), 4, axis=0)  # 24 rows, 6 different
    values = -np.arange(24)
    selection = select(scores(values), SelectionConfig(k=5, near_duplicate=0.95), corpus=codes(dense))
    assert selection.indices.tolist() == [0, 4, 8, 12, 16]
    assert selection.counts["beyond_limit"] == 7


def test_the_walk_stops_when_enough_rows_are_selected():
    class Counting(SparseCodes):
        __slots__ = ()
        asked: list[int] = []  # noqa: RUF012

        def __getitem__(self, rows):
            Counting.asked.append(len(np.asarray(rows)))
            return super().__getitem__(rows)

    plain = codes(oracle.sparse_rows(np.random.default_rng(0), 3000, 50))
    counting = Counting(plain.indptr, plain.indices, plain.values, 50)
    select(scores(np.arange(3000)), SelectionConfig(k=10, diversity=0.99), corpus=counting)
    assert sum(Counting.asked) < 600


def test_codes_of_another_corpus_are_refused():
    with pytest.raises(InputError, match="scores of 3 rows but codes of 2"):
        select(scores([1, 2, 3]), SelectionConfig(near_duplicate=0.9), corpus=codes(np.eye(2)))

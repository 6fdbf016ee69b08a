"""A limit that is not kept spoils a training set silently: size, threshold, budget, targets, ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.curation import REASONS, ScoreTable, SelectionConfig, is_target, select, text_hash


def table(score, similarity=None, valid=None):
    score = np.asarray(score, dtype=np.float64)
    return ScoreTable(
        score,
        np.zeros(score.size, np.int64),
        score.copy() if similarity is None else np.asarray(similarity, dtype=np.float64),
        np.ones(score.size, np.bool_) if valid is None else np.asarray(valid),
        "max",
    )


def rows(scores, tokens=None, exclude=None, **limits):
    return select(scores, SelectionConfig(**limits), tokens=tokens, exclude=exclude).indices.tolist()


SCORES = table([0.1, 0.9, 0.5, 0.9, -0.2, 0.5])


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [1, 3, 2, 5, 0, 4]),
        ({"k": 3}, [1, 3, 2]),
        ({"k": 0}, []),
        ({"k": 99}, [1, 3, 2, 5, 0, 4]),
        ({"fraction": 0.5}, [1, 3, 2]),
        ({"fraction": 0.34}, [1, 3, 2]),  # rounded up
        ({"fraction": 0.5, "k": 2}, [1, 3]),
        ({"min_score": 0.5}, [1, 3, 2, 5]),
        ({"min_similarity": 0.6}, [1, 3]),
        ({"min_score": 2.0}, []),
    ],
)
def test_limits(limits, expected):
    assert rows(SCORES, **limits) == expected


@pytest.mark.parametrize("rows", [100, 300, 1000])
def test_a_share_is_the_decimal_number_that_was_written(rows):
    scores = table(list(range(rows)))
    for percent in range(1, 101):
        expected = -(-percent * rows // 100)
        found = select(scores, SelectionConfig(fraction=percent / 100))
        assert len(found) == expected, f"{percent}% of {rows}"


def test_threshold_on_similarity_is_not_one_on_score():
    scores = table([3.0, 2.0, 1.0], similarity=[0.1, 0.9, 0.8])
    assert rows(scores, min_similarity=0.5) == [1, 2]
    assert rows(scores, min_score=1.5) == [0, 1]


@given(
    tokens=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    budgets=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
@settings(max_examples=100, deadline=None)
def test_token_budget_is_kept_and_monotone(tokens, budgets):
    scores = table(np.linspace(1, 0, len(tokens)))
    small, large = sorted(budgets)
    first = select(scores, SelectionConfig(token_budget=small), tokens=tokens)
    second = select(scores, SelectionConfig(token_budget=large), tokens=tokens)
    assert first.tokens == sum(tokens[row] for row in first.indices) <= small
    fitting = [row for row in range(len(tokens)) if tokens[row] <= small]
    assert first.indices.tolist() == fitting[: len(first)]
    if len(first) < len(fitting):
        assert first.tokens + tokens[fitting[len(first)]] > small
    if max(tokens) <= small:
        assert set(first.indices) <= set(second.indices)


def test_one_row_longer_than_the_whole_budget_does_not_stop_the_rest():
    selection = select(table([3, 2, 1]), SelectionConfig(token_budget=10), tokens=[11, 4, 4])
    assert selection.indices.tolist() == [1, 2]
    assert REASONS[selection.reason[0]] == "over_budget"


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.5, float("nan"), -7.0]), min_size=1, max_size=60),
    st.integers(0, 70),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_a_few_of_many_are_the_beginning_of_all(score, k, seed):
    """Only as many rows are sorted as are wanted; equal scores at that edge must not change who they are."""
    rng = np.random.default_rng(seed)
    valid, exclude = rng.random(len(score)) < 0.9, rng.random(len(score)) < 0.1
    scored = ScoreTable(
        np.array(score), np.zeros(len(score), np.int64), np.zeros(len(score)), valid, "contrast"
    )
    order = [row for row in scored.ranking().tolist() if not exclude[row]]
    tokens = np.full(len(score), 10)
    for budget in (None, 10 * k + 5):
        found = select(scored, SelectionConfig(k=k, token_budget=budget), tokens=tokens, exclude=exclude)
        assert found.indices.tolist() == order[:k]
    fewer = select(scored, SelectionConfig(k=k, token_budget=45), tokens=tokens, exclude=exclude)
    assert fewer.indices.tolist() == order[: min(k, 4)]


def test_targets_and_unusable_rows_are_never_selected():
    scores = table([9, 8, np.nan, 6, 5], valid=[True, True, True, False, True])
    selection = select(scores, SelectionConfig(k=5), exclude=[True, False, False, False, False])
    assert selection.indices.tolist() == [1, 4]
    assert [REASONS[code] for code in selection.reason] == [
        "target",
        "selected",
        "invalid",
        "invalid",
        "selected",
    ]


def test_every_row_has_a_reason_and_the_counts_add_up():
    selection = select(
        SCORES,
        SelectionConfig(k=1, min_score=0.0, min_similarity=0.2),
        exclude=[False, True, False, False, False, False],
    )
    named = [REASONS[code] for code in selection.reason]
    assert named == ["below_similarity", "target", "beyond_limit", "selected", "below_score", "beyond_limit"]
    assert sum(selection.counts.values()) == 6
    assert set(selection.counts) == set(REASONS)
    assert selection.config["k"] == 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"k": -1}, "k must be a whole number of at least 0, or None, got -1"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"token_budget": -1}, "token_budget"),
        ({"strategy": "best"}, "strategy"),
        ({"per_target": 0}, "per_target"),
        ({"num_clusters": 0}, "num_clusters"),
        ({"near_duplicate": 1.2}, "near_duplicate"),
        ({"diversity": -3.0}, "diversity"),
        ({"min_similarity": 2.0}, "min_similarity"),
    ],
)
def test_bad_limits_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**limits)


def test_what_a_limit_needs_must_be_there():
    with pytest.raises(ValueError, match="token counts"):
        select(SCORES, SelectionConfig(token_budget=5))
    with pytest.raises(ValueError, match="tokens must have one entry for each of the 6 rows"):
        select(SCORES, SelectionConfig(token_budget=5), tokens=[1, 2])
    with pytest.raises(ValueError, match="codes of the corpus"):
        select(SCORES, SelectionConfig(near_duplicate=0.9))
    with pytest.raises(ValueError, match="codes of corpus and targets"):
        select(SCORES, SelectionConfig(strategy="clusters"))


def test_targets_are_known_by_id_and_by_normalised_text():
    ids = ["a", "b", "c", "d", "e"]
    texts = ["one", "  The  Quick\nfox ", "", "ﬁne", None]
    found = is_target(ids, ["c", "zz"], texts, ["the quick FOX", "", "fine", None])
    assert found.tolist() == [False, True, True, True, False]
    assert is_target(ids, ["a"]).tolist() == [True, False, False, False, False]
    assert is_target(texts=texts, target_texts=["ONE"]).tolist() == [True, False, False, False, False]
    assert is_target(hashes=[text_hash("x"), None], target_texts=["X "]).tolist() == [True, False]
    with pytest.raises(ValueError, match="ids, texts or hashes"):
        is_target()
    with pytest.raises(ValueError, match="differ in length"):
        is_target(["a"], ["b"], ["x", "y"], ["z"])

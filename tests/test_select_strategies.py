"""The supplement returned unions of any size; ours have the size asked for and equal its loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from finescope import InputError, SparseCodes
from finescope.curation import (
    REASONS,
    CorpusScorer,
    ScoreTable,
    SelectionConfig,
    clusters,
    kmeans_labels,
    lists,
    select,
)
from support import curation_oracle as oracle


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def groups(seed=0, rows=120, latents=30, count=4):
    """Rows in ``count`` well separated groups, and their group numbers."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.arange(rows) % count)
    dense = np.zeros((rows, latents))
    width = latents // count
    for row, group in enumerate(owner):
        dense[row, group * width : (group + 1) * width] = 0.3 + rng.random(width)
        dense[row, rng.integers(latents)] += 0.2
    return dense.astype(np.float32), owner


@pytest.fixture(scope="module")
def problem():
    corpus, owner = groups()
    targets = corpus[[0, 1, 2]] * 0.9
    return codes(targets), codes(corpus), owner


def union_by_loops(targets, corpus, quota):
    cosines = oracle.unit(targets) @ oracle.unit(corpus).T
    return {row for line in cosines for row in np.argsort(-line, kind="stable")[:quota].tolist()}


def clusters_by_loops(targets, corpus, labels, quota, look_into=2):
    cosines = oracle.unit(targets) @ oracle.unit(corpus).T
    found = set()
    for line in cosines:
        means = [line[labels == cluster].mean() for cluster in range(labels.max() + 1)]
        for cluster in np.argsort(-np.array(means), kind="stable")[:look_into]:
            members = np.flatnonzero(labels == cluster)
            found |= set(members[np.argsort(-line[members], kind="stable")][:quota].tolist())
    return found


def test_per_target_takes_the_union_first_and_has_the_exact_size(problem):
    targets, corpus, _ = problem
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "max")
    union = union_by_loops(targets.to_dense().numpy(), corpus.to_dense().numpy(), 5)
    assert 5 < len(union) <= 15
    for k in (3, len(union), 40):
        chosen = select(
            table, SelectionConfig(k=k, strategy="per_target", per_target=5), targets=targets, corpus=corpus
        ).indices
        assert chosen.size == k
        ranking = [row for row in table.ranking().tolist() if row in union]
        assert chosen.tolist()[: len(union)] == ranking[:k]
        assert set(chosen.tolist()) >= union or set(chosen.tolist()) <= union


def test_a_quota_serves_a_lonely_target_that_rank_would_starve():
    dense = np.zeros((21, 6))
    dense[:20, 0] = 1
    dense[:20, 1] = np.linspace(0.0, 0.1, 20)
    dense[20, [2, 3]] = [1, 1]
    targets = np.zeros((2, 6))
    targets[0, 0] = targets[1, 2] = 1
    scorer = CorpusScorer(codes(dense))
    table = scorer.score(codes(targets), "max")
    assert 20 not in select(table, SelectionConfig(k=5)).indices
    fair = select(
        table,
        SelectionConfig(k=5, strategy="per_target", per_target=3),
        targets=codes(targets),
        scorer=scorer,
    )
    assert 20 in fair.indices


def test_clusters_equal_the_supplements_algorithm(problem):
    targets, corpus, _ = problem
    table = CorpusScorer(corpus).score(targets, "max")
    labels = kmeans_labels(corpus, 5)
    candidates = clusters_by_loops(targets.to_dense().numpy(), corpus.to_dense().numpy(), labels, 20 // 5)
    chosen = select(table, SelectionConfig(k=20, strategy="clusters"), targets=targets, corpus=corpus).indices
    ranking = table.ranking().tolist()
    expected = [row for row in ranking if row in candidates] + [
        row for row in ranking if row not in candidates
    ]
    assert chosen.tolist() == expected[:20]


def test_preferred_rows_respect_the_other_limits(problem):
    targets, corpus, _ = problem
    table = CorpusScorer(corpus).score(targets, "max")
    exclude = np.zeros(120, np.bool_)
    exclude[table.ranking()[:10]] = True
    for strategy in ("per_target", "clusters"):
        selection = select(
            table,
            SelectionConfig(k=30, strategy=strategy, min_similarity=0.5, per_target=4),
            targets=targets,
            corpus=corpus,
            exclude=exclude,
        )
        assert not exclude[selection.indices].any()
        assert (table.nearest_similarity[selection.indices] >= 0.5).all()
        assert selection.indices.size == np.unique(selection.indices).size


def test_kmeans_finds_separated_groups_and_repeats_itself(problem):
    _, corpus, owner = problem
    labels = kmeans_labels(corpus, 4, seed=1)
    assert len({(a, b) for a, b in zip(labels, owner, strict=True)}) == 4
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert np.array_equal(labels, kmeans_labels(corpus, 4, seed=1))
    finally:
        torch.set_num_threads(before)


def test_rows_go_to_the_nearest_centre_and_not_to_the_longest(monkeypatch):
    # Centres of loose clusters are short: an inner product without ‖c‖²/2 would give all rows to tight ones.
    centres = np.array([[1.0, 0.0], [0.35, 0.35]])
    monkeypatch.setattr(clusters, "_fit_centres", lambda matrix, count, seed: centres)
    assert kmeans_labels(codes([[1.0, 0.1], [0.8, 0.6], [0.6, 0.8]]), 2).tolist() == [0, 1, 1]


def test_kmeans_fits_on_a_sample_and_labels_every_row(problem):
    _, corpus, owner = problem
    labels = kmeans_labels(corpus, 4, fit_rows=40)
    assert labels.size == 120
    assert len({(a, b) for a, b in zip(labels, owner, strict=True)}) == 4


def test_kmeans_on_fewer_different_rows_than_clusters_stays_silent():
    labels = kmeans_labels(codes(np.repeat(np.eye(2), 5, axis=0)), 5)
    assert len(set(labels[:5].tolist())) == len(set(labels[5:].tolist())) == 1
    assert labels[0] != labels[9]
    assert kmeans_labels(codes(np.zeros((3, 4))), 2).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="num_clusters"):
        kmeans_labels(codes(np.eye(2)), 0)
    with pytest.raises(ValueError, match="at least one row"):
        kmeans_labels(codes(np.eye(2))[:0], 2)


def test_scale_of_a_row_does_not_change_its_cluster(problem):
    _, corpus, _ = problem
    dense = corpus.to_dense().numpy() * np.random.default_rng(0).uniform(0.1, 50, (120, 1))
    labels = kmeans_labels(codes(dense), 4, seed=3)
    original = kmeans_labels(corpus, 4, seed=3)
    assert len({(a, b) for a, b in zip(labels, original, strict=True)}) == 4


def test_weights_decide_the_clusters():
    dense = np.zeros((40, 4), np.float32)
    dense[:, 0] = np.arange(40) % 2 * 5.0  # loud
    dense[:, 1] = 1 - dense[:, 0] / 5
    dense[:, 2] = np.arange(40) // 20 * 0.5  # quiet
    dense[:, 3] = 0.5 - dense[:, 2]
    quiet = kmeans_labels(codes(dense), 2, weights=np.array([0.0, 0.0, 1.0, 1.0]))
    assert len(set(quiet[:20].tolist())) == len(set(quiet[20:].tolist())) == 1


def test_codes_of_another_corpus_are_refused(problem):
    targets, corpus, _ = problem
    table = CorpusScorer(corpus).score(targets, "max")
    with pytest.raises(InputError, match="scores of 120 rows but codes of 100"):
        select(table, SelectionConfig(strategy="per_target"), targets=targets, corpus=corpus[:100])


def test_clusters_module_reads_the_mask(problem):
    targets, corpus, _ = problem
    mask = np.arange(120) % 2 == 0
    found = clusters.cluster_candidates(
        CorpusScorer(corpus), targets, kmeans_labels(corpus, 3), 10, mask=mask
    )
    assert found.size
    assert mask[found].all()


def turns_by_loops(targets, corpus, count, allowed):
    cosines = oracle.unit(targets) @ oracle.unit(corpus).T
    taken = []
    while len(taken) < count:
        before = len(taken)
        for line in cosines:
            free = [row for row in np.argsort(-line, kind="stable") if allowed[row] and row not in taken]
            taken += free[:1]
        if len(taken) == before:
            break
    return taken[:count]


@pytest.mark.parametrize("k", [1, 4, 25, 120])
def test_in_round_robin_every_target_takes_its_nearest_free_row_in_turn(problem, k):
    targets, corpus, _ = problem
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "max")
    exclude = np.arange(120) % 7 == 0
    chosen = select(
        table, SelectionConfig(k=k, strategy="round_robin"), targets=targets, scorer=scorer, exclude=exclude
    )
    expected = turns_by_loops(targets.to_dense().numpy(), corpus.to_dense().numpy(), k, ~exclude)
    assert chosen.indices.tolist() == expected


def test_round_robin_ends_with_the_lists_and_goes_on_by_score(problem):
    targets, corpus, _ = problem
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "max")
    limits = SelectionConfig(k=20, strategy="round_robin", per_target=2)
    found = select(table, limits, targets=targets, corpus=corpus).indices.tolist()
    lists, _ = scorer.nearest_rows(targets, 2)
    first = list(dict.fromkeys(lists.T.ravel().tolist()))
    assert sorted(found[: len(first)]) == sorted(first)
    assert (
        found[len(first) :]
        == [row for row in table.ranking().tolist() if row not in first][: 20 - len(first)]
    )
    whole = SelectionConfig(fraction=0.1, strategy="round_robin", near_duplicate=0.999)
    assert len(select(table, whole, targets=targets, corpus=corpus)) == 12


@pytest.fixture
def listed(monkeypatch):
    """How many places for rows each pass over the corpus has made."""
    found, real = [], CorpusScorer.nearest_in_groups

    def spied(self, targets, k, *rest):
        ids, cosines = real(self, targets, k, *rest)
        found.append(ids.size)
        return ids, cosines

    monkeypatch.setattr(CorpusScorer, "nearest_in_groups", spied)
    return found


@pytest.mark.parametrize("strategy", ["round_robin", "per_target", "clusters"])
def test_of_a_budget_alone_no_list_of_all_rows_is_made_for_each_target(listed, strategy):
    rng = np.random.default_rng(3)
    corpus = codes(np.where(rng.random((30_000, 12)) < 0.3, rng.random((30_000, 12)), 0))
    targets = codes(rng.random((200, 12)))
    scorer, tokens = CorpusScorer(corpus), rng.integers(5, 50, 30_000)
    table = scorer.score(targets, "max")
    limits = SelectionConfig(token_budget=4000, strategy=strategy)
    found = select(table, limits, targets=targets, scorer=scorer, tokens=tokens)
    assert max(listed, default=0) <= lists.ENTRIES < 200 * 30_000
    assert 4000 - 50 < found.tokens <= 4000
    if strategy == "round_robin":
        dense = targets.to_dense().numpy(), corpus.to_dense().numpy()
        cosines = oracle.unit(dense[0]) @ oracle.unit(dense[1]).T
        near = np.argsort(-cosines, axis=1, kind="stable")[:, : len(found) + 1]
        taken = []
        for line in itertools.islice(itertools.cycle(near), len(found)):
            taken.append(next(row for row in line.tolist() if row not in taken))
        assert found.indices.tolist() == taken


@pytest.mark.parametrize("strategy", ["round_robin", "per_target", "clusters"])
@pytest.mark.parametrize(
    "limits",
    [
        {"token_budget": 700},
        {"token_budget": 10**6},
        {"k": 50},
        {"k": 50, "per_target": 9},
        {"k": 60, "near_duplicate": 0.97},
        {"token_budget": 900, "diversity": 0.9},
        {"token_budget": 900, "diversity": 0.9, "per_target": 30},
    ],
    ids=str,
)
def test_short_lists_that_go_on_give_what_whole_ones_give(problem, monkeypatch, listed, strategy, limits):
    targets, corpus, _ = problem
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "max")
    given = {"targets": targets, "scorer": scorer, "corpus": corpus, "tokens": np.arange(120) % 7 + 8}
    limits = SelectionConfig(strategy=strategy, num_clusters=3, **limits)
    whole = select(table, limits, **given)
    listed.clear()
    monkeypatch.setattr(lists, "ENTRIES", 12)
    monkeypatch.setattr(lists, "_FEWEST", 2)
    found = select(table, limits, **given)
    assert found.indices.tolist() == whole.indices.tolist()
    assert np.array_equal(found.reason, whole.reason)
    assert found.resembles == whole.resembles
    if strategy == "round_robin":
        assert len(listed) > 1


def covering_by_loops(targets, corpus, order, count, looked_at=lambda count: 1000):
    """The row of the largest gain each time, every gain found anew; parts are those of contrast."""
    unit, seeds = oracle.unit(corpus), oracle.unit(targets)
    parts = np.maximum(unit * (seeds.mean(axis=0) - unit.mean(axis=0)), 0)
    held, taken = np.zeros(parts.shape[1]), []
    while len(taken) < min(count, len(order)):
        free = [row for row in order[: looked_at(len(taken) + 1)] if row not in taken]
        gains = [np.sqrt(held + parts[row]).sum() - np.sqrt(held).sum() for row in free]
        best = free[int(np.argmax(np.round(gains, 12)))]
        taken.append(best)
        held += parts[best]
    return taken


@pytest.mark.parametrize("k", [1, 5, 30, 120])
def test_coverage_takes_what_adds_most_to_what_is_held(problem, k):
    targets, corpus, _ = problem
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "contrast")
    found = select(table, SelectionConfig(k=k, strategy="coverage"), targets=targets, scorer=scorer)
    order = table.ranking().tolist()
    dense = targets.to_dense().numpy(), corpus.to_dense().numpy()
    assert found.indices.tolist() == covering_by_loops(*dense, order, k)


def test_fewer_covering_rows_are_a_beginning_of_more(problem, monkeypatch):
    targets, corpus, _ = problem
    monkeypatch.setattr("finescope.curation.coverage.FEWEST_CANDIDATES", 12)
    monkeypatch.setattr("finescope.curation.coverage.CANDIDATES", 2)
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "contrast")
    chosen = [
        select(
            table, SelectionConfig(k=k, strategy="coverage"), targets=targets, scorer=scorer
        ).indices.tolist()
        for k in (3, 11, 20, 40)
    ]
    for fewer, more in itertools.pairwise(chosen):
        assert more[: len(fewer)] == fewer
    dense = targets.to_dense().numpy(), corpus.to_dense().numpy()
    order = table.ranking().tolist()
    assert chosen[-1] == covering_by_loops(*dense, order, 40, lambda count: max(12, 2 * count))
    assert chosen[-1] != covering_by_loops(*dense, order, 40)


def test_coverage_does_not_take_the_same_again():
    rng = np.random.default_rng(2)
    kinds = np.eye(6)[[0, 1, 2]] + 0.01 * rng.random((3, 6))
    others = np.eye(6)[[3, 4, 5]].repeat(10, axis=0)
    corpus = codes(np.vstack([np.repeat(kinds, [8, 3, 1], axis=0), others]))
    targets = codes(kinds * [[3], [1], [1]])
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "contrast")
    options = {"targets": targets, "scorer": scorer}
    covered = select(table, SelectionConfig(k=3, strategy="coverage"), **options).indices
    kind = np.repeat(np.arange(3), [8, 3, 1])
    assert sorted(kind[covered]) == [0, 1, 2]
    assert len(set(kind[select(table, SelectionConfig(k=3), **options).indices])) < 3


def test_coverage_looks_at_no_more_rows_than_it_may_hold_and_goes_on_by_score(problem, monkeypatch):
    targets, corpus, _ = problem
    monkeypatch.setattr("finescope.curation.coverage.MOST_CANDIDATES", 7)
    scorer = CorpusScorer(corpus)
    table = scorer.score(targets, "contrast")
    found = select(table, SelectionConfig(k=30, strategy="coverage"), targets=targets, scorer=scorer).indices
    ranking = table.ranking()
    assert sorted(found[:7]) == sorted(ranking[:7])
    assert found[7:].tolist() == ranking[7:30].tolist()


# ---------------------------------------------------------------------- quotas by label


def labelled(rows=60, seed=0):
    rng = np.random.default_rng(seed)
    names = rng.choice(["a", "b", "c", ""], rows, p=[0.5, 0.3, 0.1, 0.1]).tolist()
    return table_of(rng.normal(size=rows)), names


def table_of(score, valid=None):
    score = np.asarray(score, np.float64)
    valid = np.ones(score.size, bool) if valid is None else valid
    return ScoreTable(score, np.zeros(score.size, np.int64), score.copy(), valid, "contrast")


def test_each_label_gets_its_share_of_the_best():
    scores, names = labelled()
    found = select(scores, SelectionConfig(k=12, quotas=["a=2", "b=1"]), labels=names)
    order = scores.ranking().tolist()
    wanted = {name: [row for row in order if names[row] == name][:k] for name, k in (("a", 8), ("b", 4))}
    assert found.indices.tolist() == [row for row in order if row in {*wanted["a"], *wanted["b"]}]
    assert found.unfilled == []
    for row, name in enumerate(names):
        expected = "no_quota" if name not in wanted else "beyond_limit"
        assert REASONS[found.reason[row]] == ("selected" if row in wanted.get(name, ()) else expected)
    assert sum(found.counts.values()) == 60


def test_a_label_that_is_too_short_says_so_and_its_rest_goes_to_nobody():
    scores, names = labelled()
    has = names.count("c")
    found = select(scores, SelectionConfig(k=40, quotas=["c=1", "a=1"]), labels=names)
    assert found.unfilled == [f"label 'c' has no more rows: {has} of its 20"]
    assert len(found) == has + 20
    none = select(scores, SelectionConfig(k=4, quotas=["z=1", "a=1"]), labels=names)
    assert none.unfilled == ["label 'z' has no more rows: 0 of its 2"]
    tokens = np.full(60, 10)
    budget = SelectionConfig(token_budget=600, quotas=["c=1", "a=1"])
    spent = select(scores, budget, labels=names, tokens=tokens)
    assert f"label 'c' has no more rows: {10 * has} of its 300 tokens" in spent.unfilled
    assert spent.tokens == 10 * len(spent)
    share = select(scores, SelectionConfig(fraction=0.1, quotas=["a=1", "b=1"]), labels=names)
    assert len(share) == 6


def test_targets_and_unusable_rows_count_for_no_label():
    scores, names = labelled()
    exclude, scores.valid[:6] = np.arange(60) % 7 == 6, False
    found = select(scores, SelectionConfig(k=60, quotas=["a=1"]), labels=names, exclude=exclude)
    usable = [row for row in range(60) if names[row] == "a" and scores.valid[row] and not exclude[row]]
    assert sorted(found.indices.tolist()) == usable
    assert all(REASONS[found.reason[row]] == "target" for row in np.flatnonzero(exclude))
    assert all(REASONS[found.reason[row]] == "invalid" for row in range(6))


def test_quotas_that_mean_nothing_are_refused():
    scores, names = labelled()
    for limits, labels, error, words in (
        ({"k": 3, "quotas": ["a"]}, names, InputError, "quotas must be texts of the form LABEL=X"),
        ({"k": 3, "quotas": ["a=0"]}, names, InputError, "above 0"),
        ({"k": 3, "quotas": ["a=nan"]}, names, InputError, "above 0"),
        ({"k": 3, "quotas": ["a=1", "a=2"]}, names, InputError, "two shares to the label .a."),
        ({"min_score": 0.0, "quotas": ["a=1"]}, names, InputError, "of a whole"),
        ({"k": 3, "quotas": ["a=1"]}, None, ValueError, "need the labels"),
        ({"k": 3, "quotas": ["a=1"]}, names[1:], ValueError, "labels of the 60 rows"),
    ):
        with pytest.raises(error, match=words):
            select(scores, SelectionConfig(**limits), labels=labels)
    assert "quotas" not in select(scores, SelectionConfig(k=3)).config

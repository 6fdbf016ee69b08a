"""A method is only as good as what it beats: baselines must be right, and the comparison fair and honest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from finescope import InputError, SparseCodes
from finescope.curation import (
    DenseBaseline,
    Evidence,
    TfidfBaseline,
    average_results,
    compare_methods,
    length_scores,
    random_average_precision,
    random_scores,
    repool,
    z_add,
)
from finescope.curation.scoring.base import Column
from support import curation_oracle as oracle

TEXTS = [
    "gauss proved the theorem about integers",
    "the theorem on primes and integers",
    "sell the shares before the market falls",
    "market prices and shares fell sharply",
    "paint and canvas in the museum",
    "",
]


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def problem(rows=200, latents=40, seed=0):
    """A corpus in which a third of the rows share ten latents that the others rarely have."""
    rng = np.random.default_rng(seed)
    relevant = np.arange(rows) % 3 == 0
    dense = oracle.sparse_rows(rng, rows, latents, 0.2)
    dense[:, 0] = 3.0  # always on and loud
    dense[relevant, 10:20] += rng.random((relevant.sum(), 10)) * 0.8
    targets = oracle.sparse_rows(rng, 8, latents, 0.2)
    targets[:, 0] = 3.0
    targets[:, 10:20] += rng.random((8, 10)) * 0.8
    return dense, targets.astype(np.float32), relevant


def test_tfidf_scores_equal_dense_arithmetic():
    from sklearn.feature_extraction.text import TfidfVectorizer

    seeds = ["integers and primes", "a theorem"]
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    corpus = vectorizer.fit_transform(TEXTS).toarray()
    targets = vectorizer.transform(seeds).toarray()
    baseline = TfidfBaseline(TEXTS, seeds)
    np.testing.assert_allclose(
        baseline.max_cosine(np.arange(2)), (corpus @ targets.T).max(axis=1), atol=1e-12
    )
    np.testing.assert_allclose(baseline.max_cosine(np.array([1])), corpus @ targets[1], atol=1e-12)
    expected = corpus @ (targets.mean(axis=0) - corpus.mean(axis=0))
    np.testing.assert_allclose(baseline.contrast(np.arange(2)), expected, atol=1e-12)
    assert set(np.argsort(-expected)[:2]) == {0, 1}


def test_tfidf_without_words_says_so():
    with pytest.raises(InputError, match="no words in the 2 corpus texts"):
        TfidfBaseline(["", " "], ["x"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dense_scores_equal_dense_arithmetic(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    corpus = (rng.normal(size=(50, 8)) + 3).astype(dtype)
    targets = (rng.normal(size=(4, 8)) + 3).astype(dtype)
    corpus[7] = 0
    monkeypatch.setattr("finescope.curation.scoring.dense.BLOCK_ROWS", 9)
    baseline = DenseBaseline(torch.from_numpy(corpus), torch.from_numpy(targets))
    cosines = oracle.unit(corpus) @ oracle.unit(targets).T
    np.testing.assert_allclose(baseline.max_cosine(np.arange(4)), cosines.max(axis=1), atol=1e-12)
    np.testing.assert_allclose(baseline.max_cosine(np.array([2])), cosines[:, 2], atol=1e-12)
    mean = corpus.astype(np.float64).mean(axis=0)
    centred = oracle.unit(corpus - mean) @ oracle.unit(targets - mean).T
    np.testing.assert_allclose(baseline.centred_mean(np.arange(4)), centred.mean(axis=1), atol=1e-12)
    with pytest.raises(ValueError, match=r"\[50, 8\]"):
        DenseBaseline(corpus, targets[:, :3])


def test_random_length_and_z_add():
    assert np.array_equal(random_scores(9, 3), random_scores(9, 3))
    assert not np.array_equal(random_scores(9, 3), random_scores(9, 4))
    assert length_scores([3, 1]).tolist() == [3.0, 1.0]
    first, second = np.array([1.0, 2, 3]), np.array([100.0, 100, 400])
    expected = (first - 2) / first.std() + (second - 200) / second.std()
    np.testing.assert_allclose(z_add(first, second), expected)
    np.testing.assert_allclose(z_add(first, np.ones(3)), z_add(first))
    with pytest.raises(ValueError, match="at least one"):
        z_add()


def test_repool_is_the_root_and_the_square():
    dense = oracle.sparse_rows(np.random.default_rng(0), 5, 9)
    np.testing.assert_allclose(
        repool(codes(np.sqrt(dense)), "sqrt_mean", "mean").to_dense(), dense, rtol=1e-6
    )
    np.testing.assert_allclose(
        repool(codes(dense), "mean", "sqrt_mean").to_dense(), np.sqrt(dense), rtol=1e-6
    )
    same = codes(dense)
    assert repool(same, "max", "max") is same
    with pytest.raises(ValueError, match="pooled by max"):
        repool(same, "max", "mean")


def compare(**changes):
    dense, targets, relevant = problem()
    rows = {"codes": codes(np.sqrt(dense)), "pooling": "sqrt_mean", "dense": dense, "lengths": np.arange(200)}
    seeds = {"codes": codes(np.sqrt(targets)), "pooling": "sqrt_mean", "dense": targets}
    rows |= changes.pop("corpus", {})
    seeds |= changes.pop("targets", {})
    relevant = changes.pop("relevant", relevant)
    return compare_methods(relevant, Evidence(**rows), Evidence(**seeds), **{"draws": 20, **changes})


def test_the_table_holds_every_method_beside_random():
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["alpha", "beta", "gamma"], 4)) for _ in range(200)]
    table = compare(corpus={"texts": words}, targets={"texts": words[:8]})
    names = [result.name for result in table]
    assert set(names) == {
        "default",
        "paper",
        "contrast+tfidf",
        "ridge",
        "contrast",
        "jaccard",
        "dense-whitened",
        "tfidf-max",
        "tfidf",
        "dense",
        "dense-centred",
        "length",
        "random",
    }
    values = [result.metrics["average_precision"].value for result in table]
    assert values == sorted(values, reverse=True)
    at_k = {f"{name}@{k}" for name in ("precision", "recall", "lift") for k in (10, 100)}
    assert set(table[0].metrics) == {"average_precision", *at_k}
    json.dumps([result.to_dict() for result in table], allow_nan=False)


def test_values_are_those_of_the_scores_and_lift_is_over_chance():
    from sklearn.metrics import average_precision_score

    dense, targets, relevant = problem()
    result = next(result for result in compare() if result.name == "contrast")
    score, _, _ = oracle.scores(np.sqrt(targets), np.sqrt(dense), "contrast", oracle.idf(dense))
    first = relevant[np.argsort(-score)[:10]].mean()
    assert result.metrics["average_precision"].value == pytest.approx(
        average_precision_score(relevant, score)
    )
    assert result.metrics["precision@10"].value == pytest.approx(first)
    assert result.metrics["recall@10"].value == pytest.approx(first * 10 / relevant.sum())
    assert result.metrics["lift@10"].value == pytest.approx(first / relevant.mean())


def test_paper_is_measured_on_mean_codes_although_roots_are_stored():
    dense, targets, relevant = problem()
    from sklearn.metrics import average_precision_score

    score, _, _ = oracle.scores(targets, dense, "max")
    result = next(result for result in compare() if result.name == "paper")
    expected = average_precision_score(relevant, np.round(score, 9))
    assert result.metrics["average_precision"].value == pytest.approx(expected, abs=5e-3)


def test_weighting_and_contrast_beat_the_loud_latent():
    table = {result.name: result.metrics["average_precision"].value for result in compare()}
    assert table["contrast"] > table["paper"] > table["random"]


def test_random_is_exact_and_its_interval_holds_it():
    _, _, relevant = problem()
    result = next(result for result in compare() if result.name == "random")
    exact = random_average_precision(200, int(relevant.sum()))
    interval = result.metrics["average_precision"]
    assert interval.value == exact
    assert interval.low < exact < interval.high
    assert result.metrics["lift@10"].value == 1.0
    assert result.metrics["precision@10"].value == pytest.approx(relevant.mean())


def test_intervals_come_from_other_targets():
    by_name = {result.name: result.metrics["average_precision"] for result in compare()}
    for name in ("default", "paper", "dense", "dense-centred"):
        assert by_name[name].low < by_name[name].high
    assert by_name["length"].low == by_name["length"].high
    again = {result.name: result.metrics["average_precision"] for result in compare()}
    assert again == by_name
    fewer = {result.name: result.metrics["average_precision"] for result in compare(draws=3)}
    assert fewer["default"].value == by_name["default"].value
    assert fewer["default"].low != by_name["default"].low


def test_excluded_and_empty_rows_are_neither_found_nor_missed():
    dense, _, relevant = problem()
    dense[150] = 0
    exclude = np.zeros(200, bool)
    exclude[:100] = True
    part = compare(corpus={"codes": codes(np.sqrt(dense))}, exclude=exclude)
    kept = ~exclude & dense.any(axis=1)
    for result in part:
        if result.name == "random":
            expected = random_average_precision(int(kept.sum()), int(relevant[kept].sum()))
            assert result.metrics["average_precision"].value == expected
        if result.name == "length":
            order = [row for row in range(199, -1, -1) if kept[row]]
            assert result.metrics["precision@10"].value == pytest.approx(relevant[order[:10]].mean())


def test_presets_that_the_codes_can_not_serve_are_left_out():
    names = {result.name for result in compare(corpus={"pooling": "max"}, targets={"pooling": "max"})}
    assert not any(name.startswith("codes") for name in names)
    assert "random" in names


def test_an_extra_method_joins_the_table():
    _, _, relevant = problem()

    class Oracle(Column):
        def values(self, rows, lengths):
            return relevant.astype(float)

    table = compare(methods=("default", Oracle("oracle", "knows")))
    assert [line.name for line in table] == ["oracle", "default"]
    assert table[0].metrics["average_precision"].value == 1.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"relevant": np.zeros(200, bool)}, InputError, "no row of the target domain"),
        ({"relevant": np.ones(3, bool)}, ValueError, "relevant has 3"),
        ({"corpus": {"lengths": [1]}}, ValueError, "lengths has 1"),
        ({"exclude": np.ones(200, bool)}, InputError, "no row of the target domain"),
        ({"targets": {"dense": np.ones((3, 40))}}, ValueError, "target_dense has 3"),
    ],
)
def test_misuse_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        compare(**changes)


def test_tables_of_several_domains_are_averaged():
    from scipy import stats

    tables = [compare(draws=0, relevant=np.arange(200) % 5 == wanted) for wanted in (0, 1, 2)]
    mean = {result.name: result.metrics["average_precision"] for result in average_results(tables)}
    for name, interval in mean.items():
        values = [
            next(item for item in table if item.name == name).metrics["average_precision"].value
            for table in tables
        ]
        assert interval.value == pytest.approx(np.mean(values))
        reach = stats.t.ppf(0.975, 2) * stats.sem(values)
        assert interval.low == pytest.approx(max(0, interval.value - reach))
        assert interval.high == pytest.approx(min(1, interval.value + reach))
    with pytest.raises(ValueError, match="at least one table"):
        average_results([])

"""A sum of scorers is a scorer: in its scores, in their explanation, and from its saved state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finescope import InputError, SparseCodes
from finescope.curation import SCORERS, Evidence, Scoring, Spaces, curation_quality, parse_scorer
from finescope.curation.scoring.base import FOLDS, folds_of
from finescope.curation.scoring.scorers import TABLE
from support import curation_oracle as oracle

ROWS, TARGETS, LATENTS = 90, 6, 40
WORDS = [f"word{number}" for number in range(30)]


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def problem():
    """Corpus and targets with everything a scorer may need; by idf one target weighs nothing."""
    rng = np.random.default_rng(8)
    corpus, targets = oracle.sparse_rows(rng, ROWS, LATENTS), oracle.sparse_rows(rng, TARGETS, LATENTS)
    corpus[:, 0] = 1.0
    corpus[11] = 0.0
    targets[3] = 0.0
    targets[3, 0] = 1.0
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(ROWS)]
    texts[4] = ""
    seeds = [" ".join(rng.choice(WORDS, 5)) for _ in range(TARGETS)]
    dense, dense_seeds = rng.normal(size=(ROWS, 5)) + 2, rng.normal(size=(TARGETS, 5)) + 2
    rows = Evidence(codes(corpus), "sqrt_mean", texts, dense, rng.integers(1, 50, ROWS))
    return rows, Evidence(codes(targets), "sqrt_mean", seeds, dense_seeds)


def dense_codes(evidence):
    return evidence.codes.to_dense().numpy()


def by_definition(name, rows, seeds):
    """The score of one scorer, from dense arithmetic; rows without a code score 0."""
    weights = oracle.idf(dense_codes(rows))
    if name in ("tfidf", "tfidf-max"):
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(sublinear_tf=True)
        corpus = vectorizer.fit_transform(rows.texts).toarray()
        targets = vectorizer.transform(seeds.texts).toarray()
        best = (corpus @ targets.T).max(axis=1)
        return best if name == "tfidf-max" else corpus @ (targets.mean(axis=0) - corpus.mean(axis=0))
    if name == "dense":
        return (oracle.unit(rows.dense) @ oracle.unit(seeds.dense).T).max(axis=1)
    if name == "dense-centred":
        mean = rows.dense.mean(axis=0)
        return (oracle.unit(rows.dense - mean) @ oracle.unit(seeds.dense - mean).T).mean(axis=1)
    if name == "dense-whitened":
        root, centre = oracle.whitening(rows.dense), rows.dense.mean(axis=0)
        corpus, targets = (oracle.unit((dense - centre) @ root) for dense in (rows.dense, seeds.dense))
        return (corpus @ targets.T).mean(axis=1)
    if name == "length":
        return np.asarray(rows.lengths, np.float64)
    if name == "random":
        return np.random.default_rng(42).random(ROWS)
    folds = folds_of(rows.codes)
    return oracle.scores(dense_codes(seeds), dense_codes(rows), name, weights, folds=folds)[0]


@pytest.mark.parametrize("name", TABLE)
def test_every_scorer_of_the_table_equals_its_definition(name):
    rows, seeds = problem()
    table = Scoring(rows, seeds, scorer=name).score()
    expected = by_definition(name, rows, seeds)
    expected[11] = 0.0
    np.testing.assert_allclose(table.score, expected, rtol=0, atol=1e-9 if name == "ridge" else 1e-12)
    assert np.flatnonzero(~table.valid).tolist() == [11]
    assert table.scorer == name
    # Whatever scores, the nearest target is that of the codes.
    _, nearest, similarity = oracle.scores(
        dense_codes(seeds), dense_codes(rows), "max", oracle.idf(dense_codes(rows))
    )
    np.testing.assert_array_equal(np.delete(table.nearest_target, 11), np.delete(nearest, 11))
    np.testing.assert_allclose(table.nearest_similarity, similarity, rtol=0, atol=1e-12)


SUMS = {
    "contrast+tfidf": {"contrast": 1, "tfidf": 1},
    " contrast + 0.5 * tfidf ": {"contrast": 1, "tfidf": 0.5},
    "codes+.25*dense-centred+tfidf-max": {"contrast": 1, "dense-centred": 0.25, "tfidf-max": 1},
    "max+contrast": {"max": 1, "contrast": 1},
    "top_m_mean+-0.1*length+random": {"top_m_mean": 1, "length": -0.1, "random": 1},
    "2*centroid": {"centroid": 2},
    "ridge+tfidf+dense-whitened": {"ridge": 1, "tfidf": 1, "dense-whitened": 1},
    "jaccard+0.5*length": {"jaccard": 1, "length": 0.5},
    "dense+mean": {"dense": 1, "mean": 1},
}


@pytest.mark.parametrize("written", SUMS)
def test_a_sum_adds_standardised_scores(written):
    rows, seeds = problem()
    expected = np.zeros(ROWS)
    for name, weight in SUMS[written].items():
        score = by_definition(name, rows, seeds)
        if name in SCORERS:
            score[11] = 0.0
        expected += weight * (score - score.mean()) / score.std()
    expected[11] = 0.0
    np.testing.assert_allclose(
        Scoring(rows, seeds, scorer=written).score().score, expected, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("weights", ["none", "idf"])
@pytest.mark.parametrize("written", [*TABLE, *SUMS])
def test_contributions_sum_to_the_score_of_every_row(written, weights):
    from dataclasses import replace

    from finescope.curation import PRESETS

    rows, seeds = problem()
    scoring = Scoring(rows, seeds, replace(PRESETS["default"], weights=weights), scorer=written)
    table = scoring.score()
    found = scoring.contributions(np.arange(ROWS))
    np.testing.assert_allclose(found.total(), table.score, rtol=0, atol=1e-9)
    spaces = {
        "tfidf": "words", "tfidf-max": "words", "dense": "dense", "dense-centred": "dense-centred",
        "dense-whitened": "dense-whitened",
        "length": "codes", "random": "codes",
    }  # fmt: skip
    names = SUMS.get(written, [written])
    assert set(found.parts) == {"codes"} | {spaces.get(name, "codes") for name in names}


def test_two_terms_of_one_space_are_one_part():
    rows, seeds = problem()
    one = Scoring(rows, seeds, scorer="max+contrast")
    table = one.score()
    picked = np.array([3, 70, 3])
    addends = one.contributions(picked).latents
    assert addends.shape == (3, LATENTS)
    np.testing.assert_array_equal(addends[0].toarray(), addends[2].toarray())
    assert table.scorer == "max+contrast"


class Guarded:
    """Codes that may be looked up row by row, and not be passed over again."""

    def __init__(self, codes):
        self.num_latents, self._codes = codes.num_latents, codes

    def __len__(self):
        return len(self._codes)

    def take(self, rows):
        return self._codes[rows]

    def iter_shards(self):
        raise AssertionError("a pass over the corpus")


@pytest.mark.parametrize(
    "written", ["contrast", "max", "contrast+0.5*tfidf+dense-centred", "ridge+dense-whitened", "2*length+max"]
)
def test_the_saved_state_explains_without_another_pass(written, monkeypatch):
    rows, seeds = problem()
    first = Scoring(rows, seeds, scorer=written)
    first.score()
    wanted = first.contributions(np.array([5, 0, 89]))
    if "ridge" in written:
        assert first.state()["fit.ridge"].shape == (FOLDS, LATENTS)
        monkeypatch.setattr("finescope.curation.scoring.ridge._fitted", None)
    kept = Evidence(Guarded(rows.codes), rows.pooling, rows.texts, rows.dense, rows.lengths)
    again = Scoring(kept, seeds, scorer=written, state=first.state())
    found = again.contributions(np.array([5, 0, 89]))
    np.testing.assert_array_equal(found.constant, wanted.constant)
    for name, part in wanted.parts.items():
        np.testing.assert_array_equal(found.parts[name].toarray(), part.toarray())
    chosen = np.array([7, 2, 40])
    assert curation_quality(again.targets, again.space, chosen) == curation_quality(
        first.targets, rows.codes, chosen, weights=first.space.weights
    )


def test_what_another_version_has_fitted_is_refused():
    rows, seeds = problem()
    first = Scoring(rows, seeds, scorer="ridge")
    first.score()
    state = first.state()
    again = Scoring(rows, seeds, scorer="ridge", state=state | {"fit.ridge": state["fit.ridge"][0]})
    with pytest.raises(InputError, match="what ridge has learned was kept by another version"):
        again.contributions(np.array([5]))


def test_what_was_learned_with_one_recipe_is_not_taken_for_another_s():
    rows, seeds = problem()
    learned = Scoring(rows, seeds)
    learned.score()
    for recipe in ("default", "paper"):
        with_state = Scoring(rows, seeds, recipe, state=learned.state()).score()
        np.testing.assert_array_equal(with_state.score, Scoring(rows, seeds, recipe).score().score)


def test_spaces_serve_several_target_sets():
    rows, seeds = problem()
    spaces = Spaces(rows)
    half = Evidence(seeds.codes[:3], seeds.pooling, seeds.texts[:3], seeds.dense[:3])
    for wanted in (seeds, half):
        shared, alone = (Scoring(each, wanted, scorer="contrast+tfidf").score() for each in (spaces, rows))
        np.testing.assert_array_equal(shared.score, alone.score)
    one, two = (Scoring(spaces, wanted, scorer="contrast+tfidf") for wanted in (seeds, half))
    assert one.space is two.space


def test_stored_roots_serve_a_recipe_of_means():
    rows, seeds = problem()
    table = Scoring(rows, seeds, "paper").score()
    expected, _, _ = oracle.scores(dense_codes(seeds) ** 2, dense_codes(rows) ** 2, "max")
    np.testing.assert_allclose(table.score, expected, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="pooled by max"):
        Scoring(Evidence(rows.codes, "max"), Evidence(seeds.codes, "max"), "paper").score()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("contrast+0.5*tfidf", "contrast+0.5*tfidf"),
        (" codes + tfidf", "contrast+tfidf"),
        ("1*max", "max"),
        ("-2*length+random", "-2*length+random"),
    ],
)
def test_what_is_written_has_one_name(written, name):
    found = parse_scorer(written)
    assert found.name == name
    assert parse_scorer(found.name).terms == found.terms


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("contrats", r"unknown scorer 'contrats'.*did you mean contrast\?.*known are contrast, max"),
        ("contrast+", "can't be read at ''"),
        ("contrast tfidf", "can't be read at 'contrast tfidf'"),
        ("contrast+x*tfidf", "can't be read"),
        ("contrast+0*tfidf", "weight of tfidf is 0"),
        ("", "can't be read"),
    ],
)
def test_what_can_not_be_read_is_named(written, message):
    with pytest.raises(ValueError, match=message):
        parse_scorer(written)


@pytest.mark.parametrize(
    ("written", "missing"), [("tfidf", "texts"), ("contrast+dense", "dense"), ("length", "lengths")]
)
def test_a_scorer_says_what_it_needs(written, missing):
    rows, seeds = problem()
    bare = Evidence(rows.codes, rows.pooling), Evidence(seeds.codes, seeds.pooling)
    assert missing in parse_scorer(written).needs
    with pytest.raises(ValueError, match=f"needs the {missing}"):
        Scoring(*bare, scorer=written)
    if missing != "lengths":
        with pytest.raises(ValueError, match=f"needs the {missing}"):
            Scoring(rows, bare[1], scorer=written)


def test_lengths_are_those_of_the_texts_where_no_others_are_known():
    rows, seeds = problem()
    table = Scoring(Evidence(rows.codes, texts=rows.texts), seeds, scorer="length").score()
    assert table.score[:11].tolist() == [len(text) for text in rows.texts[:11]]


def test_evidence_must_be_of_as_many_rows():
    rows, seeds = problem()
    with pytest.raises(ValueError, match="dense has 3 entries, expected 90"):
        Spaces(Evidence(rows.codes, dense=rows.dense[:3]))
    with pytest.raises(ValueError, match="target_texts has 2 entries, expected 6"):
        Scoring(rows, Evidence(seeds.codes, texts=["a", "b"]))
    with pytest.raises(InputError, match="2 texts for 90 codes"):
        Scoring(Evidence(rows.codes, texts=iter(["one text", "two texts"])), seeds, scorer="tfidf").score()
    with pytest.raises(ValueError, match=r"\[90, 5\].*\[6, 2\]"):
        Scoring(rows, Evidence(seeds.codes, dense=seeds.dense[:, :2]), scorer="dense").score()


def test_changed_vectors_are_the_same_held_or_made_as_they_are_read(monkeypatch):
    rows, seeds = problem()
    written = "dense-whitened+dense-centred"
    held = Scoring(rows, seeds, scorer=written).score().score
    monkeypatch.setattr("finescope.curation.scoring.dense.HELD_BYTES", 0)
    np.testing.assert_array_equal(held, Scoring(rows, seeds, scorer=written).score().score)


def test_whitening_of_many_rows_looks_at_some_of_them_and_at_no_broken_one(monkeypatch):
    rng = np.random.default_rng(4)
    dense = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    monkeypatch.setattr("finescope.curation.scoring.dense.WHITENED_ROWS", 50)
    looked_at = np.linspace(0, 299, 50).astype(int)
    dense[looked_at[7], 2] = np.inf
    kept = np.delete(looked_at, 7)
    rows, seeds = rows_of(dense), rows_of(dense[:4])
    found = Scoring(rows, seeds, scorer="dense-whitened").score().score
    root, centre = oracle.whitening(dense[kept]), dense[kept].mean(axis=0)
    fine = np.isfinite(dense).all(axis=1)
    unit = oracle.unit((dense[fine] - centre) @ root)
    np.testing.assert_allclose(found[fine], (unit @ unit[:4].T).mean(axis=1), rtol=0, atol=1e-12)


def rows_of(dense):
    return Evidence(codes(np.ones((len(dense), 3))), "mean", dense=dense)


@pytest.mark.parametrize("width", [1, 4])
def test_vectors_that_are_all_alike_have_no_spread_to_divide_by(width):
    """No target has a direction then, and the message says so."""
    alike = rows_of(np.ones((5, width)))
    with pytest.raises(InputError, match="no target has a dimension"):
        Scoring(alike, alike, scorer="dense-whitened").score()

"""Several target sets at once: each scored as if alone, every row given once, shares kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope import InputError, SparseCodes
from finescope.cli import main
from finescope.curation import REASONS, CorpusScorer, Evidence, ScoreTable, Scoring, SelectionConfig, Spaces
from finescope.curation.exclusion import find_all_targets, find_targets
from finescope.curation.scoring import space
from finescope.curation.scoring.fitted import score_in_passes, score_together
from finescope.curation.sets import assign, select_sets
from finescope.curation.shares import split
from support import curation_oracle as oracle
from support.cli_job import save_job, write_jsonl


def codes(dense):
    return SparseCodes.from_dense(torch.from_numpy(np.asarray(dense, np.float32)))


def table(score, valid=None):
    score = np.asarray(score, np.float64)
    rows = score.size
    valid = np.ones(rows, bool) if valid is None else np.asarray(valid)
    return ScoreTable(score, np.zeros(rows, np.int64), np.zeros(rows), valid, "contrast")


@pytest.mark.parametrize("scorer", ["contrast", "top_m_mean+0.5*max", "ridge+tfidf", "jaccard", "length"])
@pytest.mark.parametrize("sparse", [False, True])
def test_every_set_is_scored_as_if_alone_in_as_few_passes(scorer, sparse, monkeypatch):
    if sparse:  # together; alone each set is small
        monkeypatch.setattr(space, "SPARSE_TARGETS", 8)
        monkeypatch.setattr(space, "SPARSE", 1)
    rng = np.random.default_rng(0)
    corpus = oracle.sparse_rows(rng, 90, 30)
    texts = [" ".join(rng.choice(["one", "two", "three", "four"], 3)) for _ in range(90)]
    passes = []

    class Counted:
        num_latents = 30

        def __len__(self):
            return 90

        def take(self, rows):
            return codes(corpus)[rows]

        def iter_shards(self):
            passes.append(1)
            return iter([codes(corpus)])

    def scorings(names):
        passes.clear()
        spaces = Spaces(Evidence(Counted(), texts=texts))
        return [Scoring(spaces, sets[name], scorer=scorer) for name in names]

    sets = {
        name: Evidence(codes(oracle.sparse_rows(rng, count, 30)), texts=texts[:count])
        for name, count in (("a", 4), ("b", 7), ("c", 1))
    }
    together = score_together(scorings("abc"))
    of_all = len(passes)
    for name, found in zip("abc", together, strict=True):
        alone = scorings(name)[0].score()
        assert len(passes) == of_all
        for column, values in alone.columns().items():
            np.testing.assert_array_equal(found.columns()[column], values)
    asked = scorings("abc")
    for scored, scoring, found in zip(score_in_passes(asked, nearest=False), asked, together, strict=True):
        np.testing.assert_array_equal(scored.table().score, found.score)
        assert not scored.has_nearest
        some = np.array([5, 0, 5, 3])
        for one, other in zip(
            scoring.nearest(some), (found.nearest_target, found.nearest_similarity), strict=True
        ):
            np.testing.assert_array_equal(one, other[some])


@pytest.mark.parametrize("count", [1, 255, 256])
def test_the_nearest_target_is_the_first_of_the_largest_cosines(count):
    rng = np.random.default_rng(count)
    targets = oracle.sparse_rows(rng, 3, 12)[rng.integers(0, 3, count)]  # equal ones
    corpus = np.concatenate([oracle.sparse_rows(rng, 40, 12), np.zeros((1, 12)), -targets[:1]])
    found = CorpusScorer(codes(corpus)).score(codes(targets), "max")
    t, x = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (targets, corpus)
    )
    cosines = np.round(x @ t.T, 12)
    assert found.nearest_target.tolist() == [*cosines[:40].argmax(axis=1), -1, cosines[41].argmax()]
    np.testing.assert_allclose(found.nearest_similarity, cosines.max(axis=1), atol=1e-12)


def test_targets_of_every_set_are_told_as_those_of_one():
    names = st.sampled_from(["a", "b", "c", "d", "e"])
    digests = st.none() | st.sampled_from([f"{at:032x}" for at in range(4)])
    rows = st.lists(st.tuples(names, digests), max_size=8)

    @given(rows, st.lists(st.tuples(rows, st.booleans()), min_size=1, max_size=3))
    @settings(max_examples=150, deadline=None)
    def check(corpus, sets):
        ids = pa.chunked_array([[name for name, _ in corpus]], pa.string())
        kept = [None if digest is None else bytes.fromhex(digest) for _, digest in corpus]
        hashes = pa.chunked_array([kept], pa.binary(16))
        given = [
            ([name for name, _ in of_set] if own else [], [digest for _, digest in of_set])
            for of_set, own in sets
        ]
        size = 3
        blocks = [(ids[low : low + size], hashes[low : low + size]) for low in range(0, len(ids), size)]
        found = find_all_targets(blocks, given)
        for (wanted, said), (among, counts) in zip(given, found, strict=True):
            alone = find_targets(
                [name for name, _ in corpus], wanted, hashes=[digest for _, digest in corpus],
                target_hashes=said,
            )  # fmt: skip
            assert among.tolist() == np.flatnonzero(alone.marked).tolist()
            assert counts == alone.counts()

    check()


def test_scorings_of_different_spaces_share_no_pass():
    rows = Evidence(codes(np.eye(3)))
    with pytest.raises(ValueError, match="share their spaces"):
        score_together([Scoring(rows, rows), Scoring(rows, rows)])


def test_a_row_belongs_where_it_stands_out_most():
    first, second = table([5, 1, 1, 9, 0]), table([50, 40, 10, 0, 0])
    first.valid[4] = False
    z = [(x[:4] - x[:4].mean()) / x[:4].std() for x in (first.score, second.score)]
    expected = [*(np.argmax(np.stack(z), axis=0).tolist()), -1]
    assert assign({"a": first, "b": second}).tolist() == expected
    assert assign({"a": first, "b": first}).tolist() == [0, 0, 0, 0, -1]
    constant = table(np.ones(4))
    assert assign({"a": constant, "b": constant}).tolist() == [0] * 4
    with pytest.raises(ValueError, match="same rows"):
        assign({"a": first, "b": constant})
    with pytest.raises(ValueError, match="same rows"):
        assign({})


@given(st.integers(0, 200), st.lists(st.floats(0.01, 50), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_split_adds_up_and_is_within_one_of_its_share(total, shares):
    found = split(total, {str(at): share for at, share in enumerate(shares)})
    assert sum(found.values()) == total
    for count, share in zip(found.values(), shares, strict=True):
        assert abs(count - total * share / sum(shares)) < 1 + 1e-9


def test_equal_remainders_go_to_the_first():
    assert split(5, {"b": 1, "a": 1}) == {"b": 3, "a": 2}
    assert split(5, {"b": 1e308, "a": 1e308, "c": 5e-324}) == {"b": 3, "a": 2, "c": 0}
    assert split(3, {"a": 0.1, "b": 0.2, "c": 0.3}) == {"a": 1, "b": 1, "c": 1}  # remainders ½, 0, ½
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="share of a must be a positive number"):
            split(5, {"b": 1, "a": share})


def random_tables(rows=60):
    rng = np.random.default_rng(3)
    return {name: table(rng.normal(size=rows)) for name in ("a", "b", "c")}


def test_exclusive_sets_have_no_row_in_common_and_say_whose_it_is():
    tables, own = random_tables(), assign(random_tables())
    exclude = np.arange(60) < 5
    found = select_sets(tables, SelectionConfig(k=30), exclusive=True, exclude=exclude)
    chosen = np.concatenate([selection.indices for selection in found.values()])
    assert len(set(chosen.tolist())) == chosen.size == 55  # none has more than 30 of its own
    for place, selection in enumerate(found.values()):
        assert (own[selection.indices] == place).all()
        assert (selection.reason[5:][own[5:] != place] == REASONS.index("other_set")).all()
        assert (selection.reason[:5] == REASONS.index("target")).all()
    several = select_sets(tables, SelectionConfig(k=30), exclude=exclude)
    assert [len(selection) for selection in several.values()] == [30] * 3


def test_shares_divide_rows_and_tokens():
    tables = random_tables()
    found = select_sets(tables, SelectionConfig(k=10), shares={"c": 1, "a": 3, "b": 1})
    assert {name: len(selection) for name, selection in found.items()} == {"a": 6, "b": 2, "c": 2}
    tokens = np.full(60, 10)
    budget = SelectionConfig(token_budget=100)
    found = select_sets(tables, budget, shares={"a": 0.5, "b": 0.25, "c": 0.25}, tokens=tokens)
    assert {name: selection.tokens for name, selection in found.items()} == {"a": 50, "b": 20, "c": 20}
    with pytest.raises(InputError, match="each of the sets a, b, c; got a, b"):
        select_sets(tables, SelectionConfig(k=10), shares={"a": 1, "b": 1})
    with pytest.raises(InputError, match="how many rows"):
        select_sets(tables, SelectionConfig(min_score=0.0), shares={"a": 1, "b": 1, "c": 1})


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of a corpus and of two target sets, one of each topic."""
    folder = save_job(tmp_path_factory.mktemp("job"))
    rows = read(folder / "corpus.jsonl")
    for name in ("animals", "sky"):
        some = [row for row in rows if row["label"] == name][:5]
        write_jsonl(folder / f"{name}.jsonl", some)
    model = ["--model", folder / "model", "--layer", "layers.0"]
    sizes = ["--set", "training.num_epochs=1"]
    acts = ["activations", *model, "--corpus", folder / "corpus.jsonl", "--out", folder / "acts"]
    steps = [acts, ["train", folder / "acts", "--out", folder / "sae", *sizes]]
    for name in ("corpus", "animals", "sky"):
        place = ["--corpus", folder / f"{name}.jsonl", "--out", folder / f"{name}-codes"]
        steps.append(["embed", *model, "--sae", folder / "sae", *place])
    for step in steps:
        result = invoke(*step)
        assert result.exit_code == 0, (step, result.stderr)
    return folder


def test_from_codes_to_a_mixture(stores: Path, tmp_path: Path) -> None:
    sets = [f"{name}={stores / name}-codes" for name in ("animals", "sky")]
    scores = tmp_path / "scores"
    result = invoke("score", stores / "corpus-codes", *sets, "--out", scores)
    assert result.exit_code == 0, result.stderr
    names = ["animals.parquet", "rows.parquet", "sets.json", "sky.parquet"]
    assert sorted(path.name for path in scores.iterdir()) == names
    corpus = ["--corpus", stores / "corpus.jsonl", "--out", tmp_path / "picked"]
    mixed = invoke("select", scores, *corpus, "-k", 9, "--share", "animals=2", "--share", "sky=1")
    assert mixed.exit_code == 0, mixed.stderr
    own = {name: read(tmp_path / "picked" / f"{name}.jsonl") for name in ("animals", "sky")}
    assert {name: len(rows) for name, rows in own.items()} == {"animals": 6, "sky": 3}
    mixture = read(tmp_path / "picked" / "mixture.jsonl")
    for name, rows in own.items():
        kept = [{key: value for key, value in row.items() if key != "finescope_set"}
                for row in mixture if row["finescope_set"] == name]  # fmt: skip
        assert kept == rows
    assert [row["finescope_set"] for row in mixture[:3]] == ["animals", "sky", "animals"]
    seeds = {row["id"] for name in own for row in read(stores / f"{name}.jsonl")}
    assert not seeds & {row["id"] for row in mixture}  # a target of one set is found by no other
    plain = invoke("select", scores, *corpus, "-k", 4, "--format", "parquet")
    assert plain.exit_code == 0, plain.stderr
    assert (tmp_path / "picked" / "sky.parquet").is_file()


def test_copies_are_told_in_the_codes_that_were_scored(stores: Path, tmp_path: Path) -> None:
    codes, recipe = stores / "corpus-codes", ["--preset", "paper"]  # of another pooling than was stored
    place = f"{stores / 'animals'}-codes"
    assert invoke("score", codes, f"animals={place}", *recipe, "--out", tmp_path / "scores").exit_code == 0
    assert invoke("score", codes, place, *recipe, "--out", tmp_path / "alone.parquet").exit_code == 0
    for limit in (0.4, 0.5, 0.6, 0.7, 0.8):
        limits = ["--corpus", stores / "corpus.jsonl", "--codes", codes, "--near-duplicate", limit, "-k", 40]
        of_set = invoke("select", tmp_path / "scores", *limits, "--out", tmp_path / "picked")
        alone = invoke("select", tmp_path / "alone.parquet", *limits, "--out", tmp_path / "alone.jsonl")
        assert of_set.exit_code == alone.exit_code == 0
        assert read(tmp_path / "picked" / "animals.jsonl") == read(tmp_path / "alone.jsonl")


def test_misuse_is_named(stores: Path, tmp_path: Path) -> None:
    place, other = stores / "animals-codes", stores / "sky-codes"
    corpus, scores = stores / "corpus-codes", tmp_path / "scores"
    refused = {
        "Several target sets need names": ["score", corpus, f"a={place}", other],
        "Two target sets are called a": ["score", corpus, f"a={place}", f"a={other}"],
        "go into a folder": ["score", corpus, f"a={place}", "--out", tmp_path / "x.parquet"],
    }
    assert invoke("score", corpus, f"a={place}", f"b={other}", "--out", scores).exit_code == 0
    rows = ["--corpus", stores / "corpus.jsonl", "--out", tmp_path / "picked"]
    alone = invoke("select", scores / "a.parquet", *rows, "-k", 3)
    assert (alone.exit_code, "give their folder" in alone.stderr) == (1, True)
    refused |= {
        "need --corpus and --out": ["select", scores],
        "not of the form NAME=X": ["select", scores, *rows, "--share", "a"],
        "two shares are given to 'a'": ["select", scores, *rows, "--share", "a=1", "--share", "a=2"],
        "--quota goes with": ["select", scores, *rows, "--quota", "a=1"],
        "--scorer goes with": ["select", scores, *rows, "--scorer", "max"],
        "a single target set": ["select", scores, *rows, "--strategy", "per_target"],
        "need --codes": ["select", scores, *rows, "--diversity", "0.9"],
        "folder of several": ["select", scores / "a.parquet", *rows, "--exclusive"],
    }
    for words, arguments in refused.items():
        result = invoke(*arguments)
        assert (result.exit_code, words in result.stderr) == (2, True), (arguments, result.stderr)
    result = invoke("score", corpus, f"a={tmp_path / 'nothing'}")
    assert (result.exit_code, "nothing does not exist" in result.stderr) == (1, True)
    result = invoke("select", scores, *rows, "-k", 3, "--share", "a=1")
    assert (result.exit_code, "each of the sets a, b" in result.stderr) == (1, True)


@pytest.mark.parametrize("name", ["mixture", "rows", "..", ".hidden", "../sky", "/sky", ""])
def test_names_that_would_lead_elsewhere_are_refused(stores: Path, tmp_path: Path, name: str) -> None:
    from finescope.workflow.sets import check_set_name, read_sets

    with pytest.raises(InputError, match="can't be the name of a target set"):
        check_set_name(name)
    (tmp_path / "sets.json").write_text(json.dumps({"sets": [name]}))
    with pytest.raises(InputError, match="can't be the name of a target set"):
        read_sets(tmp_path)

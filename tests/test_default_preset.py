"""The preset that is taken where none is named looks at all that is known of the rows, and says what isn't.

Fails if: rows of which only the codes are known can't be scored by it, or something is left out without a
word; what it leaves out changes the parts that scores are taken apart into; what was the default before has
no name.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from finescope import InputError, SparseCodes
from finescope.cli import main
from finescope.curation import PRESETS, Evidence, Scoring, compare_methods, parse_scorer
from finescope.curation.blocks import product, with_values
from finescope.curation.scoring import dense as vectors
from finescope.curation.scoring.dense import DenseRows, whitened
from support import curation_oracle as oracle
from support.cli_job import save_run

ROWS, TARGETS, LATENTS = 120, 6, 40
TERMS = {term.name: term for _, term in parse_scorer(PRESETS["default"].scorer).terms}
ON_CODES = [name for name, term in TERMS.items() if not term.needs]


def evidence(rows: int, seed: int, words: str = "word") -> Evidence:
    rng = np.random.default_rng(seed)
    dense = oracle.sparse_rows(rng, rows, LATENTS)
    texts = [" ".join(f"{words}{number}" for number in rng.integers(0, 30, 7)) for _ in range(rows)]
    codes = SparseCodes.from_dense(torch.from_numpy(dense.astype(np.float32)))
    return Evidence(codes, "sqrt_mean", texts, rng.normal(size=(rows, 5)) + 2)


def problem() -> tuple[Evidence, Evidence]:
    return evidence(ROWS, 1), evidence(TARGETS, 2)


def test_it_looks_at_everything_that_is_known() -> None:
    scoring = Scoring(*problem())
    assert scoring.scorer.name == PRESETS["default"].scorer
    assert scoring.remark == ""
    assert set().union(*(term.needs for term in TERMS.values())) == {"texts", "dense"}
    assert len(ON_CODES) == 1


@pytest.mark.parametrize("missing", ["texts", "dense", "both"])
@pytest.mark.parametrize("side", ["corpus", "targets"])
def test_what_is_not_known_is_left_out_and_named(missing: str, side: str) -> None:
    without = {name: None for name in ("texts", "dense") if missing in (name, "both")}
    corpus, targets = problem()
    if side == "corpus":
        corpus = dataclasses.replace(corpus, **without)
    else:
        targets = dataclasses.replace(targets, **without)
    scoring = Scoring(corpus, targets)
    left = [name for name, term in TERMS.items() if not term.needs & set(without)]
    table = scoring.score()
    assert [term.name for _, term in scoring.scorer.terms] == left
    for name, term in TERMS.items():
        assert (f"without {name}: no " in scoring.remark) == bool(term.needs & set(without))
    rows = np.arange(ROWS)
    np.testing.assert_allclose(scoring.contributions(rows).total(), table.score, rtol=0, atol=1e-9)
    again = Scoring(corpus, targets, state=scoring.state())
    np.testing.assert_allclose(again.contributions(rows).total(), table.score, rtol=0, atol=1e-9)
    line = next(line for line in compare_methods(rows < 30, corpus, targets, methods=("default",), draws=0))
    order = np.argsort(-table.score, kind="stable")
    hits = (rows < 30)[order]
    expected = (np.arange(1, 31) / (np.flatnonzero(hits) + 1)).mean()
    assert line.metrics["average_precision"].value == pytest.approx(expected, abs=1e-12)


def test_saving_what_was_learned_whitens_no_row_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finescope.curation.scoring.dense.HELD_BYTES", 0)
    scoring = Scoring(*problem())
    scoring.score()
    monkeypatch.setattr("finescope.curation.scoring.dense.Centred.__call__", None)
    assert "dense-whitened.root" in scoring.state()


def test_texts_that_share_no_word_are_scored_by_the_rest() -> None:
    corpus, _ = problem()
    for targets in (evidence(TARGETS, 2, words="mot"), evidence(TARGETS, 2, words="語")):
        scoring = Scoring(corpus, targets)
        assert "without tfidf: corpus and targets share no word" in scoring.remark
        assert np.isfinite(scoring.score().score).all()


def test_texts_of_other_rows_are_no_reason_to_go_on_without() -> None:
    corpus, targets = problem()
    corpus = dataclasses.replace(corpus, texts=iter(corpus.texts[1:]))
    with pytest.raises(InputError, match="119 texts for 120 codes"):
        Scoring(corpus, targets)


def test_a_scorer_that_was_asked_for_is_refused_with_a_remedy() -> None:
    corpus, targets = problem()
    corpus = dataclasses.replace(corpus, texts=None)
    with pytest.raises(ValueError, match=r"needs the texts of the rows, not kept .* embed them again"):
        Scoring(corpus, targets, scorer=PRESETS["default"].scorer)
    with pytest.raises(ValueError, match="needs the texts"):
        Scoring(corpus, targets, dataclasses.replace(PRESETS["default"], optional=False))


def test_the_former_default_has_a_name() -> None:
    corpus, targets = problem()
    found = Scoring(corpus, targets, "contrast").score().score
    assert np.array_equal(found, Scoring(corpus, targets, scorer="contrast").score().score)
    dense = [known.codes.to_dense().numpy() for known in (targets, corpus)]
    expected, _, _ = oracle.scores(*dense, "contrast", oracle.idf(dense[1]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_scores_of_codes_alone_say_what_is_missing(tmp_path) -> None:
    run = save_run(tmp_path)
    assert json.loads((run / "manifest.json").read_text())["recipe"]["name"] == "default"
    assert "Score by kind of evidence: latents" in (run / "report.html").read_text()
    for path in (run / "codes").glob("*/manifest.json"):  # as stores were written before words were kept
        manifest = json.loads(path.read_text())
        for shard in manifest["shards"]:
            del shard["words"]
        path.write_text(json.dumps(manifest))
    out = tmp_path / "scores.parquet"
    codes = [str(run / "codes" / name) for name in ("corpus", "targets")]
    result = CliRunner().invoke(main, ["score", *codes, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "default without tfidf: no words beside the codes" in result.stderr


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (1000, 7), (7, 1000)])
def test_whitening_a_part_at_a_time_gives_the_bytes_of_the_whole(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = DenseRows(torch.randn(50, 16, generator=torch.Generator().manual_seed(1)))
    change = whitened(held)
    assert change.root is not None
    assert np.array_equal(change.root, np.triu(change.root)), "nothing below the diagonal"
    (block,) = held.iter_shards()
    moved = with_values(block, block.values.double() - torch.from_numpy(np.tile(change.centre, 50)))
    expected = product(moved, change.root)
    monkeypatch.setattr(vectors, "TURNED_ROWS", rows)
    monkeypatch.setattr(vectors, "TURNED_COLUMNS", columns)
    assert change(block).values.numpy().tobytes() == expected.tobytes()

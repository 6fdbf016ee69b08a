"""Rows that a run has never seen score what the run would give them.

Fails if: a row of the corpus scores otherwise than in the run, by any scorer; the rows around one have a say;
what is learned of the corpus is learned of the new rows instead; corpus or targets are needed again; another
model or autoencoder goes unnoticed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import finescope
from finescope import InputError, RowScorer, SparseCodes, StoreError, score_texts
from finescope.cli import main
from finescope.curation import Evidence, Scoring
from finescope.curation.scoring.scorers import TABLE
from finescope.storage.files import map_tensors, write_tensors
from finescope.workflow.layout import SCORER
from support import curation_oracle as oracle
from support.cli_job import rows_of, save_job, save_run, save_tiny_model, write_jsonl

SCORERS = [*(name for name in TABLE if name != "random"), "contrast+0.5*length+jaccard", "ridge+tfidf+dense"]
WORDS = [f"word{number}" for number in range(30)]


@dataclasses.dataclass
class Rows:
    """Some rows, with everything a scorer may need."""

    codes: Any
    texts: list[str]
    dense: Any
    lengths: Any

    @classmethod
    def drawn(cls, rng: Any, count: int) -> Rows:
        return cls(
            oracle.sparse_rows(rng, count, 40).astype(np.float32),
            [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)],
            rng.normal(size=(count, 5)) + 2,
            rng.integers(1, 50, count),
        )

    def part(self, low: int, high: int) -> Rows:
        return Rows(*(value[low:high] for value in vars(self).values()))

    @property
    def evidence(self) -> Evidence:
        codes = SparseCodes.from_dense(torch.from_numpy(self.codes))
        return Evidence(codes, "sqrt_mean", self.texts, self.dense, self.lengths)


def drawn(count: int = 90) -> tuple[Rows, Rows]:
    """Rows of a corpus, one of them without a code and one without a word, and targets."""
    rng = np.random.default_rng(8)
    rows, targets = Rows.drawn(rng, count), Rows.drawn(rng, 6)
    rows.codes[11], rows.texts[4] = 0.0, ""
    return rows, targets


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_row_of_the_corpus_scores_what_it_has_there(scorer: str) -> None:
    rows, targets = drawn()
    first = Scoring(rows.evidence, targets.evidence, scorer=scorer)
    table = first.score()
    later = Scoring(rows.evidence, targets.evidence, scorer=scorer, state=first.state())
    for low, high in ((0, 90), (7, 31), (11, 12)):
        found = later.score_others(rows.part(low, high).evidence)
        for name, values in found.columns().items():
            assert np.array_equal(values, table.columns()[name][low:high]), name


def test_others_are_held_against_what_was_learned_of_the_corpus() -> None:
    """Against dense arithmetic; were the weights or means those of the new rows, every score would differ."""
    rows, targets = drawn(110)
    corpus, others = rows.part(0, 90), rows.part(90, 110)
    weights = oracle.idf(corpus.codes)
    known, seeds = oracle.unit(corpus.codes * weights), oracle.unit(targets.codes * weights)
    direction = seeds.mean(axis=0) - known[np.arange(90) != 11].mean(axis=0)
    wanted = {"contrast": oracle.unit(others.codes * weights) @ direction}
    centre = corpus.dense.mean(axis=0)
    cosines = oracle.unit(others.dense - centre) @ oracle.unit(targets.dense - centre).T
    wanted["dense-centred"] = cosines.mean(axis=1)
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    counted = vectorizer.fit_transform(corpus.texts)
    direction = (vectorizer.transform(targets.texts).mean(axis=0) - counted.mean(axis=0)).A1
    wanted["tfidf"] = vectorizer.transform(others.texts) @ direction
    for name, scores in wanted.items():
        scoring = Scoring(corpus.evidence, targets.evidence, scorer=name)
        found = scoring.score_others(others.evidence)
        assert found.valid.all()
        np.testing.assert_allclose(found.score, scores, rtol=1e-12, atol=1e-13, err_msg=name)


def test_what_can_not_be_said_of_others_is_refused() -> None:
    rows, targets = drawn()
    with pytest.raises(ValueError, match=r"'contrast\+random' draws an order of the corpus' own rows"):
        Scoring(rows.evidence, targets.evidence, scorer="contrast+random").score_others(rows.evidence)
    scoring = Scoring(rows.evidence, targets.evidence, scorer="tfidf")
    with pytest.raises(ValueError, match="'tfidf' needs the texts of the rows that are to be scored"):
        scoring.score_others(Evidence(rows.evidence.codes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose corpus holds a row without text, and its run by the default recipe."""
    folder = tmp_path_factory.mktemp("scored")
    assert save_run(folder) == folder / "run"
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> RowScorer:
    return RowScorer(folder / "run")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(run: Path) -> dict[str, Any]:
    return {name: column.to_pylist() for name, column in zip(*_columns(run), strict=True)}


def _columns(run: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(run / "scores.parquet")
    return table.column_names, table.columns


def cut(rows: list[Any], step: int) -> Iterator[list[Any]]:
    return (rows[low : low + step] for low in range(0, len(rows), step))


@pytest.mark.parametrize("step", [1, 17, 120])
def test_scores_are_those_of_the_run_in_any_company(folder: Path, scorer: RowScorer, step: int) -> None:
    rows, told = read(folder / "corpus.jsonl"), kept(folder / "run")
    found = [scorer.score([row["text"] for row in part]) for part in cut(rows, step)]
    assert [score for part in found for score in part.score.tolist()] == told["score"]
    assert [name for part in found for name in part.nearest_target] == told["nearest_target"]
    assert [each for part in found for each in part.nearest_similarity.tolist()] == told["nearest_similarity"]
    assert [tokens for part in found for tokens in part.tokens.tolist()] == told["tokens"]
    assert scorer.scorer == "ridge+tfidf+2*dense-whitened"


def test_texts_rows_and_nothing(folder: Path, scorer: RowScorer) -> None:
    rows = read(folder / "corpus.jsonl")[:5]
    texts = score_texts(scorer, [row["text"] for row in rows])
    assert np.array_equal(score_texts(folder / "run", rows).score, texts.score)
    assert len(scorer.score([])) == 0
    nothing = scorer.score(["  ", rows[0]["text"]])
    assert (nothing.score[0], nothing.nearest_target[0], nothing.tokens[0]) == (0.0, None, 0)
    assert nothing.valid.tolist() == [False, True]
    assert nothing.score[1] == texts.score[0]
    chat = {"messages": [{"role": "user", "content": "cats purr"}]}
    assert scorer.score([chat]).score.tolist() == scorer.score(["user: cats purr"]).score.tolist()
    with pytest.raises(InputError, match=r"row 1: no column 'text'; there are 'body'"):
        scorer.score([rows[0], {"body": "cats"}])


def test_neither_corpus_nor_targets_are_needed(
    folder: Path, scorer: RowScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "run", tmp_path / "moved")
    shutil.copytree(folder / "model", tmp_path / "weights")
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["configuration"] |= {"corpus": ["gone.jsonl"], "targets": "gone.jsonl", "model": "gone"}
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    moved = RowScorer("moved", model="weights", device="cpu", batch_tokens=64)
    texts = [row["text"] for row in read(folder / "corpus.jsonl")]
    assert np.array_equal(moved.score(texts).score, scorer.score(texts).score)


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"the codes in .* were made otherwise: tap\.weights"):
        RowScorer(folder / "run", model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="has trained its own autoencoder"):
        RowScorer(folder / "run", sae="elsewhere")
    save_tiny_model(tmp_path / "wide", width=64)
    with pytest.raises(InputError, match="width"):
        RowScorer(folder / "run", model=str(tmp_path / "wide"))


def test_a_state_of_another_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    with pytest.raises(InputError, match="no finished run"):
        RowScorer(tmp_path)
    state, _ = map_tensors(folder / "run" / SCORER)
    write_tensors(tmp_path / "run" / SCORER, state, {"scorer": "contrast"})
    (tmp_path / "run" / "stages" / "score.json").unlink()  # which holds the hash of the right one
    with pytest.raises(StoreError, match=r"is of scorer contrast, and the run of ridge.*finescope select"):
        RowScorer(tmp_path / "run")
    (tmp_path / "run" / SCORER).unlink()
    with pytest.raises(StoreError, match=r"scorer\.safetensors does not exist; score the run again"):
        RowScorer(tmp_path / "run")


def test_a_scorer_that_draws_lots_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    done = CliRunner().invoke(main, ["select", str(tmp_path / "run"), "--scorer", "random", "-k", "5"])
    assert done.exit_code == 0, done.output
    with pytest.raises(InputError, match="'random' draws an order"):
        RowScorer(tmp_path / "run")


def test_a_set_of_a_run_with_several(tmp_path: Path) -> None:
    folder = save_job(tmp_path, animals=15, sky=25)
    for name in ("animals", "sky"):
        write_jsonl(folder / f"{name}.jsonl", rows_of(name, 5, seed=2))
    targets = [word for name in ("animals", "sky") for word in ("--targets", f"{name}={folder / name}.jsonl")]
    arguments = [
        "curate", "--model", folder / "model", "--layer", "layers.0", "--corpus", folder / "corpus.jsonl",
        *targets, "--out", folder / "run", "-k", 5, "--draws", 0, "--set", "training.num_epochs=1",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    with pytest.raises(InputError, match=r"holds the target sets animals, sky: name the folder of one"):
        RowScorer(folder / "run")
    texts = [row["text"] for row in read(folder / "corpus.jsonl")]
    for name in ("animals", "sky"):
        found = finescope.score_texts(folder / "run" / "sets" / name, texts)
        assert found.score.tolist() == kept(folder / "run" / "sets" / name)["score"]


def test_an_autoencoder_that_was_given_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run" / "sae", tmp_path / "sae")
    run = save_run(tmp_path / "job", "--sae", tmp_path / "sae", "--scorer", "contrast")
    texts = [row["text"] for row in read(tmp_path / "job" / "corpus.jsonl")][:20]
    (tmp_path / "sae").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="sae"):
        RowScorer(run)
    assert RowScorer(run, sae=str(tmp_path / "moved")).score(texts).score.tolist() == kept(run)["score"][:20]

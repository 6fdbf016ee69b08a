"""What other tools get of a run is in their shape, and is what the run's own files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.embeddings.store import CodeStore
from support import curation_oracle as oracle
from support.cli_job import save_run


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("job"))


def export(run: Path, kind: str, out: Path) -> Path:
    result = invoke("export", run, "--format", kind, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert str(out) in result.stdout
    return out


def test_a_float_a_row_ranks_as_the_run_does(run: Path, tmp_path: Path) -> None:
    found = np.load(export(run, "scores", tmp_path / "scores.npy"))
    table = pq.read_table(run / "scores.parquet").to_pydict()
    never = ~np.array(table["valid"]) | np.array(table["is_target"])
    assert never.any()
    assert (found.dtype, found.shape) == (np.float64, never.shape)
    assert np.isneginf(found[never]).all()
    np.testing.assert_array_equal(found[~never], np.array(table["score"])[~never])
    chosen = [row["id"] for row in pq.read_table(run / "selection.parquet").to_pylist() if row["rank"]]
    assert {table["id"][row] for row in np.argsort(-found, kind="stable")[:12]} == set(chosen)


def test_cosines_are_those_of_the_recipe(run: Path, tmp_path: Path) -> None:
    found = np.load(export(run, "cossim", tmp_path / "animals_cossim.npy"))
    corpus, targets = (
        CodeStore(run / "codes" / name).codes().to_dense().double().numpy() for name in ("corpus", "targets")
    )
    weights = oracle.idf(corpus)
    expected = oracle.unit(targets, weights) @ oracle.unit(corpus, weights).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_table_for_embedding_atlas_holds_every_row(run: Path, tmp_path: Path) -> None:
    table = pq.read_table(export(run, "atlas", tmp_path / "atlas.parquet"))
    rows, store = table.to_pylist(), CodeStore(run / "codes" / "corpus")
    scores = pq.read_table(run / "scores.parquet").to_pylist()
    selection = pq.read_table(run / "selection.parquet").to_pylist()
    dense, codes = np.asarray(store.dense()), store.codes().to_dense().double().numpy()
    assert len(rows) == len(scores)
    for at, (row, score, became) in enumerate(zip(rows, scores, selection, strict=True)):
        for name in ("id", "score", "nearest_target", "nearest_similarity"):
            assert row[name] == score[name]
        assert (row["rank"], row["reason"]) == (became["rank"], became["reason"])
        assert row["selected"] == (became["rank"] is not None)
        np.testing.assert_array_equal(row["vector"], dense[at].astype(np.float32))
        best = np.argsort(-codes[at], kind="stable")[:5]
        assert row["latents"] == [f"latent {latent}" for latent in best if codes[at, latent]]
    texts = [row["text"] for row in pq.read_table(tmp_path / "atlas.parquet").to_pylist()]
    assert all(set(text.split()) for text in texts)
    assert len(set(texts)) > len(texts) / 2


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    result = invoke("export", tmp_path, "--format", "scores", "--out", tmp_path / "x.npy")
    assert (result.exit_code, "no finished run" in result.stderr) == (1, True)
    assert invoke("export", tmp_path, "--out", tmp_path / "x.npy").exit_code == 2


def test_a_corpus_that_has_changed_is_named(run: Path, tmp_path: Path) -> None:
    corpus = run.parent / "corpus.jsonl"
    whole = corpus.read_text()
    try:
        for changed, words in (
            ("".join(whole.splitlines(keepends=True)[:-3]), "there are only"),
            ("".join(whole.splitlines(keepends=True)[::-1]), "the row's id is"),
        ):
            corpus.write_text(changed)
            result = CliRunner().invoke(
                main, ["export", str(run), "--format", "atlas", "--out", str(tmp_path / "atlas.parquet")]
            )
            assert result.exit_code == 1
            assert words in result.stderr
            assert not (tmp_path / "atlas.parquet").exists()
    finally:
        corpus.write_text(whole)

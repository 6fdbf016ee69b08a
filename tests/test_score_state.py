"""What a scorer has learned is known by its hash: a run that was told another has no say in it.

Fails if: ledger or manifest don't hold the hash of the file; a file that was changed is used, by a question
to the run or for rows that it has never seen; it can't be had again without the model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope import RowScorer, StoreError
from finescope.cli import main
from finescope.storage.files import map_tensors, write_tensors
from finescope.workflow.layout import SCORER
from support.cli_job import rows_of, save_job, save_run, write_jsonl


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def changed(path: Path) -> None:
    """Give one number of what was learned another value."""
    state, notes = map_tensors(path)
    state = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(state.values())).view(-1)[0] += 1
    write_tensors(path, state, notes)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("job"), "--scorer", "contrast+tfidf")


def test_the_hash_stands_in_ledger_and_manifest(run: Path) -> None:
    wanted = sha256(run / SCORER)
    assert json.loads((run / "stages" / "score.json").read_text())["facts"]["scorer_sha256"] == wanted
    assert json.loads((run / "manifest.json").read_text())["stages"]["score"]["scorer_sha256"] == wanted


def test_a_changed_file_is_refused_and_made_again(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before, scores = sha256(copy / SCORER), (copy / "scores.parquet").read_bytes()
    changed(copy / SCORER)
    for arguments in (["explain", copy, "#3"], ["latents", copy]):
        asked = invoke(*arguments)
        assert asked.exit_code == 1
        assert "scorer.safetensors isn't what was learned when the corpus was scored" in asked.stderr
        assert "finescope select RUN" in asked.stderr
    with pytest.raises(StoreError, match="its SHA-256 is another"):
        RowScorer(copy)
    again = invoke("select", copy, "-k", 5)
    assert again.exit_code == 0, again.stderr
    assert "was changed since the corpus was scored: scoring again" in again.stderr
    assert sha256(copy / SCORER) == before
    assert (copy / "scores.parquet").read_bytes() == scores
    assert invoke("explain", copy, "#3").exit_code == 0
    assert "scoring again" not in invoke("select", copy, "-k", 6).stderr


def test_a_run_without_a_hash_is_taken_as_it_is(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    note = json.loads((copy / "stages" / "score.json").read_text())
    del note["facts"]["scorer_sha256"]
    (copy / "stages" / "score.json").write_text(json.dumps(note))
    assert invoke("explain", copy, "#3").exit_code == 0


def test_every_set_of_a_run_has_its_own(tmp_path: Path) -> None:
    folder, names = save_job(tmp_path), ("animals", "sky")
    for name in names:
        write_jsonl(folder / f"{name}.jsonl", rows_of(name, 5, seed=2))
    given: list[Any] = [
        "--model",
        folder / "model",
        "--layer",
        "layers.0",
        "--corpus",
        folder / "corpus.jsonl",
    ]
    given += ["-k", 5, "--draws", 0, "--set", "training.num_epochs=1", "--out", folder / "run"]
    given += [word for name in names for word in ("--targets", f"{name}={folder / name}.jsonl")]
    assert invoke("curate", *given).exit_code == 0
    run = folder / "run"
    wanted = {name: sha256(run / "sets" / name / SCORER) for name in names}
    assert json.loads((run / "manifest.json").read_text())["stages"]["score"]["scorer_sha256"] == wanted
    changed(run / "sets" / "sky" / SCORER)
    assert invoke("explain", run / "sets" / "animals", "#3").exit_code == 0
    asked = invoke("explain", run / "sets" / "sky", "#3")
    assert (asked.exit_code, "its SHA-256 is another" in asked.stderr) == (1, True)
    with pytest.raises(StoreError, match="its SHA-256 is another"):
        RowScorer(run / "sets" / "sky")
    again = invoke("select", run)
    assert again.exit_code == 0, again.stderr
    assert "scoring again" in again.stderr
    assert {name: sha256(run / "sets" / name / SCORER) for name in names} == wanted
    assert invoke("explain", run / "sets" / "sky", "#3").exit_code == 0

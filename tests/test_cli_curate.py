"""The main job from files to files: what it promises to write, resume, and choosing again without a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from finescope.curation import PRESETS, average_precision, rank_rows
from finescope.workflow.tables import SCORE_COLUMNS
from support.cli_job import save_job

QUICK = ["--set", "training.num_epochs=1", "--draws", "2", "--seed", "3"]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def curate(folder: Path, out: Path, *more: Any) -> Result:
    return invoke(
        "curate", "--model", folder / "model", "--layer", "layers.0", "--targets", folder / "seeds.jsonl",
        "--corpus", folder / "corpus.jsonl", "--out", out, "-k", 10, *QUICK, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def done(job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("run") / "curated"
    return out, curate(job, out, "--label-column", "label")


@pytest.fixture
def copied(done: tuple[Path, Result], tmp_path: Path) -> Path:
    shutil.copytree(done[0], tmp_path / "curated")
    return tmp_path / "curated"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_everything_is_written(done: tuple[Path, Result], job: Path) -> None:
    out, result = done
    assert result.exit_code == 0, result.stderr
    assert "report" in result.stdout
    corpus = {row["id"]: row for row in lines(job / "corpus.jsonl")}
    curated = lines(out / "curated.jsonl")
    assert len(curated) == 10
    for rank, row in enumerate(curated, start=1):
        assert row["finescope_rank"] == rank
        assert {name: value for name, value in row.items() if name not in SCORE_COLUMNS} == corpus[row["id"]]
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert [row["id"] for row in scores] == list(corpus)
    best = sorted(scores, key=lambda row: (-row["score"], row["index"]))[:10]
    assert [row["id"] for row in best] == [row["id"] for row in curated]
    selection = pq.read_table(out / "selection.parquet").to_pylist()
    assert sum(row["reason"] == "selected" for row in selection) == 10
    for name in ("pca", "similarity", "scores", "labels", "methods"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 2000
    assert not list(out.rglob("*.tmp"))


def test_manifest_says_how(done: tuple[Path, Result]) -> None:
    manifest = json.loads((done[0] / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["counts"]["rows"] == 120
    assert manifest["counts"]["selected"] == 10
    assert len(manifest["inputs"]["corpus"]["sources"][0]["sha256"]) == 64
    assert {"finescope", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["configuration"]["layer"] == "layers.0"


def test_a_run_leaves_a_configuration_that_does_it_again(done: tuple[Path, Result], tmp_path: Path) -> None:
    result = invoke("curate", "--config", done[0] / "config.yaml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    for name in ("curated.jsonl", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (done[0] / name).read_bytes()


def test_metrics_have_every_baseline(done: tuple[Path, Result]) -> None:
    metrics = json.loads((done[0] / "metrics.json").read_text())
    names = {line["name"] for line in metrics["labels"]["methods"]}
    assert {
        "default",
        "paper",
        "random",
        "length",
        "dense",
        "tfidf",
    } <= names
    assert metrics["labels"]["relevant_rows"] == 30
    assert metrics["quality"]["num_selected"] == 10


def test_report_shows_rows_and_reasons(done: tuple[Path, Result]) -> None:
    page = (done[0] / "report.html").read_text()
    first = lines(done[0] / "curated.jsonl")[0]
    assert first["text"] in page
    assert first["finescope_nearest_target"] in page
    assert page.count("<article ") == 10
    assert page.count("<b>1</b>") == page.count("<b>10</b>") == 1
    assert page.count('<ul class="shares"') == 11
    assert page.count("<svg ") == len(list((done[0] / "plots").glob("*.png"))) == 5


def test_a_second_run_does_no_stage_again(job: Path, copied: Path) -> None:
    before = {name: (copied / name).stat().st_mtime_ns for name in ("sae/sae.safetensors", "scores.parquet")}
    curated = (copied / "curated.jsonl").read_bytes()
    result = curate(job, copied, "--label-column", "label")
    assert result.exit_code == 0
    assert result.stderr.count("done before") == 4
    assert before == {name: (copied / name).stat().st_mtime_ns for name in before}
    assert (copied / "curated.jsonl").read_bytes() == curated


def test_a_killed_run_goes_on_to_the_same_rows(
    job: Path, done: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finescope.workflow.stages import embed

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real = embed.embed
    monkeypatch.setattr(embed, "embed", interrupted)
    result = curate(job, tmp_path / "out", "--label-column", "label")
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    assert not (tmp_path / "out" / "curated.jsonl").exists()
    monkeypatch.setattr(embed, "embed", real)
    result = curate(job, tmp_path / "out", "--label-column", "label")
    assert result.exit_code == 0
    assert "training: done before" in result.stderr
    assert (tmp_path / "out" / "curated.jsonl").read_bytes() == (done[0] / "curated.jsonl").read_bytes()


def test_changed_inputs_are_noticed(job: Path, copied: Path) -> None:
    kept = (copied / "sae" / "sae.safetensors").read_bytes()
    result = curate(job, copied, "--train-tokens", 50)
    assert result.exit_code == 1
    assert "train_tokens was 2000000, now 50" in result.stderr
    assert "--restart" in result.stderr
    assert (copied / "sae" / "sae.safetensors").read_bytes() == kept
    result = curate(job, copied, "--train-tokens", 50, "--restart")
    assert result.exit_code == 0, result.stderr
    assert (copied / "sae" / "sae.safetensors").read_bytes() != kept


def test_select_again_needs_no_model(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finescope.workflow import context

    monkeypatch.setattr(context, "open_tap", lambda job: pytest.fail("the model was touched"))
    result = invoke("select", copied, "-k", 4)
    assert result.exit_code == 0, result.stderr
    assert len(lines(copied / "curated.jsonl")) == 4
    result = invoke("select", copied, "--preset", "paper", "--fraction", 0.05)
    assert result.exit_code == 0, result.stderr
    paper = lines(copied / "curated.jsonl")
    assert len(paper) == 6
    assert all(row["finescope_score"] == pytest.approx(row["finescope_nearest_similarity"]) for row in paper)
    result = invoke("select", copied, "--token-budget", 40, "--strategy", "clusters", "--near-duplicate", 0.9)
    assert result.exit_code == 0, result.stderr
    tokens = {row["id"]: row["tokens"] for row in pq.read_table(copied / "scores.parquet").to_pylist()}
    assert 0 < sum(tokens[row["id"]] for row in lines(copied / "curated.jsonl")) <= 40


def test_evaluate_without_and_with_labels(job: Path, tmp_path: Path) -> None:
    assert curate(job, tmp_path / "out").exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no known labels" in page
    assert "average precision, precision@k" in page
    assert "labels" not in json.loads((tmp_path / "out" / "metrics.json").read_text())
    result = invoke(
        "evaluate", tmp_path / "out", "--label-column", "label", "--target-label", "sky", "--draws", 0
    )
    assert result.exit_code == 0, result.stderr
    assert "default" in result.stdout
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["labels"]["relevant_rows"] == 90
    assert (
        invoke("evaluate", tmp_path / "out").stdout.count("--label-column") == 0
    )  # the labels are remembered


def test_whatever_stands_in_the_table_of_methods_can_be_chosen_by_its_name(copied: Path, job: Path) -> None:
    methods = json.loads((copied / "metrics.json").read_text())["labels"]["methods"]
    relevant = np.array([row["label"] == "animals" for row in lines(job / "corpus.jsonl")])
    assert {"default", "paper", "contrast+tfidf", "tfidf", "dense-centred", "length"} < {
        line["name"] for line in methods
    }
    for line in methods:
        name = line["name"]
        if name == "random":
            continue  # its value is that of all orders, not of one
        chosen = ["--preset", name] if name in PRESETS else ["--preset", "default", "--scorer", name]
        result = invoke("select", copied, *chosen, "-k", 10)
        assert result.exit_code == 0, result.stderr
        scores = pq.read_table(copied / "scores.parquet").to_pydict()
        ranking = rank_rows(
            np.array(scores["score"]), np.array(scores["valid"]) & ~np.array(scores["is_target"])
        )
        value = line["metrics"]["average_precision"]["value"]
        assert average_precision(ranking, relevant) == pytest.approx(value, abs=1e-12), name
    # A choice is remembered until another is made.
    assert invoke("select", copied, "--preset", "default", "--scorer", "contrast+0.5*tfidf").exit_code == 0
    page = (copied / "report.html").read_text()
    first = lines(copied / "curated.jsonl")[0]
    assert "contrast+0.5*tfidf" in page
    assert "<span>word</span>" in page
    assert any(f'dir="auto">{word}</span></li>' in page for word in first["text"].split())


def test_a_preset_takes_the_place_of_a_scorer_chosen_before(copied: Path) -> None:
    def recipe(*options: Any) -> tuple[str, str, str]:
        assert invoke("select", copied, "-k", 5, *options).exit_code == 0
        found = json.loads((copied / "manifest.json").read_text())["recipe"]
        return found["scorer"], found["weights"], found["pooling"]

    assert recipe("--scorer", "max", "--weights", "none") == ("max", "none", "sqrt_mean")
    assert recipe() == ("max", "none", "sqrt_mean"), "what was chosen is remembered"
    assert recipe("--preset", "default") == (PRESETS["default"].scorer, "idf", "sqrt_mean")
    assert recipe("--scorer", "top_m_mean", "--top-m", 7) == ("top_m_mean", "idf", "sqrt_mean")
    assert recipe("--preset", "paper") == ("max", "none", "mean")
    assert json.loads((copied / "manifest.json").read_text())["configuration"]["top_m"] == 3
    assert recipe("--preset", "paper", "--scorer", "mean") == ("mean", "none", "mean")


def test_a_scorer_that_nobody_knows_is_named_with_the_nearest(job: Path, tmp_path: Path) -> None:
    result = curate(job, tmp_path, "--scorer", "contrast+tfid")
    assert result.exit_code == 2
    assert "scorer must be one of contrast, max" in result.stderr
    assert "or a sum of them" in result.stderr
    assert "got 'contrast+tfid'" in result.stderr


def test_labels_that_are_not_there_are_named_before_anything_is_written(job: Path, tmp_path: Path) -> None:
    assert curate(job, tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "curated.jsonl").read_bytes()
    for wrong in (["--label-column", "nosuch"], ["--label-column", "label", "--target-label", "nosuch"]):
        result = CliRunner().invoke(main, ["select", str(tmp_path / "out"), "-k", "2", *wrong])
        assert result.exit_code == 1
        assert "nosuch" in result.stderr
        assert (tmp_path / "out" / "curated.jsonl").read_bytes() == before

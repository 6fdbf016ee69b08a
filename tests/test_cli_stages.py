"""Each stage alone, from files to files: together they must give what the one-line job gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from finescope.cli import main
from support.cli_job import save_job, write_jsonl


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_job(tmp_path_factory.mktemp("job"))


def test_stage_by_stage_equals_the_whole(job: Path, tmp_path: Path) -> None:
    model = ["--model", job / "model", "--layer", "layers.0"]
    sizes = ["--set", "training.num_epochs=1", "--seed", 3]
    steps = [
        ["activations", *model, "--corpus", job / "corpus.jsonl", "--out", tmp_path / "acts", "--seed", 3],
        ["train", tmp_path / "acts", "--out", tmp_path / "sae", *sizes],
    ]
    for rows, name in (("corpus", "codes"), ("seeds", "seed-codes")):
        place = ["--corpus", job / f"{rows}.jsonl", "--out", tmp_path / name]
        steps.append(["embed", *model, "--sae", tmp_path / "sae", *place])
    scores, picked = tmp_path / "scores.parquet", tmp_path / "picked.parquet"
    steps.append(["score", tmp_path / "codes", tmp_path / "seed-codes", "--out", scores])
    steps.append(["select", scores, "--corpus", job / "corpus.jsonl", "-k", 7, "--out", picked])
    for step in steps:
        result = invoke(*step)
        assert result.exit_code == 0, (step, result.stderr)
    again = invoke(*steps[1])
    assert again.exit_code == 0
    assert "training: done before" in again.stderr
    assert "steps/s" not in again.stderr
    whole = invoke(
        "curate", *model, "--targets", job / "seeds.jsonl", "--corpus", job / "corpus.jsonl", "--out",
        tmp_path / "whole", "-k", 7, *sizes,
    )  # fmt: skip
    assert whole.exit_code == 0, whole.stderr
    for recipe in ([], ["--scorer", "contrast+tfidf"]):  # words stand beside the codes, too
        if recipe:
            assert invoke(*steps[-2], *recipe).exit_code == 0
            assert invoke("select", tmp_path / "whole", *recipe).exit_code == 0
        alone, together = (pq.read_table(path / "scores.parquet") for path in (tmp_path, tmp_path / "whole"))
        assert alone.column("id").to_pylist() == together.column("id").to_pylist()
        np.testing.assert_array_equal(alone.column("score").to_numpy(), together.column("score").to_numpy())
    assert [row["finescope_rank"] for row in pq.read_table(picked).to_pylist()] == list(range(1, 8))
    paper = ["--preset", "paper", "--scorer", "max"]  # of codes that are pooled by sqrt_mean
    assert invoke(*steps[-2], *paper).exit_code == 0
    for limits in (["--diversity", 0.5], ["--strategy", "clusters", "--near-duplicate", 0.8]):
        known = ["--codes", tmp_path / "codes", "--target-codes", tmp_path / "seed-codes"]
        assert invoke(*steps[-1], *known, *limits).exit_code == 0
        assert invoke("select", tmp_path / "whole", *paper, "-k", 7, *limits).exit_code == 0
        table = pq.read_table(picked)
        chosen = (tmp_path / "whole" / "curated.jsonl").read_text().splitlines()
        assert table.column("id").to_pylist() == [json.loads(line)["id"] for line in chosen]
        assert len(table) > 1


def test_max_tokens_samples_whole_rows(job: Path, tmp_path: Path) -> None:
    result = invoke(
        "activations", "--model", job / "model", "--corpus", job / "corpus.jsonl", "--out", tmp_path / "acts",
        "--max-tokens", 200,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    tokens = int(result.stdout.split()[0].replace(",", ""))
    assert 100 < tokens <= 200


def test_a_given_sae_is_used_and_its_width_checked(job: Path, tmp_path: Path) -> None:
    from finescope.config import SaeConfig
    from finescope.sae import SparseAutoencoder

    common = [
        "curate",
        "--model",
        job / "model",
        "--targets",
        job / "seeds.jsonl",
        "--corpus",
        job / "corpus.jsonl",
    ]
    SparseAutoencoder(48, SaeConfig(num_latents=64, k=4)).save(tmp_path / "wrong")
    result = invoke(*common, "--out", tmp_path / "a", "--sae", tmp_path / "wrong")
    assert result.exit_code == 1
    assert "width 48" in result.stderr
    assert "width 32" in result.stderr
    SparseAutoencoder(32, SaeConfig(num_latents=64, k=4)).save(tmp_path / "sae" / "layers.1")
    result = invoke(*common, "--out", tmp_path / "b", "--sae", tmp_path / "sae", "-k", 3)
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "b" / "sae").exists()
    assert not (tmp_path / "b" / "activations").exists()


def test_the_folder_of_a_stage_is_no_run(job: Path, tmp_path: Path) -> None:
    stage = tmp_path / "acts"
    model = ["--model", job / "model", "--layer", "layers.0"]
    assert (
        invoke("activations", *model, "--corpus", job / "corpus.jsonl", "--out", stage, "-q").exit_code == 0
    )
    for arguments in (["select", stage, "-k", 3], ["evaluate", stage]):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "folder of a single stage" in result.stderr
        assert "--out of `finescope curate`" in result.stderr


def test_an_unusable_device_is_named_without_a_layer(job: Path, tmp_path: Path) -> None:
    model = ["--model", job / "model", "--device", "cuda:99"]
    result = invoke("activations", *model, "--corpus", job / "corpus.jsonl", "--out", tmp_path / "acts")
    assert result.exit_code == 1
    assert "device 'cuda:99' can't be used" in result.stderr


def test_made_up_ids_make_no_row_a_target(job: Path, tmp_path: Path) -> None:
    place = ["--model", job / "model", "--layer", "layers.0"]
    assert (
        invoke("activations", *place, "--corpus", job / "corpus.jsonl", "--out", tmp_path / "a").exit_code
        == 0
    )
    assert invoke("train", tmp_path / "a", "--out", tmp_path / "sae", "--epochs", 1).exit_code == 0
    for folder, source in (("many", "corpus"), ("few", "seeds")):
        lines = (job / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{"text": json.loads(line)["text"]} for line in lines]
        (tmp_path / f"{folder}-rows").mkdir()
        file = write_jsonl(tmp_path / f"{folder}-rows" / "rows.jsonl", rows)
        arguments = [*place, "--sae", tmp_path / "sae", "--corpus", file, "--out", tmp_path / folder]
        assert invoke("embed", *arguments).exit_code == 0
    scores = tmp_path / "scores.parquet"
    assert invoke("score", tmp_path / "many", tmp_path / "few", "--out", scores).exit_code == 0
    table = pq.read_table(scores)
    assert table.column("id")[0].as_py() == "rows:0"
    assert not any(table.column("is_target").to_pylist())


def test_tokens_announced_are_counted_and_the_default_layer_is_named(job: Path, tmp_path: Path) -> None:
    lines = (job / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    words = [word for line in lines for word in json.loads(line)["text"].split()]
    odd = [{"text": word} for word in words[:250]] + [{"text": "x" * 50_000}]
    corpus = write_jsonl(tmp_path / "odd.jsonl", odd)
    result = invoke(
        "curate", "--model", job / "model", "--targets", job / "seeds.jsonl",
        "--corpus", corpus, "--out", tmp_path / "out", "--set", "training.num_epochs=1", "--draws", 0,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert f"about {manifest['stages']['train']['tokens']:,} tokens" in result.stderr
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "the last block, encoder.layer." in page


def test_an_architecture_is_trained_by_its_name(job: Path, tmp_path: Path) -> None:
    model = ["--model", job / "model", "--layer", "layers.0"]
    made = invoke("activations", *model, "--corpus", job / "corpus.jsonl", "--out", tmp_path / "acts")
    assert made.exit_code == 0, made.stderr
    for architecture in ("batchtopk", "jumprelu"):
        out = tmp_path / architecture
        sizes = ["--architecture", architecture, "--num-latents", 64, "-k", 4, "--epochs", 1]
        result = invoke("train", tmp_path / "acts", "--out", out, *sizes, "-q")
        assert result.exit_code == 0, result.stderr
        told = json.loads(invoke("sae", "info", out, "--json").stdout)
        assert (told["architecture"], told["latents"]) == (architecture, 64)
    refused = invoke("train", tmp_path / "acts", "--out", tmp_path / "no", "--architecture", "pca")
    assert refused.exit_code == 2
    assert "sae.architecture must be one of topk, batchtopk, " in refused.stderr
    assert not (tmp_path / "no").exists()

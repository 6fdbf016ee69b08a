"""A finished run is proved by one command: its recipe, on topics that its labels say, with its own codes.

Fails if: the plan that is written isn't the run's; it can't be changed and run again; what is done is trained
anew; too few rows, or none with labels, end in anything but words that say what is needed; a plan is taken
for a configuration or the other way round.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finescope import InputError
from finescope.cli import main
from finescope.proof import derived
from finescope.proof.derived import arm_of, choose_topics, is_job, selector_of
from finescope.proof.plan import ProofPlan
from finescope.proof.split import read_corpus, split
from finescope.storage.yaml12 import load_yaml
from finescope.workflow.job import Job
from support.cli_job import WORDS, save_job, save_run


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def save_causal_model(folder: Path) -> Path:
    """Write a random Llama with a head that knows the words of ``save_run``."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_causal_model(folder / "causal")
    options = [
        "--label-column",
        "label",
        "--preset",
        "contrast",
        "--near-duplicate",
        0.99,
        "--set",
        "sae.k=8",
    ]
    return save_run(folder, *options)


def proved(run: Path, out: Path, *more: Any, place: Path | None = None) -> Result:
    model = ["--set", f"model={run.parent / 'causal'}", "--set", "dtype=float32", "--set", "seeds=1"]
    return invoke("prove", place or run, "--out", out, *model, *more)


def trained(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}


def test_a_finished_run_is_proved_and_its_plan_can_be_run_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "proof"
    done = proved(run, out)
    assert done.exit_code == 0, done.stderr
    primary = "contrast @ near_duplicate=0.99"
    for words in (primary, "random-length", "after ", "page: "):
        assert words in done.stdout
    assert "one topic is an example" in done.stderr
    plan = load_yaml((out / "plan.yaml").read_text())
    assert plan["topics"] == ["animals"]
    assert (plan["primary"], plan["rivals"]) == (primary, ["random", "tfidf", "dense"])
    assert plan["selector"]["model"] == str(run.parent / "model")
    assert plan["selector"]["layer"] == "layers.0"
    assert plan["selector"]["sae_path"] == str(run / "sae")
    assert "sae" not in plan["selector"]
    numbers = json.loads((out / "proof.json").read_text())
    assert {line["arm"] for line in numbers["summary"]["arms"]} == {
        "random", "random-length", "domain", "tfidf", "dense", primary,
    }  # fmt: skip
    assert numbers["arms"][primary]["selection"] == {"near_duplicate": 0.99}
    line = next(line for line in numbers["summary"]["arms"] if line["arm"] == primary)
    assert line["on_topic"] > 0.5
    before = trained(out)
    assert len(before) == 8
    again = proved(run, out)
    assert (again.exit_code, again.stdout.splitlines()[:-1]) == (0, done.stdout.splitlines()[:-1])
    assert trained(out) == before
    # The plan, changed, is run by its own name; the run then goes by it, too.
    with (out / "plan.yaml").open("a") as file:
        file.write("noise_arms: [random]\n")
    changed = proved(run, out, place=out / "plan.yaml")
    assert changed.exit_code == 0, changed.stderr
    assert "random (noisy pool)" in changed.stdout
    assert "random (noisy pool)" in proved(run, out, "--so-far").stdout
    assert before.items() <= trained(out).items()
    other = proved(run, out, place=run / "config.yaml")
    assert (other.exit_code, "isn't a plan for" in other.stderr) == (1, True)


def test_a_configuration_trains_its_own_autoencoder(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[ProofPlan] = []

    def stop(plan: ProofPlan, *_: Any) -> None:
        seen.append(plan)
        raise InputError("no further")

    monkeypatch.setattr("finescope.proof.grid.Grid", stop)
    assert "no further" in proved(run, tmp_path / "proof", place=run / "config.yaml").stderr
    (plan,) = seen
    assert plan.selector["sae"] == {"k": 8}
    assert "sae_path" not in plan.selector
    assert (plan.topics, plan.primary) == (["animals"], "contrast @ near_duplicate=0.99")
    dealt = split(plan, read_corpus(plan))
    assert len(dealt.held_out["animals"]) == plan.held_out
    assert {row.label for row in dealt.off_topic} == {"sky"}


def test_without_labels_it_is_said_what_is_needed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["configuration"]["label_column"] = None
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused = proved(run, tmp_path / "proof", place=copy)
    assert refused.exit_code == 1
    assert "says nothing of labels, and a proof needs them" in refused.stderr
    assert "--label-column" in refused.stderr
    assert not (tmp_path / "proof").exists()
    named = proved(run, tmp_path / "proof", "--label-column", "topic", place=copy)
    assert named.exit_code == 1
    assert "a proof needs a label with 20 rows or more" in named.stderr
    (tmp_path / "plan.yaml").write_text("topics: [animals]\n")
    usage = proved(run, tmp_path / "proof", "--label-column", "label", place=tmp_path / "plan.yaml")
    assert (usage.exit_code, "goes with RUN or CONFIG" in usage.stderr) == (2, True)
    nothing = proved(run, tmp_path / "proof", place=save_job(tmp_path / "job"))
    assert (nothing.exit_code, "holds no finished run" in nothing.stderr) == (1, True)


def test_topics_are_what_the_run_is_about_and_then_the_most_frequent() -> None:
    counts = Counter({"a": 500, "b": 300, "c": 130, "d": 90, "e": 40, "f": 10})
    assert choose_topics(counts, [], "label") == ["a", "b"]
    assert choose_topics(counts, ["e"], "label") == ["e", "a", "b"]
    assert choose_topics(counts, ["f"], "label") == ["a", "b"]
    assert choose_topics(counts, ["d", "c"], "label") == ["d", "c", "a"]
    assert choose_topics(counts, list("abcdef"), "label") == ["a", "b", "c", "d", "e"]
    assert choose_topics(Counter({"a": 30, "b": 25, "c": 4}), [], "label") == ["a"]
    assert choose_topics(Counter(dict.fromkeys("abcdef", 100)), [], "label") == ["a", "b", "c"]
    many = Counter({f"label {number}": 200 + number for number in range(40)})
    assert len(choose_topics(many, [], "label")) == derived.MOST_TOPICS
    for few in (Counter({"a": 500}), Counter({"a": 19, "b": 3}), Counter[str]()):
        with pytest.raises(InputError, match=r"a label with 20 rows or more, .* column 'kind' has (a|none)"):
            choose_topics(few, [], "kind")


def test_recipes_as_arms() -> None:
    assert arm_of(Job()) == "default"
    assert arm_of(Job(preset="paper")) == "paper"
    assert arm_of(Job(preset="supplement")) == "supplement @ strategy=clusters min_similarity=0.5"
    limits = {"k": 5, "strategy": "coverage", "diversity": 0.8, "min_score": 1.0}
    job = Job(preset="paper", scorer="contrast+tfidf", weights="idf", selection=limits)
    assert arm_of(job) == "contrast+tfidf @ strategy=coverage diversity=0.8"
    assert selector_of(job) == {"weights": "idf", "preset": "paper"}
    assert selector_of(Job(preset="paper-v3"))["coordinates"] == 128
    for arm in (arm_of(job), arm_of(Job(preset="supplement"))):
        assert ProofPlan(arms=["random", arm], primary=arm).primary == arm


def test_a_plan_and_a_configuration_are_told_apart() -> None:
    assert is_job(Job().to_dict())
    assert is_job({"corpus": "c.jsonl", "targets": "t.jsonl"})
    assert is_job({"corpus": "c.jsonl", "layer": "layers.1"})
    assert not is_job(ProofPlan().to_dict())
    assert not is_job({"topics": ["x"], "corpus": "c.jsonl", "targets": 3})
    assert not is_job({"topics": ["x"], "arm": ["random"]})

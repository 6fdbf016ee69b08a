"""Every value of a job is checked when the job is made: a run of hours must not end at a word it can't use.

What each field takes is written down here by hand. A field that isn't turns the tests red, and so does one
that lets through a value it doesn't take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finescope.config import CurationConfig, SaeConfig, SaeFacts, TrainingConfig
from finescope.curation.limits import SelectionConfig
from finescope.workflow.job import Job

VALUES: list[Any] = [
    None, True, False, 0, 1, 7, -3, 2**32, 2**63, 0.0, 0.5, 2.5, -0.5, 1e-4, float("nan"), float("inf"),
    -float("inf"), "", "x", "3", "1e-4", "auto", "cpu", "cuda:1", "none", b"x", [], ["x"], [""], [3],
    ["x", 3], {}, {"k": 3}, {3: 4}, {"zeal": 1}, {"k": True}, {"k": "ten"}, (), object(), 1j, "caf\udce9",
    ["caf\udce9"], ",", "a=b", ["a=b"], "a=1", ["a=1"], ["a=0"], ["a=inf"], ["=1"], ["rows=b"], ["a="],
    [".a=b"],
]  # fmt: skip


def among(*wanted: Any) -> Callable[[Any], bool]:
    """The value, of the very type."""
    return lambda value: any(type(value) is type(each) and value == each for each in wanted)


def whole(low: int, high: int = 2**63 - 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def real(low: float, high: float = np.inf, *, above: bool = False) -> Callable[[Any], bool]:
    def takes(value: Any) -> bool:
        finite = type(value) in (int, float) and np.isfinite(value)
        return finite and low <= value <= high and not (above and value == low)

    return takes


def either(*takes: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(one(value) for one in takes)


def any_text(value: Any) -> bool:
    return type(value) is str and "\udce9" not in value


def text(value: Any) -> bool:
    return any_text(value) and value != ""


def texts(value: Any) -> bool:
    return text(value) or (isinstance(value, (list, tuple)) and all(text(each) for each in value))


NONE = among(None)
TRUTH = among(True, False)
SEED = whole(0, 2**32 - 1)
DEVICE = among("auto", "cpu", "cuda:1")
COSINE = real(-1, 1)

JOB: dict[str, Callable[[Any], bool]] = {
    "model": any_text,
    "layer": any_text,
    "targets": any_text,
    "target_sets": among([], (), "a=b", "a=1", ["a=b"], ["a=1"], ["a=0"], ["a=inf"]),
    "target_set_column": either(text, NONE),
    "exclusive": TRUTH,
    "shares": among([], (), ["a=1"], "a=1"),
    "corpus": texts,
    "out": text,
    "text_column": lambda value: text(value) and value != ",",
    "text_template": either(text, NONE),
    "id_column": text,
    "chat_template": text,
    "refused_chats": among("plain", "stop"),
    "max_bad_rows": whole(0),
    "format": among(None, "jsonl", "parquet"),
    "label_column": either(text, NONE),
    "target_labels": texts,
    "limit": either(whole(1), NONE),
    "sae_path": either(text, NONE),
    "sae_facts": among({}, {"k": 3}),
    "device": DEVICE,
    "dtype": among(),
    "activation_dtype": among(),
    "batch_tokens": whole(1),
    "max_length": either(whole(1), NONE),
    "stride": either(whole(1), NONE),
    "sinks": among("drop", "keep"),
    "train_tokens": whole(1),
    "preset": among(),
    "pooling": NONE,
    "weights": among(None, "none"),
    "scorer": NONE,
    "coordinates": either(whole(0), NONE),
    "top_m": whole(1),
    "top_k_activations": whole(1),
    "seed": SEED,
    "draws": whole(0),
    "report_rows": whole(0),
    "sae": among({}, {"k": 3}),
    "training": among({}),
    "selection": among({}, {"k": 3}),
}
SAE = {
    "expansion_factor": whole(1),
    "normalize_decoder": TRUTH,
    "num_latents": whole(0),
    "k": whole(1),
    "multi_topk": TRUTH,
    "architecture": text,
    "matryoshka_loss": among(),
    "sparsity": among(),
    "tanh_scale": real(0, above=True),
    "bandwidth": either(real(0, above=True), NONE),
    "threshold_rate": real(0, 1, above=True),
    "matryoshka_widths": lambda value: isinstance(value, (list, tuple)) and list(value) in ([], [3]),
}
TRAINING = {
    "batch_size": whole(1),
    "num_epochs": whole(1),
    "learning_rate": either(real(0, above=True), NONE),
    "l1_weight": real(0),
    "device": DEVICE,
    "save_every": whole(0),
    "log_every": whole(1),
    "save_every_steps": whole(0),
    "batch_tokens": either(whole(1), NONE),
    "shuffle_tokens": whole(1),
    "sparsity_weight": real(0),
    "loss": among(),
    "auxk_alpha": real(0),
    "auxk_k": either(whole(1), NONE),
    "dead_feature_threshold": either(whole(1), NONE),
    "lr_warmup_steps": either(whole(0), NONE),
    "autocast": among("none"),
    "seed": SEED,
}
FACTS = {
    "k": either(whole(1), NONE),
    "norm_scaling_factor": either(real(0, above=True), NONE),
    "threshold": either(real(-np.inf), NONE),
    "center_writing_weights": either(TRUTH, NONE),
    "normalize_activations": either(text, NONE),
    "embedding": either(TRUTH, NONE),
}
SELECTION = {
    "k": either(whole(0), NONE),
    "fraction": either(real(0, 1, above=True), NONE),
    "min_score": either(real(-np.inf), NONE),
    "min_similarity": either(COSINE, NONE),
    "token_budget": either(whole(0), NONE),
    "strategy": among(),
    "per_target": either(whole(1), NONE),
    "num_clusters": whole(1),
    "clusters_per_target": whole(1),
    "near_duplicate": either(COSINE, NONE),
    "diversity": either(COSINE, NONE),
    "quotas": among([], (), ["a=1"], "a=1"),
    "seed": SEED,
}
CURATION = {
    "top_k_activations": whole(1),
    "top_k_selection": whole(1),
    "similarity_threshold": COSINE,
    "use_clustering": TRUTH,
    "num_clusters": whole(1),
    "preset": text,
    "seed": SEED,
}
KINDS: dict[type, dict[str, Callable[[Any], bool]]] = {
    Job: JOB,
    SaeConfig: SAE,
    SaeFacts: FACTS,
    TrainingConfig: TRAINING,
    SelectionConfig: SELECTION,
    CurationConfig: CURATION,
}
BESIDE: dict[str, dict[str, Any]] = {
    "target_set_column": {"targets": "t"},
    "exclusive": {"target_sets": ["a=b"]},
    "shares": {"target_sets": ["a=b"]},
    "target_labels": {"label_column": "l"},
    "selection": {"label_column": "l"},
}
"""What a field of a job is nothing without."""
SECTIONS = {"sae": SaeConfig, "sae_facts": SaeFacts, "training": TrainingConfig, "selection": SelectionConfig}
FIELDS = [
    pytest.param(kind, field.name, id=f"{kind.__name__}.{field.name}")
    for kind in KINDS
    for field in dataclasses.fields(kind)
]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_field_takes_what_is_written_here_and_nothing_else(kind: Any, name: str) -> None:
    takes = KINDS[kind][name]
    for value in VALUES:
        if takes(value):
            kept = getattr(kind(**{name: value}, **(BESIDE.get(name, {}) if kind is Job else {})), name)
            assert kept == (list(value) if isinstance(value, tuple) else value) or kept == [value]
            continue
        with pytest.raises(ValueError) as refused:
            kind(**{name: value})
        words = str(refused.value).removeprefix(f"{kind.__name__}: ")
        if isinstance(value, dict) and name in SECTIONS and all(isinstance(key, str) for key in value):
            assert words.startswith((f"{name}.k must be ", f"there is no setting {name}."))
        else:
            assert words.startswith(f"{name} must be ")
            several = isinstance(getattr(kind(), name), list)
            assert f"got {[value] if several and isinstance(value, str) else value!r}"[:50] in words


@pytest.mark.parametrize(("section", "kind"), SECTIONS.items())
def test_sections_are_checked_as_their_kinds(section: str, kind: type) -> None:
    for name, takes in KINDS[kind].items():
        for value in VALUES:
            if takes(value) and name != "architecture":  # a text for SaeConfig, a name for a job
                assert name in getattr(Job(**{section: {name: value}}, **BESIDE.get(section, {})), section)
                continue
            with pytest.raises(ValueError, match=rf"^{section}\.{name} must be .*, got "):
                Job(**{section: {name: value}})


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError) as refused:
        Job.from_dict(
            {
                "draws": "x", "report_rows": -3, "seed": "abc", "dtype": "float8", "limit": True,
                "top_m": True, "device": 7, "targets": ["a", "b"], "label_column": 3, "sea": {}, "sae": 3,
                "stride": 0, "training": {"num_epoch": 1, "loss": "fuv"},
                "selection": {"k": "ten", "fraction": 2.5},
            }
        )  # fmt: skip
    lines = str(refused.value).split(";\n")
    for words in (
        "draws must be a whole number of at least 0, got 'x'",
        "report_rows must be a whole number of at least 0, got -3",
        "seed must be a whole number from 0 to 4294967295, got 'abc'",
        "dtype must be one of float32, bfloat16, float16, got 'float8'; did you mean float32?",
        "limit must be a whole number of at least 1, or null, got True",
        "top_m must be a whole number of at least 1, got True",
        "device must be auto or a device as torch names it, got 7",
        "targets must be a text, got ['a', 'b']",
        "label_column must be a text that is not empty, or null, got 3",
        "there is no setting sea; did you mean sae?",
        "sae must be a section of names and values, got 3",
        "stride must be a whole number of at least 1, or null, got 0",
        "there is no setting training.num_epoch; did you mean training.num_epochs?",
        "training.loss must be one of fvu, normalized_mse, got 'fuv'; did you mean fvu?",
        "selection.k must be a whole number of at least 0, or null, got 'ten'",
        "selection.fraction must be a number above 0 and at most 1, or null, got 2.5",
    ):
        assert words in lines
    assert len(lines) == 16


def test_values_that_are_right_alone_but_not_together() -> None:
    Job(max_length=8, stride=7, sae={"k": 8, "num_latents": 8})
    with pytest.raises(
        ValueError, match=r"stride is the overlap of two windows .* below max_length 8, got 8"
    ):
        Job(max_length=8, stride=8)
    with pytest.raises(ValueError, match=r"sae\.k must be at most sae\.num_latents 8, got 9"):
        Job(sae={"k": 9, "num_latents": 8})
    with pytest.raises(ValueError, match=r"last of sae\.matryoshka_widths must be sae\.num_latents 8, got 7"):
        Job(sae={"architecture": "matryoshka", "matryoshka_widths": [3, 7], "num_latents": 8})
    Job(sae={"architecture": "matryoshka", "matryoshka_widths": [3, 8], "num_latents": 8})
    Job(sae={"k": 9, "num_latents": 0})
    Job(sae={"architecture": "topk"})
    with pytest.raises(ValueError, match=r"sae\.architecture must be one of .*topk.*, got .x."):
        Job(sae={"architecture": "x"})


def test_what_stands_for_a_plain_value_becomes_one() -> None:
    job = Job(corpus=Path("a"), out=Path("b"), seed=np.int64(3), selection={"fraction": np.float64(0.5)})
    assert (job.corpus, job.out, job.seed, job.selection) == (["a"], "b", 3, {"fraction": 0.5})
    assert type(job.seed) is int
    assert type(job.selection["fraction"]) is float
    assert Job(corpus=["a", Path("b")]).corpus == ["a", "b"]
    assert Job(target_labels="physics", label_column="topic").target_labels == ["physics"]
    config = TrainingConfig(device=torch.device("cuda:1"), learning_rate=1, num_epochs=torch.tensor(2))
    assert (config.device, config.num_epochs) == ("cuda:1", 2)
    assert type(config.learning_rate) is float
    assert SaeConfig(normalize_decoder=np.bool_(False)).normalize_decoder is False


def test_defaults_are_taken_and_a_long_value_is_cut_short() -> None:
    for kind in KINDS:
        assert kind.from_dict(kind().to_dict()) == kind()
    with pytest.raises(ValueError) as refused:
        Job(targets=["a row"] * 100_000)
    assert len(str(refused.value)) < 200


def test_a_largest_number_is_named_where_it_is_passed() -> None:
    with pytest.raises(
        ValueError, match=r"limit must be .*, got 9223372036854775808; the largest is 2\^63 - 1"
    ):
        Job(limit=2**63)

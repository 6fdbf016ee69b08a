"""Settings from files and from ``--set`` mean what YAML 1.2 says, options what the job's fields say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from finescope.cli import COMMANDS, main
from finescope.cli.common import read_config
from finescope.cli.options import job_from
from finescope.config import SaeConfig, TrainingConfig
from finescope.curation.limits import SelectionConfig
from finescope.fields import Configuration, docs_of, fields_of
from finescope.storage.yaml12 import dump_yaml, load_yaml
from finescope.workflow.job import Job

# Of YAML 1.2.2, §10.3.2; what YAML 1.1 took for something else is among them.
CORE = {
    "1e-4": 1e-4, "1E5": 1e5, "-1.5e+3": -1500.0, ".5": 0.5, "5.": 5.0, "+12": 12, "010": 10, "0o17": 15,
    "0x1F": 31, "-0": 0, "685_230": "685_230", "0b11": "0b11", "1:30": "1:30", "2001-12-14": "2001-12-14",
    "yes": "yes", "No": "No", "on": "on", "OFF": "OFF", "y": "y", "true": True, "FALSE": False,
    "tRUE": "tRUE", "null": None, "~": None, "": None, "Nil": "Nil", ".inf": math.inf, "-.INF": -math.inf,
    "=": "=", "<<": "<<", "e3": "e3", "0x": "0x", "-0x1": "-0x1", "1e": "1e", "'1'": "1",
    "[1e3, yes]": [1000.0, "yes"],
}  # fmt: skip
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(list(CORE))
)


@pytest.mark.parametrize(("word", "value"), CORE.items())
def test_a_plain_word_is_what_yaml_1_2_says(word: str, value: Any) -> None:
    found = load_yaml(word)
    assert found == value
    assert type(found) is type(value)


def test_nan() -> None:
    assert math.isnan(load_yaml(".nan"))


@given(
    st.recursive(PLAIN, lambda deeper: st.lists(deeper) | st.dictionaries(st.text(), deeper), max_leaves=8)
)
def test_what_is_written_is_read_back(value: Any) -> None:
    import yaml

    text = dump_yaml(value)
    assert load_yaml(text) == value
    assert repr(load_yaml(text)) == repr(value)
    assert yaml.safe_load(text) == value, "readers of YAML 1.1 see the same"


def test_a_key_that_stands_there_twice_is_refused() -> None:
    for text in ("seed: 1\nlimit: 2\nseed: 3\n", "sae: {k: 1, k: 2}", "a: {'b': 1, b: 2}"):
        with pytest.raises(ValueError, match="twice"):
            load_yaml(text)
    text = "a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b, k: 3}\nd: *b\n"
    assert load_yaml(text) == {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 3}, "d": {"k": 2}}


def test_nothing_is_run_by_reading() -> None:
    with pytest.raises(ValueError, match="constructor"):
        load_yaml("!!python/object/apply:os.getcwd []")


def test_numbers_from_a_file_and_from_set(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("training:\n  learning_rate: 1e-4\nlabel_column: yes\nseed: 010\n")
    job = job_from(path, ["training.l1_weight=1e-3", "target_labels=[on, 2001-12-14]"], {})
    assert job.training == {"learning_rate": 1e-4, "l1_weight": 1e-3}
    assert (job.label_column, job.seed, job.target_labels) == ("yes", 10, ["on", "2001-12-14"])
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(click.UsageError, match="'seed' twice"):
        read_config(path, [])


def test_a_job_is_a_file_that_config_takes(tmp_path: Path) -> None:
    job = job_from(
        None, ["training.learning_rate=1e-4", "sae.k=8"], {"corpus": ("a", "b"), "k": 3, "layer": "1e5"}
    )
    path = tmp_path / "job.yaml"
    path.write_text(job.to_yaml())
    assert job_from(path, [], {}) == job


def test_all_wrong_settings_are_named_by_the_command() -> None:
    result = CliRunner().invoke(
        main, ["curate", "--set", "draws=x", "--set", "sae.kk=3", "--device", "nonsense"]
    )
    assert result.exit_code == 2
    for words in (
        "draws must be",
        "did you mean sae.k?",
        "device must be auto or a device",
        "got 'nonsense'",
    ):
        assert words in result.stderr


# ------------------------------------------------------------------ options

SECTIONS: dict[str, type[Configuration]] = {
    "sae": SaeConfig,
    "training": TrainingConfig,
    "selection": SelectionConfig,
}


def options_of(command: str) -> dict[str, click.Option]:
    group = main.get_command(click.Context(main), command)
    assert group is not None
    return {each.name or "": each for each in group.params if isinstance(each, click.Option)}


def test_every_field_of_the_job_has_an_option() -> None:
    plain = {name for name, field in fields_of(Job).items() if field.base is not dict}
    plain -= {"target_sets"}  # --targets NAME=FILE
    assert plain <= set(options_of("curate"))


ASKING = ("demo", "explain", "latents", "diff", "export", "sae", "info", "merge", "status", "prove")
"""Commands without a job."""


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ASKING])
def test_an_option_that_is_not_given_leaves_the_default_to_the_job(command: str) -> None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    given = found.make_context(command, [], resilient_parsing=True).params
    fields = {
        *fields_of(Job),
        *fields_of(SelectionConfig),
        "sae__k",
        "sae__num_latents",
        "training__num_epochs",
    }
    assert len(fields & set(given)) > 2
    for name in fields & set(given) - {"out"}:
        assert given[name] in (None, ()), name


def test_options_say_the_defaults_and_choices_of_the_fields() -> None:
    shown = 0
    for name, option in options_of("curate").items():
        field = fields_of(Job).get(name) or fields_of(SelectionConfig).get(name)
        if field is None:
            continue
        if field.default not in (None, "", []) and field.base is not bool:  # --this/--no-this
            shown += 1
            assert (option.help or "").endswith(f" [default: {field.default}]"), name
        if field.choices is not None:
            assert isinstance(option.type, click.Choice)
            assert list(option.type.choices) == list(field.choices)
    assert shown > 12


@pytest.mark.parametrize("kind", [Job, *SECTIONS.values()])
def test_every_field_says_what_it_is_for(kind: type[Configuration]) -> None:
    docs = docs_of(kind)
    assert list(docs) == list(fields_of(kind))
    assert all(len(words) > 12 and words.endswith(".") for words, _ in docs.values())


def test_help_says_what_happens_without_an_option() -> None:
    text = " ".join(CliRunner().invoke(main, ["curate", "--help"]).stdout.split())
    for words in (
        "Tokens per forward pass. [default: 8192] [x>=1]",
        "longer texts are read in several. [default: the model's limit]",
        "Tokens by which windows overlap. [default: none]",
        "its n-th run with @n behind it. [default: the SAE's, or the last block]",
        "[default: train one]",
        "[default: 100 if nothing else limits]",
        "may be repeated. [default: the labels of the targets]",
        "Share of all N rows to select, at most, rounded up. [0<x<=1]",
        "Targets or groups of them left out in turn for the intervals. [default: 50]",
    ):
        assert words in text


def test_options_of_the_other_kind_of_source_are_refused_even_when_zero(tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").write_bytes(b"")
    result = CliRunner().invoke(main, ["select", str(tmp_path / "scores.parquet"), "--draws", "0"])
    assert result.exit_code == 2
    assert "--draws goes with a folder of a run" in result.stderr
    result = CliRunner().invoke(main, ["select", str(tmp_path), "--codes", "x"])
    assert "--codes goes with a table of scores" in result.stderr


def test_target_labels_need_a_column() -> None:
    arguments = ["curate", "--model", "m", "--targets", "t", "--corpus", "c", "--target-label", "x"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "target_labels are labels: name their column, label_column (--label-column)" in result.stderr

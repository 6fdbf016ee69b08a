"""What a person meets first: help that teaches, usage errors with exit code 2, settings in a fixed order."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from finescope.cli import COMMANDS, main
from finescope.cli.common import merge_options, read_config
from finescope.cli.options import job_from


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"finescope {name}" in out
    assert len(out.splitlines()) > 8 or name == "info"


def test_main_help_lists_the_commands_in_order() -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = out[out.index("Commands:") :]
    places = [listed.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert "Exit codes" in out


def test_version_and_info() -> None:
    import finescope

    assert run("--version")[1].strip().endswith(finescope.__version__)
    code, out, _ = run("info")
    assert code == 0
    assert finescope.__version__ in out
    code, out, _ = run("info", "--json")
    assert json.loads(out)["finescope"] == finescope.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command"),
        (["curate", "--nonsense"], "--nonsense"),
        (["curate"], "--model"),
        (["curate", "--model", "m"], "--targets"),
        (["curate", "--model", "m", "--targets", "t"], "--corpus"),
        (["curate", "--preset", "best"], "default"),
        (["curate", "--config", "no-such.yaml"], "no-such.yaml"),
        (["curate", "--set", "sae.kk=3"], "sae.k"),
        (["curate", "--set", "sea.k=3"], "did you mean sae?"),
        (["curate", "--set", "nothing"], "name=value"),
        (["curate", "--set", "training.num_epochs=0"], "num_epochs"),
        (["curate", "--set", "sae=3"], "section"),
        (["curate", "--set", "a=[1"], "YAML"),
        (["curate", "--fraction", "2"], "--fraction"),
        (["select", "no-such-folder"], "no-such-folder"),
        (["train"], "ACTIVATIONS"),
        (["demo", "--target-domain", "sports"], "stem"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_way_out(arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err + out


def test_settings_win_in_order(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("model: a\nlimit: 5\nseed: 1\nsae:\n  k: 8\n  num_latents: 64\nselection: {k: 3}\n")
    job = job_from(
        config,
        ["sae.k=16", "seed=2", "label_column=c", "target_labels=[x, y]"],
        {"seed": 3, "k": 7, "corpus": ()},
    )
    assert (job.model, job.limit, job.seed, job.target_labels) == ("a", 5, 3, ["x", "y"])
    assert job.sae == {"k": 16, "num_latents": 64}
    assert job.selection_config().k == 7
    assert job.corpus == []


def test_selection_defaults_to_100_rows_only_without_other_limits() -> None:
    assert job_from(None, [], {}).selection_config().k == 100
    assert job_from(None, [], {"token_budget": 9}).selection_config().k is None


def test_custom_recipe_is_named_after_its_preset() -> None:
    assert job_from(None, [], {}).recipe().name == "default"
    changed = job_from(None, [], {"preset": "paper", "weights": "idf"}).recipe()
    assert (changed.name, changed.weights, changed.scorer) == ("paper*", "idf", "max")


def test_config_files_that_are_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for content, words in (("- a\n- b\n", "mapping"), ("a: [1", "YAML"), ("a: 1\n", "not a section")):
        path.write_text(content)
        with pytest.raises(click.UsageError, match=words) as caught:
            read_config(path, ["a.b=1"])
        assert words in caught.value.message
    path.write_text("")
    assert merge_options(read_config(path, []), {"x.y": Path("p"), "z": None}) == {"x": {"y": "p"}}

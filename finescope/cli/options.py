"""Options that several sub-commands share. Defaults live in the job, so ``None`` means not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from finescope.cli.common import merge_options, read_config
from finescope.curation.scoring.presets import PRESETS
from finescope.curation.scoring.scorers import SCORERS
from finescope.curation.scoring.weighting import WEIGHTINGS
from finescope.curation.selection import STRATEGIES
from finescope.workflow.job import POOLINGS, Job

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Option = Callable[[Any], Any]


def _group(options: Sequence[_Option]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_options = _group(
    [
        click.option("--model", metavar="NAME|DIR", help="Language model: Hugging Face id or local folder."),
        click.option(
            "--layer", metavar="MODULE", help="Module to read, e.g. layers.10. [default: the last block]"
        ),
        click.option(
            "--device", metavar="DEVICE", help="Where model and SAE run, e.g. cpu or cuda. [default: cpu]"
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Element type of the model. [default: float32]",
        ),
        click.option(
            "--batch-tokens", type=click.IntRange(1), help="Tokens per forward pass. [default: 8192]"
        ),
        click.option(
            "--max-length",
            type=click.IntRange(1),
            help="Tokens per window; longer texts are read in several. [default: the model's limit]",
        ),
        click.option(
            "--stride", type=click.IntRange(1), help="Tokens by which windows overlap. [default: none]"
        ),
    ]
)

column_options = _group(
    [
        click.option("--text-column", metavar="NAME", help="Column of the text. [default: text]"),
        click.option(
            "--id-column", metavar="NAME", help="Column of the ids; made up where missing. [default: id]"
        ),
        click.option("--limit", type=click.IntRange(1), help="Read only the first rows of the corpus."),
    ]
)

recipe_options = _group(
    [
        click.option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            help="Recipe of pooling, weighting and scorer. [default: default]",
        ),
        click.option(
            "--weights", type=click.Choice(WEIGHTINGS), help="Weighting of latents, over the preset's."
        ),
        click.option("--scorer", type=click.Choice(SCORERS), help="How a row is compared with the targets."),
        click.option(
            "--top-m",
            type=click.IntRange(1),
            help="Targets that the scorer top_m_mean averages. [default: 3]",
        ),
    ]
)

pooling_option = click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="How token codes become a document's code, over the preset's.",
)

keep_option = click.option(
    "--top-k-activations", type=click.IntRange(1), help="Latents kept per document. [default: 100]"
)

selection_options = _group(
    [
        click.option(
            "-k", "k", type=click.IntRange(0), help="Rows to select. [default: 100 if nothing else limits]"
        ),
        click.option(
            "--fraction", type=click.FloatRange(0, 1, min_open=True), help="Share of the corpus to select."
        ),
        click.option("--min-score", type=float, help="Leave out rows with a lower score."),
        click.option(
            "--min-similarity",
            type=click.FloatRange(-1, 1),
            help="Leave out rows whose cosine to the nearest target is lower.",
        ),
        click.option("--token-budget", type=click.IntRange(0), help="Tokens to select, at most."),
        click.option(
            "--strategy", type=click.Choice(STRATEGIES), help="Order in which rows are taken. [default: rank]"
        ),
        click.option(
            "--per-target", type=click.IntRange(1), help="Rows per target, for per_target and clusters."
        ),
        click.option(
            "--num-clusters", type=click.IntRange(1), help="k-means clusters, for clusters. [default: 5]"
        ),
        click.option(
            "--near-duplicate",
            type=click.FloatRange(-1, 1),
            help="Leave out rows with at least this cosine to a better row, as copies (try 0.98).",
        ),
        click.option(
            "--diversity",
            type=click.FloatRange(-1, 1),
            help="Leave out rows with at least this cosine to a better row, for variety (try 0.8).",
        ),
    ]
)

label_options = _group(
    [
        click.option(
            "--label-column", metavar="NAME", help="Column of known labels: evaluates, never scores."
        ),
        click.option(
            "--target-label",
            "target_labels",
            multiple=True,
            metavar="LABEL",
            help="Label of the target domain; may be repeated. [default: the labels of the targets]",
        ),
    ]
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no progress.")

SELECTION_FIELDS = (
    "k",
    "fraction",
    "min_score",
    "min_similarity",
    "token_budget",
    "strategy",
    "per_target",
    "num_clusters",
    "near_duplicate",
    "diversity",
)


def job_from(config_path: Path | None, overrides: Sequence[str], options: Mapping[str, Any]) -> Job:
    """Build a job: defaults, then the YAML file, then ``--set``, then options given by name.

    Raises:
        click.UsageError: an unknown setting or a value out of range.
    """
    nested = {
        (f"selection.{name}" if name in SELECTION_FIELDS else name): value for name, value in options.items()
    }
    config = merge_options(read_config(config_path, overrides), nested)
    try:
        return Job.from_dict(config)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def need(job: Job, *names: str) -> None:
    """Refuse a job that lacks values.

    Raises:
        click.UsageError: naming the first missing option.
    """
    for name in names:
        if not getattr(job, name):
            raise click.UsageError(
                f"Missing option '--{name.replace('_', '-')}' (or {name}: in the --config file)."
            )

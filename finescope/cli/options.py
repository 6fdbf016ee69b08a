"""Options of the sub-commands, made from the fields of the job and of its sections.

An option that isn't given is None, or () where it may be repeated; the job knows the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from annotated_types import Ge, Gt, Le

from finescope.cli.common import merge_options, read_config
from finescope.curation.limits import SelectionConfig
from finescope.errors import InputError
from finescope.fields import Field, Metavar, Section, docs_of, fields_of
from finescope.workflow.engines.engine import Engine
from finescope.workflow.engines.table import ENGINES, Asked, engine_for
from finescope.workflow.job import Job

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Option = Callable[[Any], Any]

_FLAGS = {
    "sae_path": "--sae",
    "target_labels": "--target-label",
    "sae.k": "-k",
    "training.num_epochs": "--epochs",
    "selection.k": "-k",
    "selection.quotas": "--quota",
    "shares": "--share",
}
"""Options that are not called like their fields."""


def flag_of(dotted: str) -> str:
    """Return the flag of a field's option."""
    return _FLAGS.get(dotted, f"--{dotted.rpartition('.')[2].replace('_', '-')}")


def option(dotted: str, *, help: str | None = None, default: str | None = None) -> _Option:
    """Return the option of a field.

    Args:
        dotted: name of the field: ``seed``, ``selection.k``.
        help: what the option means in this command; by default what the field says.
        default: what happens without it in this command; by default what the field says.
    """
    section, _, name = dotted.rpartition(".")
    marker = fields_of(Job)[section].limit(Section) if section else None
    kind = Job if marker is None else marker.kind
    field = fields_of(kind)[name]
    words, stands = docs_of(kind)[name]  # type: ignore[arg-type]
    several = field.base is list
    words = f"{(help or words).rstrip('.')}{'; may be repeated' if several else ''}."
    if default is None:
        default = stands if field.default in (None, "", []) else str(field.default)
    metavar = field.limit(Metavar)
    return click.option(
        flag_of(dotted),
        dotted.removeprefix("selection.").replace(".", "__"),
        type=_type_of(field),
        multiple=several,
        metavar=None if metavar is None else metavar.name,
        help=f"{words} [default: {default}]" if default else words,
    )


def _type_of(field: Field) -> click.ParamType[Any] | None:
    """Return click's type of a field; what it lets through is checked with the job."""
    if field.choices is not None:
        return click.Choice(list(field.choices))
    if field.base not in (int, float):
        return None
    low, above, high = field.limit(Ge), field.limit(Gt), field.limit(Le)
    if not (low or above or high):
        return click.INT if field.base is int else click.FLOAT
    bounds: Any = {
        "min": low.ge if low else above.gt if above else None,
        "max": high.le if high else None,
        "min_open": above is not None,
    }
    return click.IntRange(**bounds) if field.base is int else click.FloatRange(**bounds)


def group(*options: str | _Option) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options, in order; a name stands for the field's own option."""

    def add(command: _Command) -> _Command:
        for each in reversed(options):
            command = (option(each) if isinstance(each, str) else each)(command)
        return command

    return add


model_options = group(
    "model", "layer", "device", "dtype", "activation_dtype", "batch_tokens", "max_length", "stride"
)
column_options = group("text_column", "text_template", "id_column", "limit")
chat_options = group("chat_template", "refused_chats")
recipe_options = group("preset", "weights", "scorer", "top_m")
label_options = group("label_column", "target_labels")
_SELECTION = (
    option("selection.k", default="100 if nothing else limits"),
    "selection.fraction",
    "selection.min_score",
    "selection.min_similarity",
    "selection.token_budget",
    "selection.strategy",
    "selection.per_target",
    "selection.num_clusters",
    "selection.near_duplicate",
    "selection.diversity",
    "selection.quotas",
)
selection_options = group(*_SELECTION)
targets_option = click.option(
    "--targets",
    multiple=True,
    metavar="FILE|NAME=FILE",
    help="Target rows: 10 to 50 texts of the domain you want. For several target sets once for each, with a "
    "name.",
)
exclusive_option = click.option(
    "--exclusive/--no-exclusive",
    default=None,
    help="With several target sets: a row goes to its best set only, or to all that choose it.",
)
sets_options = group(
    option("target_set_column"),
    exclusive_option,
    option("shares", help="With several target sets: this set's share of -k or --token-budget"),
)
job_options = group(
    "model", "layer", "device", "dtype", "activation_dtype", "batch_tokens", "max_length", "stride",
    targets_option, sets_options, "corpus", "out", "format",
    "text_column", "text_template", "id_column", "limit",
    "chat_template", "refused_chats", "max_bad_rows",
    "sae_path", "train_tokens", "coordinates",
    "preset", "weights", "scorer", "top_m",
    "pooling", "top_k_activations", "sinks",
    *_SELECTION,
    "label_column", "target_labels",
    "report_rows", "draws", "seed",
)  # fmt: skip
"""All of the main job."""
ENGINE = ("engine", "workers", "address", "worker_cpus", "worker_gpus")
"""What ``engine_options`` give a command."""
engine_options = group(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that embed at a time, each with a model of its own, its share of the threads, and a "
        "GPU where there are several.",
    ),
    click.option(
        "--engine",
        type=click.Choice(list(ENGINES)),
        help="Where they run: in this process, as processes of this machine, or as actors of a Ray cluster. "
        "[default: processes if there are several]",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT|auto|local",
        help="The Ray cluster; local starts one of this machine. [default: RAY_ADDRESS, else the one started "
        "on this machine last, else local]",
    ),
    click.option(
        "--worker-cpus",
        type=click.FloatRange(min=0),
        default=1.0,
        show_default=True,
        help="CPUs that a Ray actor asks for, and its threads.",
    ),
    click.option(
        "--worker-gpus",
        type=click.FloatRange(min=0),
        help="GPUs that a Ray actor asks for. [default: 1 if the cluster has any and --device lets it]",
    ),
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print no progress.")


def engine_of(job: Job, given: Mapping[str, Any], say: Callable[[str], None]) -> Engine:
    """Return the engine that the values of ``ENGINE`` ask for.

    Raises:
        click.UsageError: options that say nothing to the engine.
    """
    engine, workers, address, cpus, gpus = (given[name] for name in ENGINE)
    if engine != "ray" and (address is not None or gpus is not None or cpus != 1.0):
        raise click.UsageError("--address, --worker-cpus and --worker-gpus go with --engine ray.")
    try:
        return engine_for(Asked(workers, job.device, address, cpus, gpus, say), engine)
    except InputError as error:
        raise click.UsageError(str(error)) from None


def dotted_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by their fields' full names: ``k``, as commands get it, is ``selection.k``."""
    limits = fields_of(SelectionConfig).keys() - fields_of(Job).keys()
    return {
        f"selection.{name}" if name in limits else name.replace("__", "."): value
        for name, value in given.items()
    }


def job_from(config_path: Path | None, overrides: Sequence[str], given: Mapping[str, Any]) -> Job:
    """Build a job: defaults, then the YAML file, then ``--set``, then options given by name.

    Raises:
        click.UsageError: unknown settings, values of a wrong type or out of range.
    """
    config = merge_options(read_config(config_path, overrides), dotted_names(with_targets(given)))
    try:
        return Job.from_dict(config)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def with_targets(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by name, with ``--targets`` as the target file or the named target sets that it means.

    Raises:
        click.UsageError: several files without names.
    """
    found = dict(given)
    places = found.pop("targets", None)
    if not isinstance(places, tuple):
        return dict(given)
    if len(places) == 1 and ("=" not in places[0] or Path(places[0]).exists()):
        return {**found, "targets": places[0]}
    for place in places:
        if "=" not in place:
            raise click.UsageError(f"Several target sets need names: write --targets NAME={place}.")
    return {**found, "target_sets": tuple(places)}


def need(job: Job, *names: str) -> None:
    """Refuse a job that lacks values.

    Raises:
        click.UsageError: naming the first missing option.
    """
    for name in names:
        if not getattr(job, name):
            raise click.UsageError(f"Missing option '{flag_of(name)}' (or {name}: in the --config file).")


def need_all(job: Job) -> None:
    """Refuse a job that lacks what the main job can't do without.

    Raises:
        click.UsageError: as ``need``.
    """
    targets = [] if job.target_sets else ["targets"]
    need(job, "model", *targets, "corpus")

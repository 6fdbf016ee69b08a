"""``finescope prove``: does a model learn more from the rows that were picked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finescope.cli import options
from finescope.cli.common import Place, aligned, read_config

if TYPE_CHECKING:
    from finescope.progress import Reporter


@click.command("prove", short_help="Does a model learn more from the rows that each method picks?")
@click.argument("place", type=Place(exists=True), metavar="RUN|CONFIG|PLAN")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("proof"),
    show_default=True,
    metavar="DIR",
    help="Folder of the runs, the numbers and the page.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set one value of the plan, e.g. --set seeds=1. May be repeated.",
)
@click.option(
    "--label-column",
    metavar="NAME",
    help="Of RUN or CONFIG: column of the labels, which say what rows are of one topic. [default: the run's]",
)
@click.option(
    "--draw",
    type=click.IntRange(1),
    help="Do one draw only, so that processes can share the work. [default: all]",
)
@click.option("--so-far", is_flag=True, help="Train nothing: summarise the runs that are done.")
@options.quiet_option
def command(
    place: str | Path,
    out: Path,
    overrides: tuple[str, ...],
    label_column: str | None,
    draw: int | None,
    so_far: bool,
    quiet: bool,
) -> None:
    """Train a language model on the rows that each method picks, and read texts that were held out.

    RUN is the --out folder of `finescope curate`, CONFIG a configuration of it (its config.yaml): its recipe
    is held against random rows, TF-IDF and hidden states, on topics that the labels of its corpus say. The
    plan for that is written into the output, to be looked at and changed; given again, RUN goes by the plan
    that is there.

    PLAN is such a file: it names topics, methods ("arms"), draws and budgets, and how the model is trained;
    everything else has a default. All methods choose from the same pool, are given the same tokens and steps,
    and begin where the model is after a warm-up on random rows. Each run is kept in a file: a command that
    was stopped goes on where it was.

    Writes proof.json, proof.html and two figures.

    \b
    Examples:
      finescope prove curated/ --out proof/
      finescope prove curated/ --label-column topic --set seeds=1
      finescope prove proof/plan.yaml --out proof/
    """
    from finescope.errors import InputError
    from finescope.progress import Reporter, duration
    from finescope.proof.grid import Grid
    from finescope.proof.page import PAGE, write_proof
    from finescope.proof.plan import ProofPlan

    reporter = Reporter(quiet=quiet)
    plan = _plan(place, out, label_column, reporter)
    grid = Grid(ProofPlan.from_dict(read_config(plan, overrides)), out, reporter)
    runs = grid.results() if so_far else grid.run(None if draw is None else draw - 1)
    if not any(run["topic"] for run in runs):
        raise InputError("no topic is done yet with all of its arms; run again without --so-far")
    numbers = write_proof(grid, runs)
    summary = numbers["summary"]
    click.echo(table_of(numbers["plan"], summary))
    for line in summary["tests"]:
        found = line["difference"]
        click.echo(
            f"{grid.plan.primary} against {line['rival']}: {found['value']:+.4f} "
            f"[{found['low']:+.4f}, {found['high']:+.4f}], ahead on {line['better_on']} of "
            f"{len(line['topics'])} topics, p = {line['sign_flip']:.4f} (Holm {line['holm']:.4f}, "
            f"Wilcoxon {line['wilcoxon']:.4f})"
        )
    click.echo(f"page: {out / PAGE} (training: {duration(summary['seconds'])})")


def _plan(place: str | Path, out: Path, label_column: str | None, reporter: Reporter) -> Path:
    """Return the file of the plan; that for a run or a configuration is written, if it isn't there yet."""
    from finescope.proof.derived import PLAN, is_job, made_for, plan_of_job, plan_of_run
    from finescope.workflow.job import Job

    if isinstance(place, Path) and place.is_file():
        values = read_config(place, ())
        if not is_job(values):
            if label_column is not None:
                raise click.UsageError("--label-column goes with RUN or CONFIG; a plan has label_column.")
            return place
        if not made_for(out / PLAN, str(place)):
            try:
                job = Job.from_dict(values)
            except ValueError as error:
                raise click.UsageError(f"{place}: {error}") from None
            plan_of_job(job, out, reporter, source=str(place), label_column=label_column)
    elif not made_for(out / PLAN, str(place)):
        plan_of_run(str(place), out, reporter, label_column=label_column)
    return out / PLAN


def table_of(plan: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the table of arms at the largest budget as aligned text."""
    from finescope.proof.summary import in_words

    budget = str(max(plan["budgets"]))
    lines = [
        [
            f"after {int(budget):,} tokens",
            "held-out",
            "below random",
            "random tokens",
            "off topic",
            "on topic",
        ]
    ]
    for line in summary["arms"]:
        at = line["budgets"][budget]
        beyond = at.get("beyond_random")
        lines.append(
            [
                line["arm"] + (" (noisy pool)" if line["noisy"] else ""),
                f"{at['held_out']:.4f}",
                f"{beyond['value']:+.4f} [{beyond['low']:+.4f}, {beyond['high']:+.4f}]" if beyond else "–",
                in_words(line["multiplier"].get(budget)),
                f"{line['off_topic']:.4f}",
                f"{line['on_topic']:.0%}",
            ]
        )
    return aligned(lines)

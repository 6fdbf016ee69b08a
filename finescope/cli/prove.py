"""``finescope prove``: does a model learn more from the rows that were picked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import aligned

_COLUMNS = ("held-out", "below random", "random tokens", "off topic", "on topic")


@click.command("prove", short_help="Does a model learn more from the rows that each method picks?")
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
    "--draw",
    type=click.IntRange(1),
    help="Do one draw only, so that processes can share the work. [default: all]",
)
@click.option("--so-far", is_flag=True, help="Train nothing: summarise the runs that are done.")
@options.quiet_option
def command(
    plan: Path, out: Path, overrides: tuple[str, ...], draw: int | None, so_far: bool, quiet: bool
) -> None:
    """Train a language model on the rows that each method picks, and read texts that were held out.

    PLAN is a YAML file that names topics, methods ("arms"), draws and budgets, and how the model is trained;
    everything else has a default. All methods choose from the same pool, are given the same tokens and steps,
    and begin where the model is after a warm-up on random rows. Each run is kept in a file: a command that
    was stopped goes on where it was.

    Writes proof.json, proof.html and two figures.

    \b
    Example:
      finescope prove benchmarks/proof/plan.yaml --out proof/
    """
    from finescope.cli.common import read_config
    from finescope.errors import InputError
    from finescope.progress import Reporter, duration
    from finescope.proof.grid import Grid
    from finescope.proof.page import PAGE, write_proof
    from finescope.proof.plan import ProofPlan

    grid = Grid(ProofPlan.from_dict(read_config(plan, overrides)), out, Reporter(quiet=quiet))
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

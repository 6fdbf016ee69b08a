"""``finescope select``: choose again from saved scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options


@click.command("select", short_help="Choose again from saved scores, in seconds.")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.recipe_options
@options.selection_options
@options.label_options
@click.option("--report-rows", type=click.IntRange(0), help="Selected rows shown in the report.")
@click.option("--draws", type=click.IntRange(0), help="Bootstrap resamples behind the intervals.")
@options.quiet_option
def command(run: Path, quiet: bool, **given: Any) -> None:
    """Select rows again in RUN, the --out folder of `finescope curate` or `finescope score`.

    Uses the saved codes and scores; the model is not touched. Limits given here replace those of the run;
    with another preset, weighting or scorer the rows are scored again first, which takes seconds too.
    Rewrites the curated rows, the metrics and the report.

    \b
    Examples:
      finescope select curated/ -k 500
      finescope select curated/ --fraction 0.02 --diversity 0.8
      finescope select curated/ --token-budget 1000000
      finescope select curated/ --preset paper
    """
    from finescope.workflow.progress import Reporter
    from finescope.workflow.run import open_run

    outcome = open_run(run, Reporter(quiet=quiet), changes_of(run, given)).reselect()
    click.echo(f"{len(outcome.selection):,} rows in {outcome.curated}")
    click.echo(f"report: {outcome.folder / 'report.html'}")


def changes_of(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the job's values that the options change; any limit given replaces all limits of the run."""
    changes: dict[str, Any] = {}
    limits = {name: given.pop(name) for name in options.SELECTION_FIELDS}
    limits = {name: value for name, value in limits.items() if value is not None}
    if limits:
        changes["selection"] = limits
    for name, value in given.items():
        if value is not None and value != ():
            changes[name] = list(value) if isinstance(value, tuple) else value
    return changes

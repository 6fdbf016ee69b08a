"""``finescope evaluate``: measure a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import Place, aligned, merge_options


@click.command("evaluate", short_help="Measure a run, against labels and beside every baseline.")
@click.argument("run", type=Place(exists=True, file_okay=False))
@options.label_options
@options.option("draws", default="as in the run")
@options.quiet_option
def command(run: Path | str, quiet: bool, **given: Any) -> None:
    """Measure the selection in RUN, the --out folder of `finescope curate`; write metrics and report anew.

    With --label-column every method (the run's own, the presets, TF-IDF, dense activations, length, random)
    ranks the same rows for the same targets: average precision, precision, recall and lift, with intervals
    over targets. Without labels only similarity, diversity, coverage and length bias can be measured.

    \b
    Example:
      finescope evaluate curated/ --label-column topic --target-label physics
    """
    from finescope.progress import Reporter
    from finescope.workflow.finished import open_run

    outcome = open_run(run, Reporter(quiet=quiet), merge_options({}, given)).reselect()
    of_sets = outcome.metrics.get("sets")
    for name, metrics in {"": outcome.metrics}.items() if of_sets is None else of_sets.items():
        if name:
            click.echo(f"{name}:")
        if "labels" in metrics:
            click.echo(table_of(metrics["labels"]["methods"]))
        else:
            click.echo("no labels: " + ", ".join(metrics["needs_labels"]) + " need --label-column")
    click.echo(f"metrics: {outcome.folder / 'metrics.json'}, report: {outcome.folder / 'report.html'}")


def table_of(methods: list[dict[str, Any]]) -> str:
    """Return the table of methods as aligned text."""
    names = list(methods[0]["metrics"])
    shown = ["average_precision", *(name for name in names if name.startswith(("precision@", "lift@")))]
    lines = [["method", *(name.replace("_", " ") for name in shown)]]
    for method in methods:
        cells = []
        for name in shown:
            value = method["metrics"][name]
            cell = "–" if value["value"] is None else f"{value['value']:.3f}"
            if name == "average_precision" and value["low"] != value["high"]:
                cell += f" [{value['low']:.3f}, {value['high']:.3f}]"
            cells.append(cell)
        lines.append([method["name"], *cells])
    return aligned(lines)

"""``finescope status``: how far a run is, asked from anywhere that sees its folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from finescope.cli.common import SharedFolder


@click.command("status", short_help="How far a run is: shards, rows per second, time left.")
@click.argument("run", type=SharedFolder(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "plain", is_flag=True, help="Print one line of JSON.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Say it again until all is embedded."
)
def command(run: Path, plain: bool, every: float | None) -> None:
    """Say how far the embedding of RUN is: shards that are done, running and failed, and the slowest worker.

    RUN is the --out of `finescope curate`, `plan` or `embed`. Only files are read: ask from any machine that
    sees the folder. Each worker writes every two seconds how far it is.
    """
    from finescope.workflow.status import status

    while True:
        found = status(run)
        click.echo(json.dumps(found.plain()) if plain else "\n".join(found.lines()))
        if every is None or found.shards is None or found.done >= found.shards:
            return
        time.sleep(every)

"""``finescope plan``: what comes before a corpus is shared among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options


@click.command("plan", short_help="Cut a corpus into shards that any machine can embed.")
@options.job_options
@config_options
@click.option("--restart", is_flag=True, help="Throw away what --out holds of a run with other inputs.")
@options.quiet_option
def command(
    config_path: Path | None, overrides: tuple[str, ...], restart: bool, quiet: bool, **given: Any
) -> None:
    """Do what one process must do before others share the rest of `finescope curate`.

    Reads all rows once, trains the autoencoder unless --sae names one, and writes below --out config.yaml
    and plan.parquet: a line for each shard of the corpus, with source, row, byte, rows, characters, expected
    tokens and a hash. Then shares are embedded, on any machines that see the folder by the same name, and
    merged:

    \b
      finescope plan --model MODEL --targets seeds.jsonl --corpus corpus/ --out run/
      sbatch --array=0-63 --wrap 'finescope curate --config run/config.yaml --shard auto'
      finescope status run/
      finescope merge run/

    The files are those of one process with as many threads as each of them. Whatever is killed is started
    again as it was: finished shards stay.
    """
    from finescope.progress import Reporter, counted
    from finescope.workflow.setrun import of_job

    job = options.job_from(config_path, overrides, given)
    options.need_all(job)
    run = of_job(job)(job, Reporter(quiet=quiet), restart=restart)
    plan = run.plan()
    shards, rows = len(plan.shards), sum(shard.rows for shard in plan.shards)
    click.echo(
        f"{counted(shards, 'shard')}, {counted(rows, 'row')}, about {plan.tokens:,} tokens: "
        f"{run.context.folder / 'plan.parquet'}"
    )

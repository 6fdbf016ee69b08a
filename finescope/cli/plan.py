"""``finescope plan``: what comes before a corpus is shared among processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options


@click.command("plan", short_help="Cut a corpus into shards that any machine can embed.")
@options.job_options
@config_options
@click.option("--restart", is_flag=True, help="Throw away what --out holds of a run with other inputs.")
@click.option("--estimate", is_flag=True, help="Say what the run will take, and train nothing.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="That embed, for --estimate."
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="What one of them reads, for --estimate. [default: measured on this machine]",
)
@click.option(
    "--flops",
    type=click.FloatRange(min=0, min_open=True),
    help="Operations a second that one of them sustains, for --estimate, e.g. 2e14.",
)
@click.option("--json", "plain", is_flag=True, help="Print the estimate as one line of JSON.")
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    restart: bool,
    estimate: bool,
    workers: int,
    tokens_per_second: float | None,
    flops: float | None,
    plain: bool,
    quiet: bool,
    **given: Any,
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

    With --estimate it stops after the plan and says what is to come: tokens, operations, device hours, disk
    and network. Latents of a document are counted where there is an autoencoder, else taken at their most.

    \b
      finescope plan --config job.yaml --estimate --workers 64 --flops 2e14

    The files are those of one process with as many threads as each of them. Whatever is killed is started
    again as it was: finished shards stay.
    """
    from finescope.progress import Reporter, counted
    from finescope.workflow.setrun import of_job

    if not estimate and (workers > 1 or tokens_per_second or flops or plain):
        raise click.UsageError("--workers, --tokens-per-second, --flops and --json go with --estimate.")
    if tokens_per_second and flops:
        raise click.UsageError("--tokens-per-second and --flops say the same; give one.")
    job = options.job_from(config_path, overrides, given)
    options.need_all(job)
    run = of_job(job)(job, Reporter(quiet=quiet), restart=restart)
    if estimate:
        found = run.estimate(workers, flops=flops, tokens_per_second=tokens_per_second)
        click.echo(json.dumps(found.plain()) if plain else "\n".join(found.lines()))
        return
    plan = run.plan()
    shards, rows = len(plan.shards), sum(shard.rows for shard in plan.shards)
    click.echo(
        f"{counted(shards, 'shard')}, {counted(rows, 'row')}, about {plan.tokens:,} tokens: "
        f"{run.context.folder / 'plan.parquet'}"
    )

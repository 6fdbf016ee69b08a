"""``finescope curate``: the main job in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options, refuse_several


@click.command("curate", short_help="The whole job: model, SAE, codes, scores, selection, report.")
@options.job_options
@config_options
@click.option("--restart", is_flag=True, help="Throw away what --out holds of a run with other inputs.")
@options.engine_options
@click.option(
    "--shard",
    metavar="I/N|auto",
    help="Embed this share of a corpus that `finescope plan` has planned, and no more: the I-th of N, or "
    "what SLURM_ARRAY_TASK_ID, RANK or SLURM_PROCID say. Then run `finescope merge`.",
)
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    restart: bool,
    shard: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Pick the rows of a corpus that belong to the domain of the targets.

    Reads the activations of one layer of a model, trains a sparse autoencoder on them (unless --sae names
    one), embeds corpus and targets, scores, selects, measures, and writes everything below --out:

    \b
      curated.*           the selected rows, best first, as they came plus finescope_* columns
      scores.parquet      score, nearest target and tokens of every row
      selection.parquet   rank of every row, and why the others were left out
      report.html         one page to read and to send around; plots/ as PNG
      config.yaml         all settings, for --config
      metrics.json, manifest.json, sae/, codes/, activations/

    A run that was stopped goes on where it was: give the same command again. Choosing again from the same
    scores takes seconds: see `finescope select`.

    \b
    Examples:
      finescope curate --model MODEL --layer layers.10 --targets seeds.jsonl \\
          --corpus corpus.parquet --out curated/
      finescope curate ... -k 5000 --near-duplicate 0.98       without copies
      finescope curate ... --token-budget 20000000             as many rows as fit
      finescope curate ... --label-column topic                evaluated against labels
      finescope curate ... --label-column topic --quota a=2 --quota b=1 -k 900
      finescope curate ... --targets physics=seeds1.jsonl --targets law=seeds2.jsonl --exclusive
      finescope curate --config job.yaml --set training.num_epochs=2
      finescope curate ... --workers 8                         eight processes
      finescope curate --config out/config.yaml --shard auto   a task of an array: see `finescope plan`

    With several target sets the model, the SAE and the codes of the corpus are made once. Each set has a
    folder below sets/, which every other command takes as it takes --out; report.html has a line for each.

    A row needs a `text` column, `messages`, or a pair such as `prompt` and `completion`; --text-column and
    --text-template read others. `id` is made up where it is missing. Rows with the text of a target are never
    selected.
    """
    from finescope.progress import Reporter, counted, duration
    from finescope.workflow.setrun import of_job
    from finescope.workflow.share import Share

    refuse_several("curate" if shard is None else "curate --shard")
    asked = {name: given.pop(name) for name in options.ENGINE}
    job = options.job_from(config_path, overrides, given)
    options.need_all(job)
    if shard is not None:
        if asked["workers"] > 1 or asked["engine"] or restart:
            raise click.UsageError("--shard is one process' work on a plan: no --workers, no --restart.")
        share = Share.parse(shard)
        made = of_job(job)(job, Reporter(quiet=quiet)).share(share)
        click.echo(f"share {share.number} of {share.count}: {counted(made, 'shard')} embedded; then merge")
        return
    reporter = Reporter(quiet=quiet)
    engine = options.engine_of(job, asked, reporter.say)
    outcome = of_job(job)(job, reporter, restart=restart, engine=engine).curate()
    for line in outcome.lines():
        click.echo(line)
    click.echo(f"report: {outcome.folder / 'report.html'} ({duration(outcome.seconds)})")

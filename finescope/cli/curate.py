"""``finescope curate``: the main job in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options


@click.command("curate", short_help="The whole job: model, SAE, codes, scores, selection, report.")
@options.model_options
@options.group("targets", "corpus", "out", "format")
@options.column_options
@options.chat_options
@options.group("sae_path", "train_tokens")
@options.recipe_options
@options.group("pooling", "top_k_activations", "sinks")
@options.selection_options
@options.label_options
@options.group("report_rows", "draws", "seed")
@config_options
@click.option("--restart", is_flag=True, help="Throw away what --out holds of a run with other inputs.")
@options.workers_option
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    restart: bool,
    workers: int,
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
      finescope curate --config job.yaml --set training.num_epochs=2

    A row needs a `text` column, `messages`, or a pair such as `prompt` and `completion`; --text-column and
    --text-template read others. `id` is made up where it is missing. Rows with the text of a target are never
    selected.
    """
    from finescope.progress import Reporter, duration
    from finescope.workflow.engines.table import Asked, engine_for
    from finescope.workflow.run import Run

    job = options.job_from(config_path, overrides, given)
    options.need(job, "model", "targets", "corpus", *(["label_column"] if job.target_labels else []))
    engine = engine_for(Asked(workers, job.device))
    outcome = Run(job, Reporter(quiet=quiet), restart=restart, engine=engine).curate()
    click.echo(f"{len(outcome.selection):,} rows in {outcome.curated}")
    click.echo(f"report: {outcome.folder / 'report.html'} ({duration(outcome.seconds)})")

"""``finescope curate``: the main job in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options


@click.command("curate", short_help="The whole job: model, SAE, codes, scores, selection, report.")
@options.model_options
@click.option("--targets", metavar="FILE", help="Target rows: 10 to 50 texts of the domain you want.")
@click.option("--corpus", multiple=True, metavar="FILE|DIR", help="Rows to choose from; may be repeated.")
@click.option("--out", metavar="DIR", help="Folder for all results. [default: curated]")
@options.column_options
@click.option(
    "--sae", "sae_path", metavar="DIR", help="Trained SAE (cfg.json, sae.safetensors). [default: train one]"
)
@click.option(
    "--train-tokens",
    type=click.IntRange(1),
    help="Corpus tokens to train the SAE on, at most. [default: 2000000]",
)
@options.recipe_options
@options.pooling_option
@options.keep_option
@options.selection_options
@options.label_options
@click.option(
    "--report-rows", type=click.IntRange(0), help="Selected rows shown in the report. [default: 100]"
)
@click.option(
    "--draws", type=click.IntRange(0), help="Bootstrap resamples behind the intervals. [default: 50]"
)
@click.option("--seed", type=int, help="Seed of everything random. [default: 42]")
@config_options
@click.option("--restart", is_flag=True, help="Throw away what --out holds of a run with other inputs.")
@options.quiet_option
def command(
    config_path: Path | None, overrides: tuple[str, ...], restart: bool, quiet: bool, **given: Any
) -> None:
    """Pick the rows of a corpus that belong to the domain of the targets.

    Reads the activations of one layer of a model, trains a sparse autoencoder on them (unless --sae names
    one), embeds corpus and targets, scores, selects, measures, and writes everything below --out:

    \b
      curated.*           the selected rows, best first, as they came plus finescope_* columns
      scores.parquet      score, nearest target and tokens of every row
      selection.parquet   rank of every row, and why the others were left out
      report.html         one page to read and to send around; plots/ as PNG
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

    A row needs a `text` column (or `messages`); `id` is made up where it is missing. Targets that occur in
    the corpus, by id or by text, are never selected.
    """
    from finescope.progress import Reporter, duration
    from finescope.workflow.run import Run

    job = options.job_from(config_path, overrides, given)
    options.need(job, "model", "targets", "corpus")
    outcome = Run(job, Reporter(quiet=quiet), restart=restart).curate()
    click.echo(f"{len(outcome.selection):,} rows in {outcome.curated}")
    click.echo(f"report: {outcome.folder / 'report.html'} ({duration(outcome.seconds)})")

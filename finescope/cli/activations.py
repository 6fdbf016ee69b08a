"""``finescope activations``: the first stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options

OUT = "activations"


@click.command("activations", short_help="Read a model's activations at one layer into files.")
@options.model_options
@options.option("corpus", help="Rows to read")
@options.option("out", help="Folder of the activation store", default=OUT)
@options.column_options
@options.chat_options
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Stop at so many tokens, from a random sample of rows."
)
@options.option("seed", help="Seed of the sample")
@config_options
@click.option("--restart", is_flag=True, help="Overwrite what --out holds of other inputs.")
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    max_tokens: int | None,
    restart: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Run a model up to one layer and keep that layer's output for every token.

    The store is a folder of memory-mapped shards for `finescope train`. Special tokens are left out. A run
    that was stopped goes on at its last finished shard. At width 4096, a million tokens take 8 GB.

    \b
    Example:
      finescope activations --model MODEL --layer layers.10 --corpus corpus.jsonl \\
          --max-tokens 2000000 --out activations/
    """
    from finescope.progress import Reporter
    from finescope.workflow.context import open_job_corpus
    from finescope.workflow.opening import open_tap
    from finescope.workflow.sending import sending
    from finescope.workflow.stages.activations import collect_activations

    job = options.job_from(config_path, overrides, given | {"out": given["out"] or OUT})
    options.need(job, "model", "corpus")
    corpus = open_job_corpus(job)
    reporter = Reporter(quiet=quiet)
    corpus.scan()
    with sending(job.out, reporter):
        store = collect_activations(
            open_tap(job, reporter),
            corpus,
            job.folder,
            dtype=job.activation_dtype,
            max_tokens=max_tokens,
            seed=job.seed,
            reporter=reporter,
            overwrite=restart,
        )
    click.echo(f"{store.num_tokens:,} tokens of width {store.width} from {len(store):,} rows in {job.out}")

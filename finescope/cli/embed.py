"""``finescope embed``: document codes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import config_options

OUT = "codes"


@click.command("embed", short_help="Turn texts into sparse document codes.")
@options.model_options
@options.option("sae_path", default="")
@options.option("corpus", help="Rows to embed")
@options.option("out", help="Folder of the codes", default=OUT)
@options.column_options
@options.chat_options
@options.option("max_bad_rows")
@options.group("pooling", "top_k_activations", "sinks")
@config_options
@click.option("--restart", is_flag=True, help="Overwrite what --out holds of other inputs.")
@options.engine_options
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    restart: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Run model and SAE over a corpus, pool each document's token codes, and keep the strongest latents.

    Do this once for the corpus and once for the targets; `finescope score` compares the two. Codes take a few
    hundred bytes per document. Codes pooled by sqrt_mean (the default) serve mean too, and the other way
    round. All other settings must be the same for both.

    \b
    Examples:
      finescope embed --model MODEL --layer layers.10 --sae sae/ --corpus corpus.parquet --out codes/
      finescope embed --model MODEL --layer layers.10 --sae sae/ --corpus seeds.jsonl --out seed-codes/
    """
    from finescope.corpus.plan import plan
    from finescope.progress import Reporter
    from finescope.workflow.opening import find_sae, open_given, place_of_sae
    from finescope.workflow.rows import open_job_corpus
    from finescope.workflow.sending import sending
    from finescope.workflow.stages.embed import Embedding, EmbedWork, Rows, embed
    from finescope.workflow.stages.sinks import norm_limit

    asked = {name: given.pop(name) for name in options.ENGINE}
    job = options.job_from(config_path, overrides, given | {"out": given["out"] or OUT})
    options.need(job, "model", "sae_path", "corpus")
    find_sae(str(job.sae_path), job.layer or None)  # before the model: the name may be wrong
    corpus = open_job_corpus(job)
    rows = Rows(corpus, shards=plan(corpus))
    reporter = Reporter(quiet=quiet)
    opened = open_given(job, reporter)
    tap = opened.tap.setting_aside(job.max_bad_rows)
    place = place_of_sae(job, lambda: opened.tap.layer)
    with sending(job.out, reporter):
        store = embed(
            opened.sae,
            tap,
            rows,
            job.folder,
            Embedding(
                job.top_k_activations,
                job.recipe().pooling,
                job.activation_dtype,
                None if job.sinks == "keep" else norm_limit(place, tap, corpus, reporter),
            ),
            reporter=reporter,
            engine=options.engine_of(job, asked, reporter.say),
            work=lambda embedder: EmbedWork(job, "corpus", embedder.order, None, embedder),
            overwrite=restart,
        )
    click.echo(f"{len(store):,} codes over {store.num_latents:,} latents in {job.out}")

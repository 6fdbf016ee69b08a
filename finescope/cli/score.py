"""``finescope score``: scores alone, from saved codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import Fetched, config_options


@click.command("score", short_help="Compare saved codes of a corpus with those of targets.")
@click.argument("corpus_codes", type=Fetched(file_okay=False))
@click.argument("target_codes", type=Fetched(file_okay=False))
@click.option(
    "--out", default="scores.parquet", show_default=True, metavar="FILE|URL", help="Table to write."
)
@options.recipe_options
@config_options
@options.quiet_option
def command(
    corpus_codes: Path,
    target_codes: Path,
    out: str,
    config_path: Path | None,
    overrides: tuple[str, ...],
    quiet: bool,
    **given: Any,
) -> None:
    """Score every row of CORPUS_CODES against TARGET_CODES, both written by `finescope embed`.

    The table has one line per row, in the order of the corpus: score, nearest target and its cosine, tokens.
    Rows that have the text of a target are marked, whatever their id, so that `finescope select` leaves them
    out; an id counts where one of the two has no text, unless it was made up.

    \b
    Examples:
      finescope score codes/ seed-codes/ --out scores.parquet
      finescope score codes/ seed-codes/ --preset paper
      finescope score codes/ seed-codes/ --weights idf --scorer top_m_mean --top-m 5
    """
    from finescope.curation.scoring.fitted import Scoring
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.workflow.stages.score import score_stores
    from finescope.workflow.tables import about_targets, evidence_of, write_scores

    job = options.job_from(config_path, overrides, given)
    corpus, targets = CodeStore(corpus_codes), CodeStore(target_codes)
    scoring = Scoring(evidence_of(corpus), evidence_of(targets), job.recipe(), seed=job.seed)
    scored = score_stores(corpus, targets, scoring)
    write_scores(out, scored)
    for words in about_targets(scored.targets_in_corpus):
        Reporter(quiet=quiet).say(words)
    click.echo(f"{len(scored.table):,} scores ({job.recipe().name}) in {out}")

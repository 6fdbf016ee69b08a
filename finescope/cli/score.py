"""``finescope score``: scores alone, from saved codes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import Fetched, config_options

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<place>.+)")


class TargetCodes(Fetched):
    """DIR, or NAME=DIR for a target set among several."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, "" where there is none, and the ``Path``."""
        if isinstance(value, tuple):
            return value
        match = None if Path(value).exists() else _NAMED.fullmatch(value)
        if match is None:
            return "", super().convert(value, param, ctx)
        return match["name"], super().convert(match["place"], param, ctx)


@click.command("score", short_help="Compare saved codes of a corpus with those of targets.")
@click.argument("corpus_codes", type=Fetched(file_okay=False))
@click.argument(
    "target_codes",
    type=TargetCodes(file_okay=False),
    nargs=-1,
    required=True,
    metavar="[NAME=]TARGET_CODES...",
)
@click.option(
    "--out",
    metavar="FILE|URL|DIR",
    help="Table to write; of several sets a folder. [default: scores.parquet; scores]",
)
@options.recipe_options
@config_options
@options.quiet_option
def command(
    corpus_codes: Path,
    target_codes: Sequence[tuple[str, Path]],
    out: str | None,
    config_path: Path | None,
    overrides: tuple[str, ...],
    quiet: bool,
    **given: Any,
) -> None:
    """Score every row of CORPUS_CODES against TARGET_CODES, both written by `finescope embed`.

    The table has one line per row, in the order of the corpus: score, nearest target and its cosine, tokens.
    Rows that have the text of a target are marked, whatever their id, so that `finescope select` leaves them
    out; an id counts where one of the two has no text, unless it was made up.

    Several target sets, as NAME=DIR, are scored in the same passes over the corpus; --out is a folder then,
    with a table for each, and `finescope select` chooses for all of them, or mixes them.

    \b
    Examples:
      finescope score codes/ seed-codes/ --out scores.parquet
      finescope score codes/ seed-codes/ --preset paper
      finescope score codes/ seed-codes/ --weights idf --scorer top_m_mean --top-m 5
      finescope score codes/ physics=seeds1-codes/ law=seeds2-codes/ --out scores/
    """
    from finescope.curation.scoring.fitted import Scoring
    from finescope.embeddings.store import CodeStore
    from finescope.progress import Reporter
    from finescope.workflow.sets import score_sets, write_sets
    from finescope.workflow.stages.score import score_stores
    from finescope.workflow.tables import about_targets, evidence_of, write_scores

    job, reporter = options.job_from(config_path, overrides, given), Reporter(quiet=quiet)
    corpus = CodeStore(corpus_codes)
    if len(target_codes) == 1 and not target_codes[0][0]:
        targets = CodeStore(target_codes[0][1])
        scoring = Scoring(evidence_of(corpus), evidence_of(targets), job.recipe(), seed=job.seed)
        scored = score_stores(corpus, targets, scoring)
        if scoring.remark:
            reporter.say(scoring.remark)
        write_scores(out or "scores.parquet", scored)
        for words in about_targets(scored.targets_in_corpus):
            reporter.say(words)
        click.echo(f"{len(scored):,} scores ({job.recipe().name}) in {out or 'scores.parquet'}")
        return
    sets = _named(target_codes)
    folder = _folder(out)
    of_sets = score_sets(
        corpus, {name: CodeStore(place) for name, place in sets.items()}, job.recipe(), seed=job.seed
    )
    write_sets(folder, of_sets)
    for name, scored in of_sets.items():
        if "remark" in scored.settings:
            reporter.say(f"{name}: {scored.settings['remark']}")
        for words in about_targets(scored.targets_in_corpus):
            reporter.say(f"{name}: {words}")
    click.echo(f"{len(corpus):,} scores for each of {len(sets)} sets ({job.recipe().name}) in {folder}")


def _named(target_codes: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    for at, (name, place) in enumerate(target_codes):
        if not name:
            raise click.UsageError(f"Several target sets need names: write NAME={place}.")
        if name in dict(target_codes[:at]):
            raise click.UsageError(f"Two target sets are called {name}.")
    return dict(target_codes)


def _folder(out: str | None) -> Path:
    from finescope.storage.remote import is_url

    if out is not None and (is_url(out) or out.endswith(".parquet")):
        raise click.UsageError(f"Scores of several sets go into a folder on this machine, not into {out}.")
    return Path(out or "scores")

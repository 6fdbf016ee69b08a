"""``finescope select``: choose again from saved scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import Fetched, Place, merge_options
from finescope.workflow.layout import MANIFEST, SETS

OF_TABLES = ("corpus", "out", "codes", "target_codes", "text_column", "text_template", "id_column", "limit")
OF_RUNS = (
    "format",
    "preset",
    "weights",
    "scorer",
    "top_m",
    "label_column",
    "target_labels",
    "report_rows",
    "draws",
)


@click.command("select", short_help="Choose rows from saved scores, again and again, in seconds.")
@click.argument("source", type=Place(exists=True))
@options.selection_options
@options.recipe_options
@options.label_options
@options.option("report_rows", default="as in the run")
@options.option("draws", default="as in the run")
@options.option("format", default="as in the run")
@options.option("corpus", help="With a table of scores: the corpus scored")
@click.option("--out", metavar="FILE|URL", help="With a table: file to write.")
@click.option("--codes", type=Fetched(file_okay=False), metavar="DIR", help="With a table: corpus codes.")
@click.option(
    "--target-codes",
    type=Fetched(file_okay=False),
    metavar="DIR",
    help="With a table: target codes.",
)
@options.exclusive_option
@options.option(
    "shares",
    help="With several target sets: this set's share of -k or --token-budget, one for each set; writes a "
    "mixture, too",
)
@options.column_options
@options.quiet_option
def command(source: Path | str, quiet: bool, **given: Any) -> None:
    """Select rows again from SOURCE: the --out folder of `finescope curate`, or what `finescope score` wrote.

    Uses saved codes and scores; the model is not touched. In a folder, limits given here replace those of the
    run; with another preset, weighting or scorer the rows are scored again first, which takes seconds too.
    Rewrites the curated rows, the metrics and the report.

    With a table of scores, --corpus and --out say where the rows are and where the selected ones go. The
    strategies other than rank, --near-duplicate and --diversity need the codes too.

    With the folder of several target sets, --out is a folder with a file of rows for each. The limits are
    those of every set, or with --share those of all of them together. A run with several target sets is
    selected from anew for all of them; the folder of one of its sets, for that one.

    \b
    Examples:
      finescope select curated/ -k 500
      finescope select curated/ --fraction 0.02 --diversity 0.8
      finescope select curated/ --token-budget 1000000
      finescope select curated/ --preset paper
      finescope select scores.parquet --corpus corpus.jsonl -k 500 --out picked.jsonl
      finescope select scores/ --corpus corpus.jsonl -k 900 --share physics=2 --share law=1 --out picked/
    """
    from finescope.progress import Reporter

    reporter = Reporter(quiet=quiet)
    several = isinstance(source, Path) and (source / SETS).is_file()
    if is_run(source) and not (several and isinstance(source, Path) and not (source / MANIFEST).is_file()):
        _refuse(given, OF_TABLES, "a table of scores, not with a folder")
        from finescope.workflow.finished import open_run

        outcome = open_run(source, reporter, merge_options({}, options.dotted_names(given))).reselect()
        for line in outcome.lines():
            click.echo(line)
        click.echo(f"report: {outcome.folder / 'report.html'}")
        return
    if given.get("quotas"):
        raise click.UsageError("--quota goes with the folder of a run, whose rows have labels.")
    if isinstance(source, Path) and several:
        kind = given.pop("format")
        _refuse(given, (*OF_RUNS[1:], "target_codes"), "a run, not with the folder of several target sets")
        if not given["corpus"] or not given["out"]:
            raise click.UsageError("Several target sets need --corpus and --out.")
        exclusive, shares = bool(given.pop("exclusive")), given.pop("shares")
        _from_sets(source, reporter, exclusive, _shares(shares), kind, given)
        return
    if given.pop("exclusive") or given.pop("shares"):
        raise click.UsageError("--exclusive and --share go with the folder of several target sets.")
    given.pop("shares", None)
    _refuse(given, OF_RUNS, "a folder of a run, not with a table of scores")
    if not given["corpus"] or not given["out"]:
        raise click.UsageError("A table of scores needs --corpus and --out.")
    _from_table(source, reporter, given)


def is_run(source: Path | str) -> bool:
    """Whether a source is a folder, and not a table of scores."""
    return source.is_dir() if isinstance(source, Path) else not source.lower().endswith(".parquet")


def _from_table(source: Path | str, reporter: Any, given: dict[str, Any]) -> None:
    from finescope.curation.scoring.evidence import pooled_targets
    from finescope.embeddings.store import CodeStore
    from finescope.workflow.rows import open_job_corpus
    from finescope.workflow.stages.select import select_rows
    from finescope.workflow.tables import corpus_as_scored, evidence_of, read_scores, write_curated

    out, codes, target_codes = given.pop("out"), given.pop("codes"), given.pop("target_codes")
    job = options.job_from(None, (), given)
    limits = job.selection_config()
    if limits.strategy != "rank" and (codes is None or target_codes is None):
        raise click.UsageError(f"--strategy {limits.strategy} needs --codes and --target-codes.")
    if limits.look_at_codes and codes is None:
        raise click.UsageError("--near-duplicate and --diversity need --codes.")
    scored = read_scores(source)
    selection = select_rows(
        scored,
        limits,
        None if codes is None else corpus_as_scored(CodeStore(codes), scored.recipe),
        None if target_codes is None else pooled_targets(evidence_of(CodeStore(target_codes)), scored.recipe),
    )
    corpus = open_job_corpus(job)
    count = write_curated(out, corpus, scored, selection.indices)
    dropped = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in selection.counts.items() if n)
    reporter.say(dropped)
    click.echo(f"{count:,} rows in {out}")


def _from_sets(
    source: Path,
    reporter: Any,
    exclusive: bool,
    shares: dict[str, float] | None,
    kind: str | None,
    given: dict[str, Any],
) -> None:
    from finescope.embeddings.store import CodeStore
    from finescope.storage.remote import is_url
    from finescope.workflow.rows import open_job_corpus
    from finescope.workflow.sets import read_sets, select_each, write_set_rows
    from finescope.workflow.tables import corpus_as_scored

    if is_url(given["out"]):
        raise click.UsageError("--out of several target sets is a folder of this machine, not a URL.")
    out, codes = Path(given.pop("out")), given.pop("codes")
    job = options.job_from(None, (), given)
    limits = job.selection_config()
    if limits.strategy != "rank":
        raise click.UsageError(f"--strategy {limits.strategy} goes with the table of a single target set.")
    if limits.look_at_codes and codes is None:
        raise click.UsageError("--near-duplicate and --diversity need --codes.")
    scored = read_sets(source)
    recipe = next(iter(scored.values())).recipe
    selections = select_each(
        scored,
        limits,
        exclusive=exclusive,
        shares=shares,
        scorer=None if codes is None else corpus_as_scored(CodeStore(codes), recipe),
    )
    corpus = open_job_corpus(job)
    ending = corpus.suffix if kind is None else f".{kind}"
    files = write_set_rows(out, ending, corpus, scored, selections, mixed=shares is not None)
    for name, selection in selections.items():
        dropped = ", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in selection.counts.items() if n)
        reporter.say(f"{name}: {dropped}")
    counts = ", ".join(f"{len(selection):,} rows for {name}" for name, selection in selections.items())
    click.echo(f"{counts} in {out if shares is None else files[-1]}")


def _shares(given: Sequence[str]) -> dict[str, float] | None:
    from finescope.curation.shares import parse_shares

    try:
        return parse_shares(given) or None
    except ValueError as error:
        raise click.UsageError(f"--share: {error}.") from None


def _refuse(given: dict[str, Any], names: Sequence[str], of: str) -> None:
    """Take out the options of the other kind of source, none of which may have been given."""
    for name in names:
        if given.pop(name) not in (None, ()):
            raise click.UsageError(f"{options.flag_of(name)} goes with {of}.")

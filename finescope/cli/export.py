"""``finescope export``: a run's scores and codes for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from finescope.cli import options
from finescope.cli.common import Fetched

FORMATS = ("scores", "cossim", "atlas")


@click.command("export", short_help="Scores, cosines or a table of all rows, for other tools.")
@click.argument("run", type=Fetched(file_okay=False))
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="File to write.",
)
@options.quiet_option
def command(run: Path, kind: str, out: Path, quiet: bool) -> None:
    """Write what RUN, the --out folder of `finescope curate`, knows of every row of its corpus.

    scores is a .npy with one float64 a row, in the order of the corpus, -inf for rows that are never to be
    selected; benchmarks of data attribution such as DATE-LM rank by it. cossim is a .npy, float32 [targets,
    rows], of cosines between codes, as targeted-instruction-selection reads it. atlas is a Parquet table for
    embedding-atlas: texts, scores, what became of each row, its strongest latents, and vectors where the run
    keeps activations.

    \b
    Examples:
      finescope export curated/ --format scores --out scores.npy
      finescope export curated/ --format cossim --out mmlu_cossim.npy
      finescope export curated/ --format atlas --out atlas.parquet
      embedding-atlas atlas.parquet --text text --vector vector --features latents
    """
    from finescope.progress import Reporter
    from finescope.workflow.export import export_atlas, export_cosines, export_scores
    from finescope.workflow.finished import open_run

    context = open_run(run, Reporter(quiet=quiet)).context
    if kind == "scores":
        click.echo(f"{export_scores(context, out):,} scores in {out}")
    elif kind == "cossim":
        targets, rows = export_cosines(context, out)
        click.echo(f"cosines of {targets:,} targets with {rows:,} rows in {out}")
    else:
        click.echo(f"{export_atlas(context, out):,} rows in {out}")

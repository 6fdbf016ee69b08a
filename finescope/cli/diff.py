"""``finescope diff``: which latents set one set of rows apart from another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finescope.cli import options
from finescope.cli.common import Fetched

if TYPE_CHECKING:
    from finescope.progress import Reporter
    from finescope.workflow.inspect import Side


@click.command("diff", short_help="Which latents set a selection apart from its corpus, or codes from codes.")
@click.argument("first", type=Fetched(file_okay=False), metavar="A")
@click.argument("second", type=Fetched(file_okay=False), metavar="[B]", required=False)
@click.option("--top", default=15, show_default=True, type=click.IntRange(min=1), help="Latents either way.")
@click.option(
    "--level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Coverage of all intervals together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.quiet_option
def command(first: Path, second: Path | None, top: int, level: float, as_json: bool, quiet: bool) -> None:
    """Compare how often the rows of A and of B hold each latent.

    A and B are --out folders of `finescope curate`, which stand for the rows selected there, or of
    `finescope embed`, which stand for all of their rows; the codes must be those of one SAE. Without B, the
    rows of A are compared with the other rows of its corpus. Listed are the latents whose ratio of
    frequencies differs from 1 for sure: the intervals hold for all latents at once.

    \b
    Examples:
      finescope diff curated/
      finescope diff curated-law/ curated-physics/
      finescope diff codes-2025/ codes-2026/ --json
    """
    import numpy as np

    from finescope.curation.enrichment import sure
    from finescope.progress import Reporter
    from finescope.workflow.inspect import difference, words_of_side

    reporter = Reporter(quiet=quiet)
    side = _side(first, reporter)
    other = _rest(side) if second is None else _side(second, reporter)
    found = difference(side, other, level=level)
    lines: list[dict[str, Any]] = []
    for sign, own in ((1, side), (-1, other)):
        places = sure(found, sign)[:top]
        said = words_of_side(own, [int(found.latents[at]) for at in places])
        for at in places.tolist():
            latent = int(found.latents[at])
            words, examples = said[latent]
            lines.append(
                {
                    "latent": latent,
                    "more_in": "a" if sign > 0 else "b",
                    "rows_a": int(found.first[at]),
                    "rows_b": int(found.second[at]),
                    "ratio": float(found.ratio[at]),
                    "low": float(found.low[at]),
                    "high": float(found.high[at]) if np.isfinite(found.high[at]) else None,
                    "words": words,
                    "examples": examples,
                }
            )
    if as_json:
        import json

        sides = {"a": side.name, "b": other.name, "rows_a": found.rows[0], "rows_b": found.rows[1]}
        click.echo(json.dumps({**sides, "level": level, "latents": lines}, indent=2, ensure_ascii=False))
        return
    click.echo(f"a: {side.name}, {found.rows[0]:,} rows with codes")
    click.echo(f"b: {other.name}, {found.rows[1]:,} rows with codes")
    if not lines:
        click.echo(f"no latent differs for sure at {level:g}")
    for line in lines:
        high = "∞" if line["high"] is None else f"{line['high']:.3g}"
        click.echo(
            f"  latent {line['latent']} is in {line['rows_a']:,} of a, {line['rows_b']:,} of b: "
            f"{line['ratio']:.3g} times as often [{line['low']:.3g}, {high}]"
            + (f": {line['words']}" if line["words"] else f", e.g. {line['examples'][0]}")
        )


def _side(folder: Path, reporter: Reporter) -> Side:
    import numpy as np

    from finescope.embeddings.store import CodeStore
    from finescope.workflow.finished import open_run
    from finescope.workflow.inspect import Side
    from finescope.workflow.layout import CORPUS_CODES, SELECTION, SETS
    from finescope.workflow.tables import read_selection

    if (folder / SETS).is_file():
        raise click.UsageError(f"{folder} holds several target sets: name the folder of one, below sets/.")
    if (folder / SELECTION).is_file():
        context = open_run(folder, reporter).context
        chosen = np.sort(read_selection(folder / SELECTION).indices)
        return Side(f"the rows selected in {folder}", context.store(CORPUS_CODES), chosen, context)
    store = CodeStore(folder)
    return Side(f"the rows of {folder}", store, np.arange(len(store)), None)


def _rest(side: Side) -> Side:
    import dataclasses

    import numpy as np

    if side.context is None:
        raise click.UsageError("A folder of codes needs something to be compared with: give B.")
    others = np.setdiff1d(np.arange(len(side.codes)), side.rows)
    return dataclasses.replace(side, name="the other rows of its corpus", rows=others)

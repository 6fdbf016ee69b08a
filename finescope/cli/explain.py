"""``finescope explain``: why a row has the score it has."""

from __future__ import annotations

from pathlib import Path

import click

from finescope.cli import options
from finescope.cli.common import Fetched

TEXT = 300
"""Characters of a text that are printed."""


@click.command("explain", short_help="Why a row was chosen, or wasn't.")
@click.argument("run", type=Fetched(file_okay=False))
@click.argument("rows", nargs=-1, required=True, metavar="ROW...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole texts.")
@options.quiet_option
def command(run: Path, rows: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Take the scores of rows apart; RUN is the --out folder of `finescope curate`.

    ROW is an id, or #N for row N of the corpus, counted from 0. Any row can be asked for, chosen or not. The
    parts of a score sum to it, and the latents and words listed under a part, with the sum of the others, to
    that part: exactly, and in the digits shown.

    \b
    Examples:
      finescope explain curated/ doc-1071
      finescope explain curated/ '#0' '#17' --json
    """
    from finescope.progress import Reporter, counted
    from finescope.report.explain import adding_up, remainder
    from finescope.workflow.finished import open_run
    from finescope.workflow.inspect import why

    found = why(open_run(run, Reporter(quiet=quiet)).context, rows)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=2, ensure_ascii=False))
        return
    for each in found:
        place = "no place, for want of a code" if each.place is None else f"place {each.place:,} by score"
        became = f"chosen as number {each.rank:,}" if each.rank else each.reason.replace("_", " ")
        click.echo(f"{each.id} (row {each.row}): score {each.score:.4f}, {place}; {became}")
        if each.nearest is not None:
            click.echo(f"  nearest target {each.nearest}, cosine {each.similarity:.3f}")
        *parts, constant = adding_up([*each.parts.values(), each.constant])
        listed = {
            "codes": [
                (part, f"latent {latent}{f': {words}' if words else ''}")
                for latent, part, words in each.latents
            ],
            "words": [(part, f"word {word}") for word, part in each.words],
        }
        for space, part in zip(each.parts, parts, strict=True):
            click.echo(f"  {part:+.4f} from {space}")
            lines = listed.get(space, [])
            for addend, name in lines:
                click.echo(f"    {addend:+.4f} {name}")
            count, _ = each.others[space]
            if lines and count:
                rest = remainder(part, [addend for addend, _ in lines])
                click.echo(f"    {rest:+.4f} sum of {counted(count, 'other')}")
        if constant:
            click.echo(f"  {constant:+.4f} from what no space accounts for")
        click.echo(f"  = {each.score:.4f}")
        click.echo(f"  {' '.join(each.text[:TEXT].split())}{' …' if len(each.text) > TEXT else ''}")

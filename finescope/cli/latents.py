"""``finescope latents``: what latents of a run stand for."""

from __future__ import annotations

from pathlib import Path

import click

from finescope.cli import options
from finescope.cli.common import Fetched

TEXT = 120
"""Characters of an example that are printed."""


@click.command("latents", short_help="What latents stand for: rows, words, tokens, frequency.")
@click.argument("run", type=Fetched(file_okay=False))
@click.argument("latents", nargs=-1, type=click.IntRange(min=0), metavar="[LATENT...]")
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=1), help="How many, where none is named."
)
@click.option("--examples", default=3, show_default=True, type=click.IntRange(0, 12), help="Rows of each.")
@click.option("--tokens", default=5, show_default=True, type=click.IntRange(0, 100), help="Tokens of each.")
@click.option(
    "--run-model",
    is_flag=True,
    help="Let the model read the rows again whose activations aren't stored, for their tokens.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole texts.")
@options.quiet_option
def command(
    run: Path,
    latents: tuple[int, ...],
    top: int,
    examples: int,
    tokens: int,
    run_model: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show latents of RUN, the --out folder of `finescope curate`: those named, or those that chose its rows.

    Of each: words that are typical for the rows in which it is strongest, how many rows hold it, those rows,
    the tokens at which it is strongest in twelve of them, and the latents whose decoder directions are
    nearest. Words are a hint, not a proof. Tokens are those of the activations that the autoencoder was
    trained on; without --run-model, no model is loaded.

    \b
    Examples:
      finescope latents curated/
      finescope latents curated/ 417 2210 --examples 5
      finescope latents curated/ 417 --tokens 20 --run-model
    """
    from finescope.progress import Reporter
    from finescope.workflow.finished import open_run
    from finescope.workflow.inspect import look_at, strongest_latents

    context = open_run(run, Reporter(quiet=quiet)).context
    wanted = list(dict.fromkeys(latents)) or strongest_latents(context, top)
    found = look_at(context, wanted, examples, tokens, run_model=run_model)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=2, ensure_ascii=False))
        return
    for each in found:
        click.echo(f"latent {each.latent}: {each.words or 'no typical words'}")
        click.echo(f"  in {each.rows:,} rows ({each.share:.2%}), {each.selected:,} of them selected")
        for name, text, share in each.examples:
            click.echo(f"  {share:.2f} {name}: {' '.join(text[:TEXT].split())}")
        for seen in each.tokens:
            around = " ".join(f"{seen.before}›{seen.token}‹{seen.after}".split())
            click.echo(f"  at {seen.value:.3g} {seen.id}: {around}")
        if each.neighbours:
            near = ", ".join(f"{latent} ({cosine:.2f})" for latent, cosine in each.neighbours)
            click.echo(f"  nearest: {near}")

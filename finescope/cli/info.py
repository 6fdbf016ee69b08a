"""``finescope info``: what is installed and in use."""

from __future__ import annotations

import click


@click.command("info", short_help="What is installed and in use, and how to get the rest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Print versions, native operations and their instruction set, threads, CUDA, and optional packages.

    For everything missing the reason and the remedy are given. Include this in bug reports.
    """
    from finescope.diagnostics import collect, render

    state = collect()
    if as_json:
        import json

        click.echo(json.dumps(state, indent=2, default=str))
    else:
        click.echo(render(state))

"""The ``finescope`` command. Sub-commands live in one file each and are imported when they are called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from finescope import __version__
from finescope.cli.common import ErrorPrinter, refuse_several
from finescope.cli.memory import give_back_large_blocks

COMMANDS = (
    "demo", "activations", "train", "embed", "score", "select", "curate", "plan", "merge", "status",
    "evaluate", "explain", "latents", "diff", "export", "sae", "prove", "info",
)  # fmt: skip
"""Sub-commands in the order of a run."""


class LazyGroup(ErrorPrinter):
    """A group that imports a sub-command only when it is called: ``finescope --help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a run."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a sub-command."""
        if cmd_name not in COMMANDS:
            return None
        command: Any = importlib.import_module(f"finescope.cli.{cmd_name}").command
        return command if isinstance(command, click.Command) else None


@click.group(
    "finescope",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="finescope")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Pick the rows of a large corpus that belong to the domain of a few target rows.

    A language model reads the texts, a sparse autoencoder turns its activations into sparse codes, and the
    codes of the corpus are compared with those of the targets.

    \b
    The whole job in one line:
      finescope curate --model MODEL --layer layers.10 --targets seeds.jsonl \\
          --corpus corpus.parquet --out curated/

    \b
    First look, no data needed:
      finescope demo              synthetic activations, one minute
      finescope demo --text       real text and a real model, some minutes

    \b
    Step by step: activations → train → embed → score → select → evaluate
    Exit codes: 0 success, 1 data or run-time error, 2 wrong usage, 130 interrupted.
    """
    if ctx.invoked_subcommand != "curate":  # which asks by itself: it may be for a share
        refuse_several(ctx.invoked_subcommand)
    give_back_large_blocks()

"""``finescope sae``: what autoencoders of any library are, and files of one library made of another's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finescope.cli.common import read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

_FACTS = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="sae_facts.NAME=VALUE",
    help="Say what the files leave out, e.g. --set sae_facts.k=50. May be repeated.",
)
_SOURCE_FORMAT = "Format of the files.  [default: recognised]"


@click.group("sae", short_help="Describe and convert autoencoders of other libraries.")
def command() -> None:
    """Look at trained sparse autoencoders, and convert them.

    PATH is a folder or a file in any format that is known, or the name of a repository on the Hugging Face
    hub; PATH#HOOKPOINT names one of several.
    """


@command.command("info", short_help="What an autoencoder is, and what its files leave out.")
@click.argument("path", metavar="PATH[#HOOKPOINT]")
@click.option("--from", "source", default="auto", help=_SOURCE_FORMAT)
@_FACTS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: str, source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print architecture, sizes, model and hookpoint, what happens to activations, and what must be given.

    Where PATH holds several autoencoders, their names are printed.

    \b
    Examples:
      finescope sae info sae/
      finescope sae info google/gemma-scope-2b-pt-res#layer_20/width_16k/average_l0_71
    """
    import json

    from finescope.sae.formats import known
    from finescope.sae.formats.described import describe

    try:
        found = describe(*known.look(path, format=source, facts=_facts(overrides)))
    except known.SeveralError as error:
        found = {"several": list(error.names)}
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, value in found.items():
        values = [value] if not isinstance(value, (list, dict)) else list(_each(value))
        for number, text in enumerate(values):
            click.echo(f"{name if number == 0 else '':26}{_shown(text)}")


@command.command("convert", short_help="Write an autoencoder in another library's files.")
@click.argument("source", metavar="SRC[#HOOKPOINT]")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--format", "format", required=True, metavar="NAME", help="Format to write.")
@click.option("--from", "source_format", default="auto", help=_SOURCE_FORMAT)
@_FACTS
def convert(source: str, target: Path, format: str, source_format: str, overrides: tuple[str, ...]) -> None:
    """Read an autoencoder in any known format and write it as sparsify, SAELens or dictionary_learning.

    That library then makes the same codes and reconstructions of the same activations: scales and centres are
    put into the weights. What its format can't hold is refused. DST is a new folder.

    \b
    Examples:
      finescope sae convert sae/ for-saelens/ --format saelens
      finescope sae convert Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50#layer12.sae.pt qwen-12/ --format sparsify
    """
    from finescope.sae.formats import known

    checkpoint = known.read(source, format=source_format, facts=_facts(overrides))
    known.convert(checkpoint, format, target)
    click.echo(f"{checkpoint.architecture} of {checkpoint.origin.format}, as {format} in {target}")


def _facts(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the facts that ``--set sae_facts.NAME=VALUE`` gives.

    Raises:
        click.UsageError: it sets something else, or to what it can't be.
    """
    from finescope.config import SaeFacts

    config = read_config(None, overrides)
    facts = config.pop("sae_facts", {})
    if config or not isinstance(facts, dict):
        raise click.UsageError("only sae_facts can be set here: --set sae_facts.NAME=VALUE.")
    try:
        return SaeFacts.from_dict(facts).to_dict()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _each(value: list[Any] | dict[str, Any]) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(v) for v in value.values()]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

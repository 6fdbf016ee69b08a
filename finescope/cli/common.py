"""What all sub-commands share: errors as messages and exit codes, configuration, options."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from finescope.device import launched_processes
from finescope.errors import FineScopeError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHARED = ("train", "info", "curate --shard")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class ErrorPrinter(click.Group):
    """A group that reports every failure as one paragraph on standard error.

    Exit codes: 0 success, 1 data or run-time error, 2 wrong usage, 130 interrupted. ``--debug`` lets the
    traceback through.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the sub-command and translate what it raises."""
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (KeyboardInterrupt, click.Abort):
            explain("interrupted", "finished parts are kept; run the same command again to go on from there.")
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            ctx.exit(1)  # the reader of our output went away; there is nobody to tell
        except Exception as error:
            if debug:
                raise
            explain("error", describe(error))
            ctx.exit(1)


class Place(click.Path):
    """A path that exists, or a URL, as ``fsspec`` has them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a ``Path``, or a URL as it is."""
        from finescope.storage.remote import is_url

        if is_url(value):
            return value
        return Path(os.fsdecode(super().convert(value, param, ctx)))


class Fetched(Place):
    """A folder that exists; one behind a URL is brought to this machine first."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the ``Path`` of the folder."""
        from finescope.storage.remote_folder import Remote

        place = super().convert(value, param, ctx)
        if isinstance(place, Path):
            return place
        remote = Remote(place)
        remote.receive()
        return remote.folder


class SharedFolder(click.Path):
    """A folder in which several processes work, which can't be done behind a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the ``Path`` of a folder that exists."""
        from finescope.storage.remote import is_url

        if is_url(value):
            self.fail(
                f"{value} is a URL, which only finished runs are copied to; name the folder that the "
                "processes work in",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


def describe(error: BaseException) -> str:
    """Return one paragraph about an exception, fit for people."""
    if isinstance(error, FineScopeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}."
    if isinstance(error, MemoryError):
        return "out of memory. Use a smaller --batch-tokens, fewer latents, or a smaller --train-tokens."
    text = str(error).strip() or "no further information"
    if isinstance(error, ValueError):
        return text
    return f"unexpected {type(error).__name__}: {text} (run `finescope --debug …` for the traceback)"


def explain(kind: str, message: str) -> None:
    """Print a paragraph to standard error, wrapped on a terminal only so that logs stay searchable."""
    paragraph = f"finescope: {kind}: {' '.join(message.split())}"
    if sys.stderr.isatty():
        width = min(100, shutil.get_terminal_size().columns)
        paragraph = textwrap.fill(paragraph, width=width, break_long_words=False, break_on_hyphens=False)
    click.echo(paragraph, err=True)


def refuse_several(command: str | None) -> None:
    """Refuse to run a command once in each of several processes, which would write to one place.

    Raises:
        click.UsageError: it isn't ``info`` or one that several processes can share.
    """
    size = launched_processes()
    if size > 1 and command not in _SHARED:
        raise click.UsageError(
            f"'finescope {command}' is work for one process, but {size} were started with it (by torchrun:"
            " RANK and WORLD_SIZE are set). Start it by itself; 'finescope train' and 'finescope curate"
            " --shard auto' are what several processes share."
        )


def config_options(command: _Command) -> _Command:
    """Add ``--config`` and ``--set`` to a command."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="A.B=VALUE",
        help="Set one value of the configuration, e.g. --set training.num_epochs=2. May be repeated.",
    )(command)
    return click.option(
        "--config",
        "config_path",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file with any of the command's values; options on the command line win over it.",
    )(command)


def read_config(config_path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the nested configuration of a YAML file with ``a.b=value`` overrides applied.

    Raises:
        click.UsageError: a file that isn't a YAML mapping, or an override without ``=``.
    """
    from finescope.storage.yaml12 import load_yaml

    config: dict[str, Any] = {}
    if config_path is not None:
        try:
            loaded = load_yaml(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise click.UsageError(f"{config_path} is not readable as YAML: {error}") from None
        if not isinstance(loaded, (dict, type(None))):
            raise click.UsageError(f"{config_path} must hold a mapping of names to values at its top level.")
        config = loaded or {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"--set {override!r} is not of the form name=value.")
        try:
            put(config, name.strip(), load_yaml(value))
        except ValueError as error:
            raise click.UsageError(f"--set {override!r}: the value is not YAML: {error}") from None
    return config


def put(config: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``config["a"]["b"]`` for the name ``a.b``, making sections as needed.

    Raises:
        click.UsageError: a section on the way is a plain value.
    """
    *sections, last = dotted.split(".")
    for section in sections:
        inner = config.setdefault(section, {})
        if not isinstance(inner, dict):
            raise click.UsageError(f"{dotted!r}: {section!r} is a value, not a section.")
        config = inner
    config[last] = value


def merge_options(config: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Put every option that was given (is not None and not an empty tuple) over the configuration."""
    for dotted, value in options.items():
        if value is None or value == ():
            continue
        if isinstance(value, Path):
            value = str(value)
        put(config, dotted, list(value) if isinstance(value, tuple) else value)
    return config


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return the lines of a table as text: the first column flush left, the others flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )

"""Every failure is one paragraph on standard error and an exit code; only developers see a traceback."""

from __future__ import annotations

import errno

import click
import pytest
from click.testing import CliRunner

from finescope.cli.common import ErrorPrinter, describe
from finescope.errors import InputError, StoreError


def group(error: BaseException) -> click.Group:
    @click.group(cls=ErrorPrinter)
    @click.option("--debug", is_flag=True)
    def main(debug: bool) -> None:
        pass

    @main.command()
    def fail() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("row 3:\n no text"), 1, "error: row 3: no text"),
        (StoreError("disk is full"), 1, "disk is full"),
        (ValueError("k must be positive"), 1, "k must be positive"),
        (OSError(errno.EACCES, "Permission denied", "/x/y"), 1, "Permission denied (/x/y)"),
        (MemoryError(), 1, "out of memory"),
        (TypeError("oops"), 1, "unexpected TypeError: oops"),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (click.UsageError("bad option"), 2, "bad option"),
    ],
)
def test_exit_codes_and_messages(error: BaseException, code: int, words: str) -> None:
    result = CliRunner().invoke(group(error), ["fail"])
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_debug_shows_where() -> None:
    result = CliRunner().invoke(group(TypeError("oops")), ["--debug", "fail"])
    assert isinstance(result.exception, TypeError)


def test_a_closed_pipe_is_not_worth_a_word() -> None:
    result = CliRunner().invoke(group(BrokenPipeError()), ["fail"])
    assert result.exit_code == 1
    assert result.stderr == ""


def test_describe_without_text() -> None:
    assert "no further information" in describe(RuntimeError())

"""JSON as text: streams of values, and members put into an object without touching the others."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Protocol

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
_BLOCK = 1 << 20
_NEAR_THE_END = 16
"""A value cut off within so many characters may go on in the next block: the longest literal, escape or
mark."""


TOO_DEEP = "nested too deep"
TOO_LONG = "a whole number of more digits than Python reads"


class BrokenJsonError(ValueError):
    """A value in a stream that isn't JSON, or that isn't one of the objects expected.

    Attributes:
        what: what is wrong.
        line: line of the stream, from 1.
        shown: the beginning of the text there.
    """

    def __init__(self, what: str, line: int, shown: str) -> None:
        super().__init__(what)
        self.what, self.line, self.shown = what, line, shown


class _Reader(Protocol):
    def read(self, size: int, /) -> str: ...


class Objects:
    """The objects of an array, or of a sequence without commas, read block by block: (line, text, value)."""

    def __init__(self, file: _Reader) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        array = self._peek() == "["
        if array:
            self._at += 1
        first = True
        while True:
            mark = self._peek()
            if array and not first and mark == ",":
                self._at += 1
                mark = self._peek()
            elif array and not first and mark not in ("]", ""):
                raise self._broken("a comma is missing between two elements")
            if mark == "]" and array:
                self._at += 1
                if self._peek():
                    raise self._broken("something stands after the array's end")
                return
            if not mark:
                if array:
                    raise self._broken("the array has no end; the file is truncated")
                return
            line = self._line
            text, value = self._value()
            if not isinstance(value, dict):
                raise BrokenJsonError(
                    f"an element is a JSON {type(value).__name__}, not an object", line, text
                )
            yield line, text, value
            first = False

    def _peek(self) -> str:
        """Skip white space; return the next character, "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> tuple[str, Any]:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _NEAR_THE_END
                if not (cut and self._more()):
                    raise self._misread(error) from error
            except RecursionError as error:
                raise self._broken(TOO_DEEP) from error
            except ValueError as error:
                raise self._broken(TOO_LONG) from error
            else:
                text = self._text[self._at : end]
                self._line += text.count("\n")
                self._at = end
                return text, value

    def _more(self) -> bool:
        """Read on, by as much as is held already: a large value is then parsed a few times, not many."""
        if self._ended:
            return False
        held = self._text[self._at :]
        block = self._file.read(max(_BLOCK, len(held)))
        self._ended = not block
        self._text, self._at = held + block, 0
        return bool(block)

    def _misread(self, error: json.JSONDecodeError) -> BrokenJsonError:
        at = min(error.pos, len(self._text.rstrip()) - 1)
        line = self._line + self._text.count("\n", self._at, at)
        start = max(self._at, self._text.rfind("\n", 0, at) + 1)
        return BrokenJsonError(error.msg, line, self._text[start : start + 80])

    def _broken(self, what: str) -> BrokenJsonError:
        return BrokenJsonError(what, self._line, self._text[self._at : self._at + 80])


def on_one_line(text: str) -> str:
    """Return JSON text without line breaks: outside strings they say nothing, inside they can't stand."""
    return (
        text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
        if "\n" in text or "\r" in text
        else text
    )


def with_members(text: str, members: Mapping[str, Any]) -> str:
    """Return an object's text with members appended; those of the same names are left out, all else stays.

    Args:
        text: one JSON object.
        members: names and plain values.
    """
    text = text.strip()
    if "\\u" in text or any(_quoted(name) in text for name in members):
        text = _without(text, members)
    inner = text[1:-1].rstrip()
    added = json.dumps(dict(members), ensure_ascii=False)[1:-1]
    return f"{{{inner}{', ' if inner and added else ''}{added}}}"


@functools.lru_cache
def _quoted(name: str) -> str:
    return json.dumps(name)


def _without(text: str, names: Mapping[str, Any]) -> str:
    """Return an object's text without its members of some names."""
    kept: list[str] = []
    left_out = False
    at = _skip(text, 1)
    while text[at] != "}":
        name, colon = scanstring(text, at + 1)
        _, end = _DECODER.raw_decode(text, _skip(text, _skip(text, colon) + 1))
        if name in names:
            left_out = True
        else:
            kept.append(text[at:end])
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return f"{{{', '.join(kept)}}}" if left_out else text


def _skip(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at

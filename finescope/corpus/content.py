"""Which of a row's columns say what the model reads: chosen row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from finescope.corpus.chat import conversation_in_text, is_conversation, parse_conversation, parse_tools
from finescope.corpus.dotted import cell, held, prefixes
from finescope.corpus.row import Message, body, describe, transcript
from finescope.errors import InputError, nearest_names

TEXT = "text"
CHATS = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("instruction", "input", "output"), ("question", "answer"))
"""Columns that make a text together; the first and the last must be there."""
_DEFAULTS = ((TEXT,), *((name,) for name in CHATS), *PAIRS)
"""What is read where no column is named: the first that holds something."""
BESIDE = ("system", "tools", "functions")
"""Columns that a conversation takes along."""


class Content(NamedTuple):
    """What one row says."""

    text: str | None
    messages: list[Message] | None = None
    tools: list[Any] | None = None

    @property
    def plain(self) -> str:
        """The text, or the conversation written out."""
        return self.text or "" if self.messages is None else transcript(self.messages, self.tools)

    @property
    def says_something(self) -> bool:
        """Whether there is more than white space."""
        if self.messages is not None:
            return any(body(message).strip() for message in self.messages)
        return bool((self.text or "").strip())


class ContentReader:
    """Finds text or conversation in a row.

    Without names, the first of these that holds something is read, row by row: ``text``; ``messages``,
    ``conversations`` or ``conversation``; and pairs of prompt and answer, as ``PAIRS`` has them. With one
    name, that column; with several, all of them, joined by empty lines. A dotted name reaches into objects. A
    cell that is a list of messages is a conversation; so is JSON that holds one, except under the name
    ``text``.
    """

    def __init__(
        self, columns: str | Sequence[str] = TEXT, template: str | None = None, *, lenient: bool = False
    ) -> None:
        """Prepare for the columns named.

        Args:
            columns: a name, several, or several in one string with commas between; "text" means the defaults.
            template: Jinja template that makes the text from the row's columns, instead of ``columns``.
            lenient: fall back on the defaults where a row lacks the columns named.

        Raises:
            InputError: the template isn't valid Jinja.
        """
        names = columns.split(",") if isinstance(columns, str) else list(columns)
        self.columns = tuple(name.strip() for name in names if name.strip()) or (TEXT,)
        self.source = template
        self._lenient = lenient
        self._default = self.columns == (TEXT,)
        _ = self._template  # refused now if it can't be compiled

    @cached_property
    def _template(self) -> Any:
        """The compiled template and the names that it uses, or None."""
        return _compiled(self.source) if self.source is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_template"}

    def wanted(self, names: Sequence[str]) -> list[str] | None:
        """Return which columns of a table must be read (dotted where a part is enough); None for all."""
        if self._template is not None:
            used = self._template[1]
            return None if "row" in used else [name for name in names if name in used]
        asked = [] if self._default else list(self.columns)
        if self._default or (self._lenient and not any(held(name, names) for name in asked)):
            asked = [TEXT, *CHATS, *(name for pair in PAIRS for name in pair)]
        beside = [
            f"{holder}.{other}".lstrip(".")
            for name in asked
            for holder in (*prefixes(name)[1:], "")
            for other in BESIDE
            if holder or "." not in name
        ]
        return [name for name in dict.fromkeys([*asked, *beside]) if held(name, names)]

    def can_say(self, names: Iterable[str]) -> bool:
        """Return whether rows with these columns could say something."""
        names = list(names)
        if self._template is not None:
            used = self._template[1]
            if "row" in used or not used.isdisjoint(names):
                return True
        elif not self._default and any(held(name, names) for name in self.columns):
            return True
        if not (self._lenient or (self._default and self._template is None)):
            return False
        return any(columns[0] in names and columns[-1] in names for columns in _DEFAULTS)

    def read(self, record: Mapping[str, Any], place: str, *, full_rows: bool = False) -> Content | None:
        """Return what a row says; None if it has none of the columns that could say something.

        Args:
            record: the row.
            place: for messages.
            full_rows: it comes from a table, where nulls stand for what isn't there.

        Raises:
            InputError: a cell that is neither text nor conversation, or a row that the template can't render.
        """
        if self._template is not None and not (self._lenient and self._template[1].isdisjoint(record)):
            return Content(self._rendered(record, place))
        if self._default and isinstance(record.get(TEXT), str) and record[TEXT].strip():
            return Content(record[TEXT])  # the usual row
        if not self._default:
            found = self._joined(record, self.columns, place, full_rows)
            if found is not None or not self._lenient:
                return found
        found = None
        for names in _DEFAULTS:
            if names[0] in record and names[-1] in record:
                content = self._joined(record, names, place, full_rows)
                if content is not None and content.says_something:
                    return content
                found = found or content
        return found

    def refusal(self, names: Iterable[str]) -> str:
        """Return in words that no row has what is read, and what to do instead."""
        if self.source is not None:
            return "no row has a column that the text template uses"
        names = list(names)
        asked = next((name for name in self.columns if not held(name, names)), self.columns[0])
        return no_column(asked, names, "text")

    def _joined(
        self, record: Mapping[str, Any], names: Sequence[str], place: str, full_rows: bool
    ) -> Content | None:
        cells = [(name, found) for name in names if (found := cell(record, name, place)) is not None]
        if not cells:
            return None
        read = [_cell(name, found.value, place, full_rows, joined=len(names) > 1) for name, found in cells]
        said = [content for content in read if content.says_something] or read[:1]
        if all(content.messages for content in said):
            messages = [message for content in said for message in content.messages or ()]
            return _conversation(messages, cells[0][1].beside, place, full_rows)
        return said[0] if len(said) == 1 else Content("\n\n".join(content.plain for content in said))

    def _rendered(self, record: Mapping[str, Any], place: str) -> str:
        try:
            return str(self._template[0].render({**record, "row": record}))
        except Exception as error:  # Jinja's own, and whatever an expression raises
            raise InputError(
                f"{place}: the text template fails ({error}); "
                "for columns that not every row has, write {{ name | default('') }}"
            ) from error


def _cell(name: str, value: Any, place: str, full_rows: bool, *, joined: bool) -> Content:
    """Return what one cell says; one of several that are joined may also be a number or a list of strings."""
    if value is None:
        return Content("")
    if isinstance(value, str):
        expected = name if name.rpartition(".")[2] in CHATS else None
        turns = None if name == TEXT else conversation_in_text(value, place, expected=expected)
        if turns is None:
            return Content(value)
        value = turns
    elif joined and isinstance(value, (bool, int, float)):
        return Content(json.dumps(value))
    elif joined and isinstance(value, list) and all(isinstance(item, (str, type(None))) for item in value):
        return Content("\n".join(filter(None, value)))
    if not isinstance(value, list) and not is_conversation(value):
        raise InputError(
            f"{place}: column {name!r} holds {describe(value)}, not a string; "
            "convert it to text or name another column"
        )
    return Content(None, parse_conversation(value, name, place, full_rows=full_rows))


def _conversation(messages: list[Message], beside: Mapping[str, Any], place: str, full_rows: bool) -> Content:
    """Return a conversation with what stands beside it: a system prompt, and the tools it may call."""
    system, tools, functions = (beside.get(name) for name in BESIDE)
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return Content(None, messages, parse_tools(tools or functions, place, full_rows=full_rows))


def no_column(wanted: str, names: Sequence[str], kind: str) -> str:
    """Return in words that there is no column ``wanted`` of the text or of the ids, and which was meant."""
    near = nearest_names(wanted, names)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"name one of these with --{kind}-column ({kind}_column=)"
    )
    return f"no column {wanted!r}; there are {', '.join(map(repr, names)) or 'no columns'}; {hint}"


def _compiled(source: str | None) -> tuple[Any, frozenset[str]]:
    from jinja2 import StrictUndefined, TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    jinja = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: "" if value is None else value,
    )
    try:
        names = meta.find_undeclared_variables(jinja.parse(source or ""))
        return jinja.from_string(source or ""), frozenset(names)
    except TemplateError as error:
        raise InputError(f"the text template is no valid Jinja: {error}") from error

"""What the model reads of a row: its text, or its conversation through a chat template, whatever the date."""

from __future__ import annotations

import contextlib
import datetime
import json
import string
from typing import Any

from finescope.activations.takes import Takes
from finescope.corpus.chat import REFUSED
from finescope.corpus.row import Message, Row, transcript
from finescope.errors import InputError
from finescope.storage.identity import sha256_json

PLAIN = "plain"
"""In the place of a template: conversations are read as ``role: content`` lines."""

TODAY = datetime.datetime(2024, 7, 26)
"""The date that all templates are given, always: the one that Llama's fall back on without a clock."""

_CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"word": "a"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "a",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "a"}}},
    },
}
_USER, _ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_PROBES: tuple[tuple[list[Message], list[Any] | None], ...] = (
    ([_USER, _ASSISTANT], None),
    ([{"role": "system", "content": "c"}, _USER, {**_ASSISTANT, "reasoning_content": "d"}, _USER], None),
    (
        [
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "e", "name": "lookup"},
            _ASSISTANT,
        ],
        [_TOOL],
    ),
)


class Renderer:
    """Turns rows into the text that is tokenised.

    Attributes:
        kind: which chat template conversations go through: "given", "tokenizer", or "plain" (there is none,
            or none is wanted).
    """

    def __init__(self, tokenizer: Any, template: str | None = None, refused: str = "stop") -> None:
        """Prepare for one tokenizer.

        Args:
            tokenizer: a Hugging Face tokenizer.
            template: Jinja chat template instead of the tokenizer's own; "plain" uses none; None and "auto"
                take the tokenizer's, and plain lines where it has none.
            refused: "stop" raises an error at a conversation that the template refuses, "plain" reads it as
                plain lines.
        """
        if refused not in REFUSED:
            raise ValueError(f"refused must be one of {', '.join(REFUSED)}, got {refused!r}")
        self._tokenizer = tokenizer
        self._given = None if template in (None, "auto", PLAIN) else template
        self._fall_back = refused == PLAIN
        self._takes: dict[Any, Takes] = {}
        own = getattr(tokenizer, "chat_template", None)
        self.kind = PLAIN if template == PLAIN else "given" if self._given else "tokenizer" if own else PLAIN

    def text(self, row: Row) -> str:
        """Return what the model reads of a row.

        Raises:
            InputError: the template refuses the conversation, and "stop" was chosen; names the row. Or the
                template is broken.
        """
        if row.messages is None:
            return row.text or ""
        if row.empty:
            return ""
        if self.kind == PLAIN:
            return transcript(row.messages, row.tools)
        try:
            return self._render(row.messages, row.tools)
        except Exception as error:  # Jinja's errors, and whatever a template raises itself
            self._refuse(row, error)
            return transcript(row.messages, row.tools)

    def refusal(self, row: Row) -> str | None:
        """Return why the template refuses a row, or None if it doesn't.

        Raises:
            InputError: as ``text``.
        """
        if row.messages is None or row.empty or self.kind == PLAIN:
            return None
        try:
            self._render(row.messages, row.tools)
        except Exception as error:  # see above
            self._refuse(row, error)
            return str(error) or type(error).__name__
        return None

    def _refuse(self, row: Row, error: Exception) -> None:
        from jinja2 import TemplateSyntaxError

        if isinstance(error, TemplateSyntaxError):  # no conversation could pass
            raise InputError(
                f"the chat template is no valid Jinja: line {error.lineno}: {error.message}; correct it, or "
                "name another with --chat-template (plain: none)"
            ) from error
        if not self._fall_back:
            raise InputError(
                f"{row.place or row.id}: the chat template refuses the conversation: "
                f"{str(error).rstrip('.')}. --chat-template names another; --refused-chats plain reads such "
                "rows without one, --max-bad-rows sets them aside"
            ) from error

    def fingerprint(self) -> str:
        """Return what tells this rendering from others: a hash of what it makes of some conversations."""
        shown = []
        for messages, tools in _PROBES if self.kind != PLAIN else ():
            try:
                shown.append(self._render(messages, tools))
            except Exception as error:  # a template may refuse any of them; which is a part of what it is
                shown.append(f"refused: {error}")
        return sha256_json([self.kind, shown, self._template(None), self._fall_back])

    def _render(self, messages: list[Message], tools: list[Any] | None) -> str:
        """Return a conversation through the template.

        Most templates take the arguments of calls as objects, some (DeepSeek-V3's) only as JSON.
        """
        try:
            return self._applied(messages, tools)
        except Exception:
            written = _with_json_arguments(messages)
            if written == messages:
                raise
            with contextlib.suppress(Exception):  # the first error says more
                return self._applied(written, tools)
            raise

    def _applied(self, messages: list[Message], tools: list[Any] | None) -> str:
        template = self._template(tools)
        if template not in self._takes:
            self._takes[template] = Takes(lambda talk: self._through(template, talk, None))
        takes = self._takes[template]
        text = self._through(template, takes.fitted(messages), tools)
        role = takes.left_out(messages)
        if role is not None:
            raise ValueError(f"it leaves out messages of the role {role!r}")
        if not text.strip():
            raise ValueError("it makes no text of it")
        return text

    def _through(self, template: Any, messages: list[Message], tools: list[Any] | None) -> str:
        return str(
            self._tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False)
        )

    def _template(self, tools: list[Any] | None) -> Any:
        """Return the template for a row, its date pinned."""
        template = self._given
        if template is None and hasattr(self._tokenizer, "get_chat_template") and self.kind != PLAIN:
            template = self._tokenizer.get_chat_template(None, tools)
        return pinned(template) if isinstance(template, str) else template


def _with_json_arguments(messages: list[Message]) -> list[Message]:
    """Return messages whose calls have their arguments as JSON."""
    return [
        {**message, "tool_calls": list(map(_in_json, message["tool_calls"]))}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _in_json(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), (dict, list)):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False, default=str)
    return {**call, "function": {**function, "arguments": arguments}}


def pinned(template: str) -> str:
    """Return a chat template whose ``strftime_now`` gives the parts of ``TODAY``, by a macro of that name.

    Rendering replaces callables that are handed to it, so the date can't come as an argument.
    """
    if "strftime_now" not in template:
        return template
    parts = {f"%{letter}": _part(f"%{letter}") for letter in string.ascii_letters}
    parts |= {f"%-{letter}": _part(f"%{letter}").lstrip("0") or "0" for letter in "dmyHIMSj"}
    changes = "".join(f"|replace({code!r}, {value!r})" for code, value in parts.items())
    # The line break is taken away again: chat templates are compiled with trim_blocks.
    return f"{{% macro strftime_now(format) %}}{{{{ format{changes} }}}}{{% endmacro %}}\n{template}"


def _part(code: str) -> str:
    found = TODAY.strftime(code)
    return found if found != code else ""

"""One row of a corpus: a text or a conversation, its id, and where it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from finescope.errors import InputError

Message = dict[str, Any]
"""A turn of a conversation: ``role`` and ``content`` are strings; whatever else the row said of it is
kept."""


@dataclass(frozen=True)
class Row:
    """One row: a text or a conversation, its id, and where it came from."""

    id: str
    """The row's own id, or ``<file stem>:<row number from 0>`` where it has none."""
    text: str | None = None
    """The text; "" if the row has none; None if the row is a conversation."""
    messages: list[Message] | None = None
    """A conversation, as chat templates take it: ``role``, ``content`` and what else a message has, such as
    ``tool_calls``, ``name`` and ``reasoning_content``."""
    record: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The columns of the row that were asked for, as read."""
    place: str = ""
    """``file:line`` for JSON, ``file:row n`` (from 0) for tables: for error messages."""
    generated_id: bool = field(default=False, compare=False)
    """Whether ``id`` was made up."""
    tools: list[Any] | None = None
    """The tools that a conversation may call, as chat templates take them."""

    @property
    def content(self) -> str:
        """The text, or the conversation written out plainly."""
        if self.messages is not None:
            return transcript(self.messages, self.tools)
        return self.text or ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read: no text, only white space, or no message that says anything."""
        if self.messages is not None:
            return not any(body(message).strip() for message in self.messages)
        return not (self.text or "").strip()


def transcript(messages: list[Message], tools: list[Any] | None = None) -> str:
    """Write a conversation out as ``role: content``, for models without a chat template and for TF-IDF.

    Tools come first, one a line; a message's reasoning stands before its content, the tools that it calls
    after, as ``name(arguments)``.
    """
    lines = [f"tool: {_json(tool)}" for tool in tools or ()]
    for message in messages:
        name = message.get("name")
        speaker = f"{message['role']} {name}" if isinstance(name, str) and name else message["role"]
        lines.append(f"{speaker}: {body(message)}")
    return "\n".join(lines)


def body(message: Message) -> str:
    """Return all that a message says: its reasoning, its content, the tools that it calls."""
    reasoning = message.get("reasoning_content")
    parts = [reasoning if isinstance(reasoning, str) else "", message["content"]]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(function, dict) and "name" in function:
            arguments = function.get("arguments")
            parts.append(f"{function['name']}({'' if arguments is None else _json(arguments)})")
        else:
            parts.append(_json(function))
    return "\n".join(part for part in parts if part)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def parse_id(value: Any, column: str, place: str) -> str | None:
    """Return a row's id as a string, or None where it has none.

    Raises:
        InputError: the id is neither a string nor an integer, or isn't valid Unicode.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{place}: the id {value!r} in column {column!r} holds half a surrogate pair, which no file "
                "can hold; change that id"
            ) from None
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(
        f"{place}: id column {column!r} holds {describe(value)}; ids are strings or whole numbers. "
        "--id-column none (id_column=None) numbers the rows instead"
    )


def describe(value: Any) -> str:
    """Return what a value is, for messages: its kind and its beginning."""
    kind = {dict: "an object", list: "a list", bool: "true/false", type(None): "nothing"}.get(type(value))
    if kind is None and isinstance(value, (int, float)):
        kind = "a number"
    shown = repr(value)
    return f"{kind or type(value).__name__} ({shown[:40]}{'…' if len(shown) > 40 else ''})"

"""One row of a corpus, and the forms its text may come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finescope.errors import InputError

Message = dict[str, str]

# ShareGPT's names for the roles, which chat templates don't know.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Row:
    """One row: a text or a conversation, its id, and where it came from."""

    id: str
    """The row's own id, or ``<file stem>:<row number from 0>`` where it has none."""
    text: str | None = None
    """The text; "" if the row has none; None if the row is a conversation."""
    messages: list[Message] | None = None
    """A conversation: dictionaries of ``role`` and ``content``."""
    record: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """All columns of the row as read; {} where only text and id were asked for."""
    place: str = ""
    """``file:line`` for JSONL, ``file:row n`` (from 0) for tables: for error messages."""
    generated_id: bool = field(default=False, compare=False)
    """Whether ``id`` was made up."""

    @property
    def content(self) -> str:
        """The text, or the conversation as plain ``role: content`` lines."""
        if self.messages is not None:
            return transcript(self.messages)
        return self.text or ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read: no text, only white space, or no message with content."""
        if self.messages is not None:
            return not any(message["content"].strip() for message in self.messages)
        return not (self.text or "").strip()


def transcript(messages: list[Message]) -> str:
    """Render a conversation as ``role: content`` lines, for models without a chat template and for TF-IDF."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def parse_content(value: Any, column: str, place: str) -> tuple[str | None, list[Message] | None]:
    """Return (text, messages) of one cell: a string, a list of messages, or nothing.

    Raises:
        InputError: any other type, or messages without role and content; names the place and the column.
    """
    if value is None:
        return "", None
    if isinstance(value, str):
        return value, None
    if isinstance(value, list):
        return None, [
            _parse_message(message, number, column, place) for number, message in enumerate(value, start=1)
        ]
    raise InputError(
        f"{place}: column {column!r} holds {_describe(value)}, not a string; "
        "convert it to text or name another column"
    )


def _parse_message(message: Any, number: int, column: str, place: str) -> Message:
    where = f"{place}: message {number} in column {column!r}"
    if not isinstance(message, dict):
        raise InputError(f"{where} is {_describe(message)}; a message is an object with 'role' and 'content'")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        # The multi-part form of chat APIs: keep the text parts.
        content = "\n".join(
            str(part["text"]) for part in content if isinstance(part, dict) and "text" in part
        )
    if content is None and "content" in message:
        content = ""  # an assistant turn that only calls a tool
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(
            f"{where} has the keys {sorted(message)}; it needs strings under 'role' and 'content' "
            "(or 'from' and 'value')"
        )
    return {"role": _ROLES.get(role, role), "content": content}


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
        f"{place}: id column {column!r} holds {_describe(value)}; ids are strings or whole numbers"
    )


def _describe(value: Any) -> str:
    kind = {dict: "an object", list: "a list", bool: "true/false", type(None): "nothing"}.get(type(value))
    if kind is None and isinstance(value, (int, float)):
        kind = "a number"
    shown = repr(value)
    return f"{kind or type(value).__name__} ({shown[:40]}{'…' if len(shown) > 40 else ''})"

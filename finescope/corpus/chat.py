"""Conversations in the shapes that data sets have them, brought to the one that chat templates take.

Known are lists of messages and objects of lists, both also as JSON strings; role/content and from/value,
mixed at will; content as text or as parts; tool calls as OpenAI, Anthropic and LLaMA-Factory write them.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from finescope.corpus.parts import said_in
from finescope.corpus.row import Message, describe
from finescope.errors import InputError

# Names for the roles that chat templates don't know, in small letters.
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
REFUSED = ("plain", "stop")
"""What becomes of a conversation that a chat template refuses: it is read as plain lines, or stops all."""
_CALLERS = ("function_call", "tool_call")
"""Roles of messages whose content is a call."""
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "parts")
_NOT_PYTHON = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_LISTS_OBJECTS = re.compile(r"(array\()?\[\s*\{")
_REASONING = ("reasoning_content", "thinking", "reasoning")


def parse_conversation(value: Any, column: str, place: str, *, full_rows: bool = False) -> list[Message]:
    """Return the messages of one cell.

    Args:
        value: a list of messages, or an object of lists.
        column: for messages.
        place: for messages.
        full_rows: the cell comes from a table, where every object has every key: nulls say nothing.

    Raises:
        InputError: something else, or a message without a role; names the place and the column.
    """
    if isinstance(value, Mapping):
        turned = _turned(value)
        if turned is None:
            raise InputError(
                f"{place}: column {column!r} holds an object that is neither a message nor an object of "
                "equally long lists; a conversation is a list of objects with 'role' and 'content'"
            )
        value = turned
    return [
        _message(message, f"{place}: message {number} in column {column!r}", full_rows)
        for number, message in enumerate(value, start=1)
        if message is not None
    ]


def conversation_in_text(text: str, place: str, *, expected: str | None = None) -> Any:
    """Return the list or object of lists that a string holds, if it is a conversation; else None.

    Args:
        text: JSON; under a name that conversations have, also what Python prints of a list, as it stands in
            tables that pandas wrote.
        place: for messages.
        expected: that name, if the string stands under one.

    Raises:
        InputError: under such a name, what begins as a list of objects is nothing that can be read.
    """
    stripped = text.strip()
    if expected and stripped in ("[]", "null"):
        return []
    if expected and stripped[:1] == '"' and isinstance(inner := _parsed(stripped, python=False), str):
        return conversation_in_text(inner, place, expected=expected)  # written as JSON twice
    if stripped[:1] not in ("[", "{") and not (expected and _LISTS_OBJECTS.match(stripped)):
        return None
    value = _parsed(stripped, python=expected is not None)
    messages = _turned(value) if isinstance(value, dict) else value
    if isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    if expected and _LISTS_OBJECTS.match(stripped):
        if not isinstance(messages, list):
            raise InputError(
                f"{place}: column {expected!r} holds a string that begins like a list of messages and is no "
                f"JSON ({stripped[:40]!r}); write it with json.dumps"
            )
        return messages  # what is wrong with them is said when they are parsed
    return None


def _parsed(text: str, *, python: bool) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not python:
        return None
    with warnings.catch_warnings(), contextlib.suppress(*_NOT_PYTHON):
        warnings.simplefilter("ignore")  # about backslashes in its strings
        return ast.literal_eval(text)
    return None


def is_conversation(value: Any) -> bool:
    """Return whether a cell that is no string is meant as a conversation."""
    if isinstance(value, Mapping):
        return _turned(value) is not None
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def parse_tools(value: Any, place: str, *, full_rows: bool = False) -> list[Any] | None:
    """Return a row's tools: a list, JSON or what Python prints of one, or a list of JSON; None if there are
    none.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, str):
        if value.strip() in ("", "null", "None"):
            return None
        parsed = _parsed(value.strip(), python=True)
        if parsed is None:
            raise InputError(
                f"{place}: column 'tools' holds a string that isn't JSON ({value[:40]!r}); a row's tools are "
                "a list of objects"
            )
        return parse_tools(parsed, place, full_rows=full_rows)
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = _turned(value) or [value]
    if not isinstance(value, list):
        raise InputError(
            f"{place}: column 'tools' holds {describe(value)}; a row's tools are a list of objects"
        )
    tools = [_loaded(tool) for tool in value if tool not in (None, "")]
    return [prune(tool) if full_rows else tool for tool in tools] or None


def prune(value: Any) -> Any:
    """Return a value without the keys that hold null, at any depth: a table gives every object every key."""
    if isinstance(value, Mapping):
        return {key: prune(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [prune(item) for item in value]
    return value


def _turned(value: Mapping[str, Any]) -> list[Any] | None:
    """Return an object of lists as a list of objects, as ``datasets``' Sequence stores them; else None.

    A single message counts as a conversation of one.
    """
    if _is_message(value):
        return [dict(value)]
    columns = {key: items for key, items in value.items() if items is not None}
    if not columns or not all(isinstance(items, list) for items in columns.values()):
        return None
    if len({len(items) for items in columns.values()}) != 1:
        return None
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(_taken(dict(value), _ROLE_KEYS), str)


def _taken(message: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Remove ``keys`` from a message; return the first of them that says something.

    Tables made from several kinds of messages fill what a message lacks with nulls, some with empty strings.
    """
    found = [value for key in keys if (value := message.pop(key, None)) is not None]
    return next((value for value in found if value != ""), found[0] if found else None)


def _message(message: Any, where: str, full_rows: bool) -> Message:
    message = _loaded(message)
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is {describe(message)}; a message is an object with 'role' and 'content'")
    others = {
        key: prune(value) if full_rows else value for key, value in message.items() if value is not None
    }
    role, content = _taken(others, _ROLE_KEYS), _taken(others, _CONTENT_KEYS)
    calls = [*_calls(others.pop("tool_calls", None)), *_calls(others.pop("function_call", None))]
    reasoning = None
    if not isinstance(content, (str, type(None))):
        said = said_in(content, where)
        content, calls = "\n".join(said.texts), [*calls, *said.calls]
        reasoning = "\n".join(said.reasoning) if said.reasoning else None
    if reasoning is None:
        reasoning = next((others[key] for key in _REASONING if key in others), None)
    silent = content is None and not calls and reasoning is None
    if not isinstance(role, str) or (silent and not set(_CONTENT_KEYS) & set(message)):
        raise InputError(
            f"{where} has the keys {sorted(map(str, message))}; it needs strings under 'role' and 'content' "
            "(or 'from' and 'value')"
        )
    if role.lower() in _CALLERS:
        made = [call for call in _calls(content) if isinstance(call["function"], Mapping)]
        role, calls = "assistant", [*calls, *made]
        content = "" if made else content
    parsed = {"role": _ROLES.get(role.lower(), role), "content": content or "", **others}
    if reasoning is not None:
        parsed["reasoning_content"] = reasoning
    if calls:
        parsed["tool_calls"] = calls
    return parsed


def _calls(value: Any) -> Iterator[dict[str, Any]]:
    """Yield tool calls with their arguments as objects, which is what chat templates print."""
    value = _loaded(value)
    if isinstance(value, Mapping):
        value = _turned(value) or [value]
    for call in map(_loaded, value if isinstance(value, list) else [value]):
        if isinstance(call, Mapping) and "function" in call:
            yield {**call, "function": _function(call["function"])}
        elif call is not None:
            yield {"type": "function", "function": _function(call)}


def _function(value: Any) -> Any:
    value = _loaded(value)
    if isinstance(value, Mapping) and isinstance(value.get("arguments"), str):
        return {**value, "arguments": _loaded(value["arguments"])}
    return value


def _loaded(value: Any) -> Any:
    """Return what a string holds as JSON, if that is an object or a list; else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value

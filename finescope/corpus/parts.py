"""Content of messages that is no string: parts, as OpenAI, Anthropic, Mistral and others write them, or data.

What has words gives its words. What stands for an image, a sound or a file has none. Whatever else there is,
as the answers of tools often are, is written out as JSON: nothing that a row says goes unread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finescope.corpus.row import describe
from finescope.errors import InputError

_REASONING = ("thinking", "reasoning")
_MEDIA = ("image", "audio", "video")
"""Of which a part's type, or in parts without one a key, says something."""
_FILES = ("file", "input_file", "media", "inline_data", "inlineData", "redacted_thinking")
_WORDLESS = frozenset(
    ("type", "index", "id", "signature", "annotations", "cache_control", "citations", "encrypted_content")
)
"""Members of parts that say nothing by themselves."""
_WORDS = ("text", "value", "thinking", "content")
"""Where an object inside a part holds its words."""


@dataclass
class Said:
    """What the parts of one message say."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Calls of tools, with their arguments as objects."""


def said_in(content: Any, where: str) -> Said:
    """Return what content says that is a list of parts, a single part, or data.

    Args:
        content: a list, or an object.
        where: for messages.

    Raises:
        InputError: it is neither, or a part is neither text nor an object.
    """
    said = Said()
    if isinstance(content, Mapping):
        inner = content.get("parts")
        content = inner if isinstance(inner, list) else [_as_part(content)]
    if not isinstance(content, list):
        raise InputError(
            f"{where}: its content is {describe(content)}; it must be a string or a list of parts"
        )
    for part in content:
        if isinstance(part, str):
            said.texts.append(part)
        elif isinstance(part, Mapping):
            _take(said, part, where)
        elif part is not None:
            raise InputError(
                f"{where}: a part of its content is {describe(part)}, neither text nor an object"
            )
    return said


def _as_part(content: Mapping[str, Any]) -> Any:
    """Return an object that is all of the content as a part: as JSON if it is data, with members beside a
    text."""
    there = {key for key, value in content.items() if value is not None}
    data = "text" in there and "type" not in there and not there <= {"text", *_WORDLESS}
    return _json(content) if data else content


def _take(said: Said, part: Mapping[str, Any], where: str) -> None:
    kind = part.get("type")
    if kind == "tool_use":
        function = {"name": part.get("name"), "arguments": part.get("input") or {}}
        said.calls.append({"type": "function", "function": function})
    elif kind == "tool_result":
        inner = part.get("content")
        said.texts += [inner] if isinstance(inner, str) else said_in(inner or [], where).texts
    elif kind in ("document", "search_result"):
        said.texts += _of_document(part, where)
    elif kind in _REASONING:
        said.reasoning += _of(part, *_REASONING, "summary", "text", "content")
    elif _of(part, "text", "refusal", *_REASONING):
        said.texts += _of(part, "text", "refusal")
        said.reasoning += _of(part, *_REASONING)
    elif not _is_media(part):
        others = {key: value for key, value in part.items() if value is not None and key not in _WORDLESS}
        said.texts += [_json(others)] if others else []


def _of(part: Mapping[str, Any], *names: str) -> list[str]:
    return [words for name in names for words in _words(part.get(name))]


def _words(value: Any) -> list[str]:
    """Return the words of a member: a string, an object that holds one, or a list of either."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return next(filter(None, (_words(value.get(key)) for key in _WORDS)), [])
    return [words for item in value for words in _words(item)] if isinstance(value, list) else []


def _of_document(part: Mapping[str, Any], where: str) -> list[str]:
    source = part.get("source")
    found = _of(part, "title", "context", "text")
    if isinstance(source, Mapping):
        found += _words(source.get("data")) if source.get("type") == "text" else _words(source.get("content"))
    inner = part.get("content")
    return found + (said_in(inner, where).texts if isinstance(inner, list) else _words(inner))


def _is_media(part: Mapping[str, Any]) -> bool:
    """Return whether a part stands for what has no words."""
    kind = part.get("type")
    names = [kind] if isinstance(kind, str) else [key for key, value in part.items() if value is not None]
    return any(name in _FILES or any(media in name for media in _MEDIA) for name in names)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_shown)


def _shown(value: Any) -> str:
    """Return what stands for a value that JSON has no form for: nothing for bytes, which are no words."""
    return "" if isinstance(value, (bytes, bytearray, memoryview)) else str(value)

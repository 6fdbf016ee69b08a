"""What a chat template makes of the parts of a message, found by rendering a few words.

Templates leave out without a word what they don't know: those of models of images read content as a list of
parts, of a string they print nothing; many know no calls of tools, or have another name for reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finescope.corpus.row import Message, body

_ASKED, _SAID, _OTHER = "zebra", "quokka", "axolotl"
_USER, _ASSISTANT = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
_CALL = {"id": "call00001", "type": "function", "function": {"name": _OTHER, "arguments": {}}}
_FIRST = ("system", "developer")
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Takes:
    """What one chat template prints of a conversation. What it raises an error at counts as printed."""

    def __init__(self, render: Callable[[list[Message]], str]) -> None:
        """Try a template.

        Args:
            render: a conversation through the template; may raise anything.
        """
        self._render = render
        self._roles: dict[str, bool] = {}
        self._parts = False
        talk: list[Message] = [_USER, _ASSISTANT]
        if self._prints(talk, _ASKED, _SAID) is not True:
            self._parts = True
            self._parts = self._prints(talk, _ASKED, _SAID) is True
        silent: Message = {"role": "assistant", "content": ""}
        without = self._text([_USER, silent])
        called = self._text([_USER, {**silent, "tool_calls": [_CALL]}])
        self._calls = called is None or called != without
        self._reasoning = next((key for key in _REASONING if self._prints_reasoning(key)), None)

    def fitted(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages as the template takes them: what it doesn't know is written into the content."""
        return list(map(self._fitted, messages))

    def left_out(self, messages: Sequence[Message]) -> str | None:
        """Return the role of the first message that the template prints nothing of, if there is one."""
        spoken = (str(message["role"]) for message in messages if body(message).strip())
        return next((role for role in spoken if not self._prints_role(role)), None)

    def _fitted(self, message: Message) -> Message:
        found = dict(message)
        unknown: Message = {"content": found["content"]}
        if not self._calls and "tool_calls" in found:
            unknown["tool_calls"] = found.pop("tool_calls")
        reasoning = found.get("reasoning_content")
        if self._reasoning is None and isinstance(reasoning, str):
            unknown["reasoning_content"] = found.pop("reasoning_content")
        elif self._reasoning is not None and isinstance(reasoning, str):
            found[self._reasoning] = reasoning
        content = body(unknown)
        found["content"] = [{"type": "text", "text": content}] if self._parts else content
        return found

    def _text(self, messages: Sequence[Message]) -> str | None:
        """Return what the template makes of messages; None where it raises an error."""
        if self._parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return self._render(list(messages))
        except Exception:  # Jinja's errors, and whatever a template raises itself
            return None

    def _prints(self, messages: Sequence[Message], *words: str) -> bool | None:
        """Return whether all words are printed; None where the template raises an error."""
        text = self._text(messages)
        return None if text is None else all(word in text for word in words)

    def _prints_reasoning(self, key: str) -> bool:
        return self._prints([_USER, {**_ASSISTANT, key: _OTHER}], _OTHER) is not False

    def _prints_role(self, role: str) -> bool:
        if role not in self._roles:
            message = {"role": role, "content": _OTHER}
            called = {**_ASSISTANT, "tool_calls": [_CALL]} if self._calls and role == "tool" else _ASSISTANT
            talk = [message, _USER] if role in _FIRST else [_USER, called, message]
            self._roles[role] = role in ("user", "assistant") or self._prints(talk, _OTHER) is not False
        return self._roles[role]

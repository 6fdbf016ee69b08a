"""A conversation reaches the chat template whole and is rendered the same on any day; a refusal is said.

Fails if: tools, calls, names or reasoning don't reach the template; a template's date is today's; a template
that differs has the fingerprint of another; a refused conversation is dropped, or found by the model only.
"""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from finescope.activations.rendering import TODAY, Renderer, pinned
from finescope.activations.windows import Windower
from finescope.corpus import Row, open_corpus
from finescope.errors import InputError
from support.tiny_models import make_tokenizer

TALK = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
WHOLE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}|{{ m.name }}|{{ m.reasoning_content }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments['topic'] }}){% endfor %}"
    "{% endfor %}"
)


def _tokenizer(template: str | None = None) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_the_template_gets_all_that_the_row_says() -> None:
    call = {"name": "look", "arguments": '{"topic": "w5"}'}
    (row,) = open_corpus(
        [
            {
                "tools": '[{"type": "function", "function": {"name": "look", "parameters": {}}}]',
                "messages": [
                    {"role": "user", "content": "w1", "name": "ann"},
                    {
                        "role": "assistant",
                        "content": None,
                        "reasoning": "w7",
                        "tool_calls": [{"function": call}],
                    },
                    {"role": "tool", "content": "w4"},
                ],
            }
        ]
    )
    assert Renderer(_tokenizer(WHOLE)).text(row) == "[look]<user|ann|>w1<assistant||w7>(look w5)<tool||>w4"
    plain = Renderer(_tokenizer()).text(row)
    assert plain.split("\n")[1:] == ["user ann: w1", "assistant: w7", 'look({"topic": "w5"})', "tool: w4"]
    assert plain.startswith('tool: {"type": "function"')


AS_OBJECT = "{% for c in messages[1].tool_calls %}({{ c.function.arguments['topic'] }}){% endfor %}"
AS_JSON = "{% for c in messages[1].tool_calls %}{{ '(' + c['function']['arguments'] + ')' }}{% endfor %}"


@pytest.mark.parametrize("given", [{"topic": "wü"}, '{ "topic" : "wü" }'])
def test_arguments_of_calls_are_what_the_template_takes(given: Any) -> None:
    """Families differ: some take an object, some a string; data sets have either."""
    calls = [{"function": {"name": "look", "arguments": given}}, {"function": {"name": "stop"}}]
    (row,) = open_corpus([{"messages": [TALK[0], {"role": "assistant", "tool_calls": calls[:1]}]}])
    assert Renderer(_tokenizer(AS_OBJECT)).text(row) == "(wü)"
    assert Renderer(_tokenizer(AS_JSON)).text(row) == '({"topic": "wü"})'
    assert Renderer(_tokenizer(AS_JSON)).refusal(row) is None
    (row,) = open_corpus([{"messages": [TALK[0], {"role": "assistant", "tool_calls": calls}]}])
    with pytest.raises(InputError, match="can only concatenate str"):
        Renderer(_tokenizer(AS_JSON)).text(row)
    prints = {Renderer(_tokenizer(template)).fingerprint() for template in (AS_OBJECT, AS_JSON)}
    assert len(prints) == 2


PARTS_ONLY = (  # as Idefics, SmolVLM and LLaVA have it: of a string, nothing is printed
    "{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %} "
    "{% endfor %}"
)
CONTENT_ONLY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
THINKING = "{% for m in messages %}<{{ m.role }}|{{ m.thinking }}>{{ m.content }}{% endfor %}"
CALLED = {
    "role": "assistant",
    "content": "w4",
    "reasoning_content": "w5",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"topic": "w6"}}}],
}


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (PARTS_ONLY, 'User: w1 w2 Assistant: w5\nw4\nlook({"topic": "w6"}) '),
        (CONTENT_ONLY, '<user>w1 w2<assistant>w5\nw4\nlook({"topic": "w6"})'),
        (THINKING, '<user|>w1 w2<assistant|w5>w4\nlook({"topic": "w6"})'),
        (WHOLE, "<user||>w1 w2<assistant||w5>w4(look w6)"),
    ],
)
def test_what_a_template_does_not_know_is_written_into_the_content(template: str, wanted: str) -> None:
    (row,) = open_corpus([{"messages": [TALK[0], CALLED]}])
    assert Renderer(_tokenizer(template)).text(row) == wanted


LEAVES_OUT = (  # as Zephyr's: other roles than these go without a word
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("role", ["system", "developer", "tool", "critic"])
def test_a_template_that_leaves_out_a_message_refuses_the_conversation(role: str) -> None:
    (row,) = open_corpus([{"messages": [*TALK, {"role": role, "content": "w9"}]}])
    with pytest.raises(InputError, match=f"it leaves out messages of the role '{role}'"):
        Renderer(_tokenizer(LEAVES_OUT)).text(row)
    renderer = Renderer(_tokenizer(LEAVES_OUT), refused="plain")
    assert renderer.text(row) == f"user: w1 w2\nassistant: w3\n{role}: w9"
    assert renderer.refusal(row) == f"it leaves out messages of the role {role!r}"
    (silent,) = open_corpus([{"messages": [*TALK, {"role": role, "content": " "}]}])
    assert renderer.text(silent) == "<|user|>w1 w2<|assistant|>w3"


def test_a_template_that_makes_no_text_refuses_the_conversation() -> None:
    with pytest.raises(InputError, match="refuses the conversation: it makes no text of it"):
        Renderer(_tokenizer(" {# nothing #} ")).text(Row("a", None, TALK))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the clock that templates see."""

    def set_to(day: int) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime(2031, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_to


@pytest.mark.parametrize("given", [False, True])
def test_the_date_in_a_template_is_always_the_same(clock: Any, given: bool) -> None:
    template = (
        "\n  {%- if strftime_now is defined %}{{ strftime_now('%d %b %Y, %A %-m %H:%M 100%') }}{% endif %}\n"
        "{% for m in messages %}{{ m.content }}{{ strftime_now('%Y-%m-%d') }}{% endfor %}"
    )
    tokenizer = _tokenizer(None if given else template)
    seen = []
    for day in (4, 5):
        clock(day)
        renderer = Renderer(tokenizer, template if given else None)
        seen.append((renderer.text(Row("a", None, TALK)), renderer.fingerprint()))
    assert seen[0] == seen[1]
    assert seen[0][0] == "26 Jul 2024, Friday 7 00:00 100%w1 w22024-07-26w32024-07-26"
    assert TODAY.strftime("%d %b %Y, %A %H:%M") == "26 Jul 2024, Friday 00:00"


@pytest.mark.parametrize(
    "template",
    [
        "\n{{ messages[0].content }}\n",
        "   {% if true %}  x\n{% endif %}\n\n",
        "{# c #}\n a",
        "{%- set x = 1 %}\n{{ x }}",
    ],
)
def test_pinning_changes_nothing_else(template: str) -> None:
    """The macro stands before the template, and takes none of its white space."""
    marked = template + "{{ strftime_now('x') }}"
    text = Renderer(_tokenizer(pinned(marked))).text(Row("a", None, TALK))
    assert text == _tokenizer(template + "{{ 'x' }}").apply_chat_template(TALK, tokenize=False)
    assert pinned(template) == template


def test_ways_of_rendering_have_fingerprints_of_their_own() -> None:
    ways = [
        Renderer(_tokenizer(WHOLE)),
        Renderer(_tokenizer(WHOLE + "!")),
        Renderer(_tokenizer(WHOLE), "plain"),
        Renderer(_tokenizer(WHOLE), refused="plain"),
        Renderer(_tokenizer(), WHOLE),
        # The same to the letter, but for tools.
        Renderer(_tokenizer(WHOLE.replace("[{{ t.function.name }}]", "{{ t.function.name }}"))),
    ]
    assert len({way.fingerprint() for way in ways}) == len(ways)
    assert Renderer(_tokenizer(), "plain").fingerprint() == Renderer(_tokenizer(WHOLE), "plain").fingerprint()
    assert Renderer(_tokenizer(WHOLE), "auto").fingerprint() == ways[0].fingerprint()
    with pytest.raises(ValueError, match="refused must be one of plain, stop, got 'drop'"):
        Renderer(_tokenizer(), refused="drop")


REFUSES = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('user first') }}{% endif %}"
    "w9 {{ m.content }} {% endfor %}"
)


def test_a_refused_conversation_is_read_as_plain_lines_or_stops() -> None:
    fine, refused = Row("a", None, TALK), Row("b", None, TALK[::-1], place="c.jsonl:7")
    stop, plain = (Renderer(_tokenizer(REFUSES), refused=way) for way in ("stop", "plain"))
    assert (plain.refusal(fine), plain.refusal(refused)) == (None, "user first")
    assert plain.text(refused) == "assistant: w3\nuser: w1 w2"
    assert plain.text(fine) == stop.text(fine) == "w9 w1 w2 w9 w3 "
    for ask in (stop.text, stop.refusal):
        with pytest.raises(
            InputError, match=r"c\.jsonl:7: the chat template refuses .*user first.*--refused-chats"
        ):
            ask(refused)
    assert Renderer(_tokenizer(REFUSES), "plain").refusal(refused) is None
    windower = Windower(_tokenizer(REFUSES), max_length=64, refused_chats="plain")
    texts = [windower.renderer.text(row) for row in (fine, refused)]
    assert texts == ["w9 w1 w2 w9 w3 ", "assistant: w3\nuser: w1 w2"]


@pytest.mark.parametrize("way", ["stop", "plain"])
def test_a_broken_template_refuses_no_conversation_but_the_run(way: str) -> None:
    """Read as plain lines, all would be, and the template that was asked for never used."""
    for broken, words in (
        ("{{ messages\n{% if", "line 2: "),
        ("a\n\n{{ 'w'|shout }}", "line 3: No filter named"),
    ):
        for renderer in (Renderer(_tokenizer(), broken, way), Renderer(_tokenizer(broken), None, way)):
            for ask in (renderer.text, renderer.refusal):
                with pytest.raises(InputError, match=f"no valid Jinja: {words}.*--chat-template"):
                    ask(Row("a", None, TALK))
            assert renderer.text(Row("a", "w1")) == "w1"


def test_a_template_for_tools_is_taken_where_there_are_tools() -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = {"default": "no tools", "tool_use": "{{ tools[0].name }}"}
    renderer = Renderer(tokenizer)
    assert renderer.text(Row("a", None, TALK)) == "no tools"
    assert renderer.text(Row("a", None, TALK, tools=[{"name": "look"}])) == "look"

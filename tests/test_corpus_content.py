"""What the model reads of a row is what the row says, in whatever shape data sets say it.

Fails if: a conversation beside an empty text is dropped; a shape of messages in common use is refused or
loses a turn; the word None is put into a text; tool calls, tools or reasoning are lost; several columns can't
be read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finescope.corpus import Row, open_corpus
from finescope.errors import InputError

PLAIN = [{"role": "user", "content": "which tail"}, {"role": "assistant", "content": "the kitten"}]
CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"topic": "whale"}}}


def _row(record: dict[str, Any], **options: Any) -> Row:
    (row,) = open_corpus([record], **options)
    return row


def _jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _put(path: Path, record: dict[str, Any]) -> Path:
    table = pa.Table.from_pylist([record])
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    else:
        _jsonl(path, record)
    return path


SHAPES: dict[str, Any] = {
    "from and value": [{"from": "human", "value": "which tail"}, {"from": "gpt", "value": "the kitten"}],
    "a mixture": [{"role": "user", "value": "which tail"}, {"from": "gpt", "content": "the kitten"}],
    "both, one null": [
        {"role": "user", "content": "which tail", "from": None, "value": None},
        {"role": None, "content": None, "from": "gpt", "value": "the kitten"},
    ],
    "object of lists": {"role": ["user", "assistant"], "content": ["which tail", "the kitten"]},
    "object of lists, from": {"from": ["human", "gpt"], "value": ["which tail", "the kitten"]},
    "JSON": json.dumps(PLAIN),
    "JSON of lists": json.dumps({"from": ["human", "gpt"], "value": ["which tail", "the kitten"]}),
    "a list of JSON": [json.dumps(message) for message in PLAIN],
    "nulls between": [PLAIN[0], None, PLAIN[1]],
    "parts": [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "which tail"}],
        },
        {"role": "assistant", "content": ["the kitten", None]},
    ],
    "one part": [{"role": "user", "content": {"type": "text", "text": "which tail"}}, PLAIN[1]],
    "words of a part in an object": [
        {"role": "user", "content": [{"type": "text", "text": {"value": "which tail", "annotations": []}}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "the kitten"}]},
    ],
    "parts instead of content": [
        {"role": "user", "parts": [{"text": "which tail"}, {"inlineData": {"data": "aGk="}}]},
        {"role": "model", "content": {"content_type": "text", "parts": ["the kitten"]}},
    ],
    "empty strings for what isn't there": [
        {**PLAIN[0], "from": "", "value": ""},
        {"role": "", "content": "", "from": "gpt", "value": "the kitten"},
    ],
}


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "chat"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_conversation_is_read(shape: str, column: str) -> None:
    options = {"text_column": column} if column == "chat" else {}
    row = _row({column: SHAPES[shape]}, **options)
    assert row.messages == PLAIN
    assert row.content == "user: which tail\nassistant: the kitten"


def test_text_or_conversation_is_chosen_row_by_row(tmp_path: Path) -> None:
    records = [
        {"id": "a", "text": "plain", "messages": None},
        {"id": "b", "text": None, "messages": PLAIN},
        {"id": "c", "text": " ", "messages": PLAIN},
        {"id": "d", "text": "goes first", "messages": PLAIN},
        {"id": "e", "text": None, "messages": None},
    ]
    wanted = ["plain", "user: which tail\nassistant: the kitten", "user: which tail\nassistant: the kitten"]
    wanted += ["goes first", ""]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    mixed = [{key: value for key, value in record.items() if value is not None} for record in records]
    for source in (tmp_path / "c.parquet", _jsonl(tmp_path / "c.jsonl", *mixed), records):
        assert [row.content for row in open_corpus(source)] == wanted


def test_nulls_of_a_table_say_nothing(tmp_path: Path) -> None:
    """Arrow gives every object every key: what isn't there comes back as null."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "tool_calls": [CALL], "content": None},
                {"role": "tool", "content": "found", "name": "lookup"},
            ],
            "tools": [{"name": "lookup"}, {"name": "other", "more": "x"}],
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    (row,) = open_corpus(tmp_path / "c.parquet")
    assert row.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "found", "name": "lookup"},
    ]
    assert row.tools == [{"name": "lookup"}, {"name": "other", "more": "x"}]


CALLS: dict[str, list[dict[str, Any]]] = {
    "null content": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "no content": [{"role": "assistant", "tool_calls": [CALL]}],
    "arguments as JSON": [
        {
            "role": "assistant",
            "tool_calls": [{**CALL, "function": {"name": "lookup", "arguments": '{"topic": "whale"}'}}],
        }
    ],
    "calls as JSON": [{"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])}],
    "bare calls": [{"role": "assistant", "tool_calls": [CALL["function"]]}],
    "the older form": [{"role": "assistant", "content": None, "function_call": CALL["function"]}],
    "a role of its own": [{"from": "function_call", "value": json.dumps(CALL["function"])}],
    "parts": [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "name": "lookup", "input": {"topic": "whale"}}],
        }
    ],
}


@pytest.mark.parametrize("shape", CALLS)
def test_tool_calls_are_kept_and_written_out(shape: str) -> None:
    row = _row({"messages": CALLS[shape]})
    assert row.messages == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert row.content == 'assistant: lookup({"topic": "whale"})'
    assert not row.empty


def test_an_empty_list_of_calls_is_none(tmp_path: Path) -> None:
    """Templates that ask whether there are ``tool_calls`` would take it for calls, and refuse or fail."""
    messages = [{"role": "assistant", "content": "a", "tool_calls": []}]
    assert _row({"messages": messages, "tools": []}).messages == [{"role": "assistant", "content": "a"}]
    assert _row({"messages": messages, "tools": []}).tools is None


PARTS: dict[str, tuple[Any, str]] = {
    "an answer that is data": ({"temperature": 22, "unit": "C"}, '{"temperature": 22, "unit": "C"}'),
    "data with a text": ({"text": "warm", "degrees": 22}, '{"text": "warm", "degrees": 22}'),
    "a list of data": ([{"title": "whale"}, {"title": "tide"}], '{"title": "whale"}\n{"title": "tide"}'),
    "JSON in a part": ([{"type": "json", "json": {"found": 3}}], '{"json": {"found": 3}}'),
    "calls of other makers": (
        [{"toolUse": {"name": "lookup", "input": {"topic": "whale"}}}],
        '{"toolUse": {"name": "lookup", "input": {"topic": "whale"}}}',
    ),
    "an answer in parts": (
        [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "small tide"}]}],
        "small tide",
    ),
    "an answer in data": (
        [{"type": "tool_result", "content": {"temperature": 22}}],
        '{"temperature": 22}',
    ),
    "thoughts in parts": (
        [{"type": "thinking", "thinking": [{"type": "text", "text": "fathom"}]}, {"text": "kitten"}],
        "fathom\nkitten",
    ),
    "thoughts as text": ([{"type": "reasoning", "text": "fathom"}, {"text": "kitten"}], "fathom\nkitten"),
    "a summary of thoughts": (
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "fathom"}]}, {"text": "kitten"}],
        "fathom\nkitten",
    ),
    "a document": (
        [{"type": "document", "title": "Tides", "source": {"type": "text", "data": "of the sea"}}],
        "Tides\nof the sea",
    ),
    "what has no words": (
        [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
            {"type": "input_audio", "input_audio": {"data": "aGk="}},
            {"type": "file", "file": {"file_data": "aGk="}},
            {"type": "document", "source": {"type": "base64", "data": "aGk="}},
            {"image": "a.png"},
            {"type": "text", "text": None, "index": 0},
            {"type": "redacted_thinking", "data": "aGk="},
            {"text": "kitten", "thinking": None},
        ],
        "kitten",
    ),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name, (content, _) in PARTS.items()
        for form in ("list", "JSON", *(["table"] if isinstance(content, list) else []))
    ],
)
def test_no_words_of_a_message_go_unread(tmp_path: Path, name: str, form: str) -> None:
    content, wanted = PARTS[name]
    messages: Any = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    if form == "table":  # every part with the keys of all
        messages[0]["content"] = [{"type": "text", "text": "hi"}]
        pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "c.parquet")
        (row,) = open_corpus(tmp_path / "c.parquet")
    else:
        row = _row({"messages": json.dumps(messages) if form == "JSON" else messages})
    assert row.content == f"user: hi\nassistant: {wanted}"


def test_conversations_in_strings_are_read_or_refused() -> None:
    """As JSON, as Python prints them (pandas' to_csv), or not at all: never as their own source."""
    for written in (json.dumps(PLAIN), json.dumps(PLAIN, indent=1), str(PLAIN), f"\n {PLAIN}"):
        assert _row({"messages": written}).messages == PLAIN
        assert _row({"said": {"messages": written}}, text_column="said.messages").messages == PLAIN
        assert _row({"messages": json.dumps(written)}).messages == PLAIN, "written as JSON twice"
    row = _row({"messages": str(PLAIN).replace("tail", r"t\d")})  # which Python warns of
    assert row.content == "user: which t\\d\nassistant: the kitten"
    for empty in ("[]", " null ", ""):
        (row, _) = open_corpus([{"messages": empty}, {"text": "x"}])
        assert row.empty
        assert _row({"messages": empty, "prompt": "a", "completion": "b"}).content == "a\n\nb"
    for broken, words in (
        (str(PLAIN).replace("}, {", "}\n {"), "is no JSON"),  # as numpy prints an array of objects
        (f"array({PLAIN}, dtype=object)", "is no JSON"),
        (json.dumps(PLAIN)[:-4], "is no JSON"),
        ('[{"speaker": "a", "text": "b"}]', r"has the keys \['speaker', 'text'\]"),
    ):
        with pytest.raises(InputError, match=rf"rows:0: .*column 'messages'.*{words}|{words}"):
            _row({"messages": broken})
    for text in ("[1, 2]", '["a", "b"]', "{'a': 1}", "[{'role': ", "[]"):
        assert _row({"answer": text, "question": "q"}).content == f"q\n\n{text}"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_and_names_are_kept_and_written_out(key: str) -> None:
    row = _row({"messages": [{"role": "assistant", "content": "42", key: "six by seven", "name": "deep"}]})
    assert row.messages is not None
    assert row.messages[0]["reasoning_content"] == "six by seven"
    assert row.content == "assistant deep: six by seven\n42"
    parts = [{"type": "thinking", "thinking": "six by seven"}, {"type": "text", "text": "42"}]
    assert _row({"messages": [{"role": "assistant", "content": parts}]}).content.endswith("six by seven\n42")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tools: tools,
        json.dumps,
        lambda tools: json.dumps(json.dumps(tools)),
        str,
        lambda tools: ["", *(json.dumps(tool) for tool in tools)],
    ],
)
def test_tools_and_a_system_prompt_beside_a_conversation(wrap: Any) -> None:
    tools = [{"type": "function", "function": {"name": "lookup"}}]
    row = _row({"conversations": PLAIN, "tools": wrap(tools), "system": "be brief"})
    assert row.tools == tools
    assert row.messages == [{"role": "system", "content": "be brief"}, *PLAIN]
    assert row.content.startswith(
        'tool: {"type": "function", "function": {"name": "lookup"}}\nsystem: be brief\n'
    )
    own = [{"role": "system", "content": "its own"}, *PLAIN]
    assert _row({"messages": own, "system": "be brief"}).messages == own


def test_roles_are_known_under_the_names_that_data_sets_have_for_them() -> None:
    names = ["System", "Human", "function_call", "observation", "GPT", "prompter", "Assistant", "critic"]
    turns = [{"from": name, "value": "w"} for name in names]
    wanted = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "critic"]
    messages = _row({"conversations": turns}).messages
    assert messages is not None
    assert [message["role"] for message in messages] == wanted


def test_pairs_of_columns_are_read_without_being_named() -> None:
    assert _row({"prompt": "p", "completion": "c"}).content == "p\n\nc"
    assert _row({"instruction": "i", "input": "", "output": "o"}).content == "i\n\no"
    assert _row({"instruction": "i", "input": "n", "output": "o"}).content == "i\n\nn\n\no"
    assert _row({"question": "q", "answer": 42}).content == "q\n\n42"
    turns = _row({"prompt": PLAIN[:1], "completion": PLAIN[1:], "tools": [CALL], "system": "s"})
    assert turns.messages == [{"role": "system", "content": "s"}, *PLAIN]
    assert turns.tools == [CALL]


def test_several_columns_dotted_names_and_lists() -> None:
    record = {"a": "one", "b": None, "c": ["two", None, "three"], "d": {"e": {"f": "four"}}, "g.h": "five"}
    assert _row(record, text_column="a,b,c").content == "one\n\ntwo\nthree"
    assert _row(record, text_column=["d.e.f", "a"]).content == "four\n\none"
    assert _row(record, text_column="g.h").content == "five"
    assert _row(record, text_column="d.e.f", id_column="a").id == "one"
    assert _row({"k": [{"t": "x"}]}, text_column="k.0.t").content == "x"
    chat = {"doc": {"turns": PLAIN, "tools": [CALL]}}
    nested = _row(chat, text_column="doc.turns")
    assert (nested.messages, nested.tools) == (PLAIN, [CALL])


def test_nested_columns_of_tables(tmp_path: Path) -> None:
    rows = [{"doc": {"text": "inner", "lang": "en"}, "meta": {"id": "x1"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    corpus = open_corpus(tmp_path / "c.parquet", text_column="doc.text", id_column="meta.id")
    assert [(row.id, row.content) for row in corpus.rows(records=False)] == [("x1", "inner")]
    (row,) = corpus.rows(columns=["doc.lang", "absent"])
    assert row.record == {"doc.lang": "en"}
    with pytest.raises(InputError, match=r"no column 'text'; there are 'doc', 'meta'"):
        list(open_corpus(tmp_path / "c.parquet"))


DOTTED: dict[str, tuple[dict[str, Any], str]] = {
    "a key with a dot": ({"a": {"b.c": "x"}}, "a.b.c"),
    "a column with a dot": ({"a.b": {"c": "x"}}, "a.b.c"),
    "a column called so": ({"a.b.c": "x", "a": {"b": {"c": "y"}}}, "a.b.c"),
    "both have dots": ({"a.b": {"c.d": {"e": "x"}}}, "a.b.c.d.e"),
    "an item": ({"a": ["y", "x"]}, "a.1"),
    "an item's member": ({"a": [{"b.c": "x"}]}, "a.0.b.c"),
    "an item within": ({"a": {"b.c": ["y", "x"], "d": 1}}, "a.b.c.1"),
    "another of that beginning": ({"a": {"b": {"d": "y"}, "b.c": "x"}, "a.b": {"d": "y"}}, "a.b.c"),
}


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("name", DOTTED)
def test_keys_may_hold_dots_themselves(tmp_path: Path, name: str, kind: str) -> None:
    record, column = DOTTED[name]
    path = _put(tmp_path / f"c{kind}", {"id": "r", **record})
    corpus = open_corpus(path, text_column=column)
    assert [(row.id, row.content) for row in corpus.rows(records=False)] == [("r", "x")]
    (row,) = open_corpus(path, text_column=column, id_column=column).rows(columns=[column])
    assert (row.id, row.record) == ("x", {column: "x"})


AMBIGUOUS: dict[str, tuple[dict[str, Any], str]] = {
    "within one column": ({"a": {"b": {"c": "x"}, "b.c": "y"}}, "'b.c' in 'a' or 'c' in 'b' in 'a'"),
    "in two columns": ({"a": {"b.c": "x"}, "a.b": {"c": "y"}}, "'c' in 'a.b' or 'b.c' in 'a'"),
    "one is null": ({"a": {"b.c": None}, "a.b": {"c": "y"}}, "'c' in 'a.b' or 'b.c' in 'a'"),
}


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_name_that_leads_to_two_places_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    record, ways = AMBIGUOUS[name]
    path = _put(tmp_path / f"c{kind}", {"text": "t", **record})
    refused = re.escape(f"column 'a.b.c' can be {ways}; rename one")
    with pytest.raises(InputError, match=rf"c{kind}:(row )?[01]: {refused}"):
        open_corpus(path, text_column="a.b.c").scan()
    with pytest.raises(InputError, match=refused):
        open_corpus(path, id_column="a.b.c").scan()
    with pytest.raises(InputError, match=refused):
        list(open_corpus(path).rows(columns=["a.b.c"]))
    template = "{{ row['a.b']['c'] if 'a.b' in row else row['a']['b.c'] }}"
    assert open_corpus(path, text_template=template).scan().rows == 1


def test_what_stands_beside_a_conversation_under_a_dotted_key(tmp_path: Path) -> None:
    record = {"a": {"b.turns": PLAIN, "system": "inner"}, "system": "outer"}
    for kind in (".jsonl", ".parquet"):
        corpus = open_corpus(_put(tmp_path / f"c{kind}", record), text_column="a.b.turns")
        (row,) = corpus.rows(records=False)
        assert row.messages == [{"role": "system", "content": "inner"}, *PLAIN]


def test_a_template_makes_the_text(tmp_path: Path) -> None:
    template = "{{ a }}: {% for x in b %}{{ x }},{% endfor %}{{ none_here }}"
    record = {"a": "A", "b": ["x", "y"], "none_here": None, "text": "not this"}
    assert _row(record, text_template=template).content == "A: x,y,"
    assert _row({"odd name": 3}, text_template="{{ row['odd name'] }}").content == "3"
    with pytest.raises(InputError, match=r"rows:0: the text template fails \('a' is undefined\).*default"):
        _row({"b": []}, text_template=template)
    with pytest.raises(InputError, match="no valid Jinja"):
        open_corpus([record], text_template="{{ a")  # before a row is read
    with pytest.raises(InputError, match="the text template fails"):  # a sandbox: no way out of the row
        _row(record, text_template="{{ a.__class__.__mro__ }}")
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "c.parquet")
    assert (
        next(open_corpus(tmp_path / "c.parquet", text_template=template).rows(records=False)).content
        == "A: x,y,"
    )


def test_what_is_read_is_part_of_the_fingerprint() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"text_column": "a"},
        {"text_column": "a,b"},
        {"text_template": "{{ a }}"},
    ]
    ways += [{"id_column": None}]
    prints = [json.dumps(open_corpus([{"a": "x"}], **way).fingerprint()) for way in ways]
    assert len(set(prints)) == len(ways)


def test_targets_without_the_columns_named_are_read_by_the_usual_ones() -> None:
    lenient = {"text_column": "doc.text", "id_column": "key", "lenient": True}
    assert [(row.id, row.content) for row in open_corpus([{"text": "seed"}], **lenient)] == [
        ("rows:0", "seed")
    ]
    named = open_corpus([{"doc": {"text": "inner"}, "key": "k", "text": "outer"}], **lenient)
    assert [(row.id, row.content) for row in named] == [("k", "inner")]
    templated = open_corpus([{"text": "seed"}], text_template="{{ a }}", lenient=True)
    assert [row.content for row in templated] == ["seed"]


def test_text_that_looks_like_a_conversation_is_text() -> None:
    said = json.dumps(PLAIN)
    assert _row({"text": said}).text == said
    assert _row({"messages": '{"no": "message"}'}).text == '{"no": "message"}'
    assert _row({"messages": "[broken"}).text == "[broken"


def test_rows_before_the_first_with_text_are_only_empty(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "c.jsonl", {"note": "header"}, {"note": "more"}, {"text": "a"})
    assert [row.text for row in open_corpus(path)] == ["", "", "a"]
    with pytest.raises(InputError, match=r"c\.jsonl:1: no column 'txet'; there are 'note'"):
        list(open_corpus(path, text_column="txet"))


def test_a_misnamed_column_is_noticed_before_the_end(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "c.jsonl", *({"body": "x"} for _ in range(10_050)))
    seen: list[str] = []
    with pytest.raises(InputError, match="no column 'text'"):
        seen.extend(row.id for row in open_corpus(path))
    assert len(seen) == 9_999


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ({"role": ["user"], "content": ["a", "b"]}, "holds an object"),
        ([{"role": "user", "content": 7}], r"message 1 .*its content is a number \(7\)"),
        ([{"role": "user", "content": [7]}], "a part of its content is a number"),
        ([{"role": None, "content": "x"}], r"has the keys \['content', 'role'\]"),
        ([{"role": "user", "content": "x"}, 5], "message 2 .*is a number"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        _row({"messages": messages})
    with pytest.raises(InputError, match="column 'tools' holds"):
        _row({"messages": PLAIN, "tools": "broken ["})

"""What users of other libraries have reported of their data and models, tried here.

Each test names the report that it re-enacts. Fails if a row is lost or changed that way, or read otherwise
than it says; if two columns that don't go together are found late or aren't named; if a search never ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finescope.activations import ActivationTap
from finescope.activations.rendering import Renderer
from finescope.compat import NearestNeighbors, community_detection
from finescope.corpus import Row, copy_rows, open_corpus
from finescope.errors import InputError
from support.tiny_models import make_model, make_tokenizer


def _lines(path: Path, rows: list[dict[str, Any]], before: bytes = b"") -> Path:
    path.write_bytes(before + "".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def _copied(source: Path, ending: str) -> list[dict[str, Any]]:
    corpus = open_corpus(source)
    count = corpus.scan(output=ending).rows
    target = source.parent / f"copied{ending}"
    copy_rows(target, corpus, range(count))
    if ending == ".parquet":
        return pq.read_table(target, partitioning=None).to_pylist()
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_one_row_has_a_nested_key_more(tmp_path: Path) -> None:
    """huggingface/datasets#6162: RedPajama's GitHub part fails over one ``symlink_target``."""
    rows = [{"text": "a", "meta": {"size": 1}}, {"text": "b", "meta": {"size": 2, "symlink_target": "c"}}]
    path = _lines(tmp_path / "in.jsonl", rows)
    assert _copied(path, ".jsonl") == rows
    rows[0]["meta"]["symlink_target"] = None
    assert _copied(path, ".parquet") == rows


def test_a_byte_order_mark_changes_no_row(tmp_path: Path) -> None:
    """huggingface/datasets#8241: with a BOM, objects get each other's keys, as nulls."""
    rows = [{"text": "a", "meta": {"x": 1}}, {"text": "b", "meta": {"y": [2]}}]
    assert _copied(_lines(tmp_path / "in.jsonl", rows, b"\xef\xbb\xbf"), ".jsonl") == rows


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_whole_numbers_beside_nulls_stay_whole(tmp_path: Path, ending: str) -> None:
    """huggingface/datasets#8365, aws/aws-sdk-pandas#1115: they come out as doubles, past 2**53 as others."""
    rows = [{"text": "a", "n": 2**53 + 1}, {"text": "b", "n": None}, {"text": "c", "n": 5}]
    for source in (_lines(tmp_path / "in.jsonl", rows), tmp_path / "in.parquet"):
        if source.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        found = _copied(source, ending)
        assert found == rows
        assert [type(row["n"]) for row in found] == [int, type(None), int]


def test_a_key_that_comes_late_is_kept(tmp_path: Path) -> None:
    """ClickHouse/ClickHouse#120348: keys that come after the rows that types are guessed from are lost."""
    rows = [{"text": f"row {at}", **({"late": at} if at > 25_000 else {})} for at in range(25_010)]
    found = _copied(_lines(tmp_path / "in.jsonl", rows), ".parquet")
    assert [row["late"] for row in found] == [row.get("late") for row in rows]


def test_a_late_value_of_another_kind_is_refused_before_any_work(tmp_path: Path) -> None:
    """apache/texera#6279, huggingface/datasets#5827: its row vanishes, or the load dies half way."""
    rows = [{"text": f"row {at}", "n": "Nan" if at == 2_000 else at} for at in range(2_500)]
    path = _lines(tmp_path / "in.jsonl", rows)
    assert _copied(path, ".jsonl") == rows
    with pytest.raises(
        InputError, match=r"in\.jsonl: column 'n' can't be written as Parquet .*--format jsonl"
    ):
        open_corpus(path).scan(output=".parquet")


def test_a_column_that_is_text_in_one_file_and_objects_in_another(tmp_path: Path) -> None:
    """huggingface/datatrove#350: finemath's ``metadata`` is JSON in a string, others' is an object."""
    (tmp_path / "in").mkdir()
    for name, value in (("a", '{"k": 1}'), ("b", {"k": 1})):
        pq.write_table(pa.table({"text": [name], "metadata": [value]}), tmp_path / "in" / f"{name}.parquet")
    corpus = open_corpus(tmp_path / "in")
    with pytest.raises(
        InputError, match=r"'metadata' is string in a\.parquet and struct<k: int64> in b\.parquet"
    ):
        corpus.scan(output=".parquet")
    corpus.scan(output=".jsonl")
    copy_rows(tmp_path / "out.jsonl", corpus, [1, 0])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["metadata"] for line in lines] == [{"k": 1}, '{"k": 1}']


def test_a_partition_that_is_a_column_of_its_files_too(tmp_path: Path) -> None:
    """apache/arrow#43574, pola-rs/polars#12041: its two types can't be merged, and nothing is read."""
    for name in ("9319", "007"):
        folder = tmp_path / "in" / f"source_id={name}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": [name], "source_id": [name]}), folder / "part.parquet")
    assert _copied(tmp_path / "in", ".parquet") == [
        {"text": name, "source_id": name} for name in ("007", "9319")
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_communities_of_equal_rows_end(rows: int) -> None:
    """huggingface/sentence-transformers#1800 and #1670: with all rows near to each other it ran forever."""
    equal = torch.ones(rows, 8)
    assert community_detection(equal, min_community_size=rows) == [list(range(rows))]
    assert community_detection(equal, min_community_size=rows + 1) == []


def test_a_tokenizer_that_pads_on_the_left_changes_no_position() -> None:
    """ndif-team/nnsight#672, TransformerLensOrg/TransformerLens#1609: GPT-2's shorter texts are moved."""
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w1"]
    rows = [Row(str(at), text) for at, text in enumerate(texts)]
    found = []
    for side in ("left", "right"):
        tap = ActivationTap(make_model("gpt2"), "h.1", tokenizer=make_tokenizer(padding_side=side))
        found.append([document.activations for document in tap.run(rows)])
        alone = [next(tap.run([row])).activations for row in rows]
        assert all(map(torch.equal, found[-1], alone))
    assert all(map(torch.equal, *found))


def test_tools_that_are_the_word_null_are_none() -> None:
    """PrimeIntellect-ai/prime-rl#3382: exported with json.dumps, they are a string that isn't empty."""
    messages = [{"role": "user", "content": "hi"}]
    for tools in ("null", "[]", "", None):
        (row,) = open_corpus([{"messages": messages, "tools": tools}])
        assert (row.tools, row.content) == (None, "user: hi")


def test_members_that_some_messages_lack(tmp_path: Path) -> None:
    """hiyouga/LLaMA-Factory#2571: AgentInstruct's ``loss`` is true or null, and its rows were refused."""
    turns = [
        {"from": "human", "loss": None, "value": "on the bed 1, you see a laptop"},
        {"from": "gpt", "loss": True, "value": "ACTION: go to bed 1"},
    ]
    pq.write_table(pa.Table.from_pylist([{"conversations": turns}]), tmp_path / "in.parquet")
    (row,) = open_corpus(tmp_path / "in.parquet")
    assert row.content == "user: on the bed 1, you see a laptop\nassistant: ACTION: go to bed 1"
    assert row.messages is not None
    assert "loss" not in row.messages[0]
    assert row.messages[1]["loss"] is True
    assert _copied(tmp_path / "in.parquet", ".jsonl") == [{"conversations": turns}]


def test_what_a_string_holds_is_no_schema(tmp_path: Path) -> None:
    """huggingface/datasets#7664: a body that quotes column types was taken for them."""
    body = "(...) ,action: string, datetime: timestamp[s], author: string, (...) Pandas version: 1.3.4"
    rows = [
        {"action": "opened", "datetime": "2025-07-01T08:00:00", "body": body, "text": body, "author": None}
    ]
    for ending in (".jsonl", ".parquet"):
        assert _copied(_lines(tmp_path / "in.jsonl", rows), ending) == rows


def test_rows_that_are_no_objects_are_named_and_those_without_text_counted(tmp_path: Path) -> None:
    """JH-DSAI/text-detection-baselines#35: both went without a word."""
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"text": "a"}, {"label": 1}, {"text": None}], indent=1))
    stats = open_corpus(path).scan()
    assert (stats.rows, stats.empty) == (3, 2)
    path.write_text('[{"text": "a"},\n"b"]')
    with pytest.raises(InputError, match=r"in\.json:2: .*an element is a JSON str"):
        open_corpus(path).scan()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_null_among_partitions_of_numbers(tmp_path: Path, ending: str) -> None:
    """dask/dask#9435: Spark writes Age=__HIVE_DEFAULT_PARTITION__ beside Age=20, and nothing is read."""
    for age in ("20", "25", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / "in" / f"Age={age}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"text": [age[:2]]}), folder / "part.parquet")
    found = _copied(tmp_path / "in", ending)
    assert [(row["text"], row["Age"]) for row in found] == [("20", 20), ("25", 25), ("__", None)]


def test_files_beside_partitions_and_partitions_without_a_value(tmp_path: Path) -> None:
    """apache/datafusion#18083: which value do rows in the folder above have, and those of ``year=``?"""
    for name in ("year=2002/a", "year=/b", "c"):
        path = tmp_path / "in" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [path.stem]}), path)
    found = {row["text"]: row["year"] for row in _copied(tmp_path / "in", ".parquet")}
    assert found == {"a": "2002", "b": "", "c": None}


def test_the_names_of_classes_stay_beside_files_that_have_none(tmp_path: Path) -> None:
    """huggingface/datasets#3111: put together with other columns, ClassLabel became a plain number."""
    classes = {"names": ["POS", "NEG"], "_type": "ClassLabel"}
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": classes}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a"], "label": [0], "pred": [1]}), tmp_path / "in" / "a.parquet")
    noted = pa.table({"text": ["b"], "label": [1]}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(noted, tmp_path / "in" / "b.parquet")
    assert [row["label"] for row in _copied(tmp_path / "in", ".parquet")] == [0, 1]
    note = json.loads(pq.read_schema(tmp_path / "copied.parquet").metadata[b"huggingface"])
    assert note["info"]["features"]["label"] == classes


def test_every_turn_of_a_conversation_is_read_with_the_system_prompt_beside_it() -> None:
    """Tencent/AngelSlim#345: turns after the second were cut off, and ``system`` was a KeyError."""
    names = ["human", "gpt"] * 3
    turns = [{"from": name, "value": f"turn {at}"} for at, name in enumerate(names)]
    (row,) = open_corpus([{"conversations": turns, "system": "brief"}])
    assert row.messages is not None
    assert [message["content"] for message in row.messages] == ["brief", *(f"turn {at}" for at in range(6))]


def test_calls_and_answers_of_tools_have_roles_of_their_own() -> None:
    """NVIDIA-NeMo/Automodel#2321: ``tool_call`` and ``tool_response`` were plain text, or refused."""
    turns = [
        {"role": "user", "content": "weather?"},
        {"role": "tool_call", "content": '{"name": "look", "arguments": {"city": "Rome"}}'},
        {"role": "tool_response", "content": '{"sky": "clear"}'},
        {"role": "assistant", "content": "clear"},
    ]
    (row,) = open_corpus([{"messages": turns}])
    assert row.messages is not None
    assert [message["role"] for message in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"city": "Rome"}}


@pytest.mark.parametrize("written", ["a string", "parts"])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    ],
)
def test_templates_that_want_a_string_and_those_that_want_parts(template: str, written: str) -> None:
    """abetlen/llama-cpp-python#2324, vllm-project/vllm#9358: Python's print of a list, or nothing at all."""
    content = "w1 w2" if written == "a string" else [{"type": "text", "text": "w1 w2"}]
    (row,) = open_corpus([{"messages": [{"role": "user", "content": content}]}])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert Renderer(tokenizer).text(row) == "w1 w2"


def test_communities_are_whole_where_similarities_are_the_threshold() -> None:
    """huggingface/sentence-transformers#3899: of 200 equal rows, a community of 50."""
    assert community_detection(torch.ones(200, 16), threshold=1.0, min_community_size=10) == [
        list(range(200))
    ]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_row_is_at_no_distance_from_itself(metric: str) -> None:
    """scikit-learn/scikit-learn#27531: 1e-8 for some rows; scipy/scipy#5208: cosine distances below 0."""
    rows = np.random.default_rng(1337).random((200, 17))
    rows[:2, :3], rows[:2, 3:] = [[-0.05634, 0.08516, 0.07541], [0.07924, -0.01755, 0.12372]], 0
    distances, found = NearestNeighbors(n_neighbors=1, metric=metric).fit(rows).kneighbors(rows)
    assert distances.min() == 0
    assert distances.max() <= (0 if metric == "euclidean" else 1e-15)
    assert found[:, 0].tolist() == list(range(200))

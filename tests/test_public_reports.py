"""What users of other libraries have reported of their data and models, tried here.

Each test names the report that it re-enacts. Fails if a row is lost or changed that way, or read otherwise
than it says; if two columns that don't go together are found late or aren't named; if a search never ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finescope.activations import ActivationTap
from finescope.compat import community_detection
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

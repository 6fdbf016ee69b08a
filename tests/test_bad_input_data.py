"""Bad corpora must be refused with the thing, the place and the remedy, before they cost an hour of a model.

Every case is something users do: a misspelt column, a truncated download, a JSON array, ids that repeat.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from finescope import hub
from finescope.corpus import ids, open_corpus, write_rows
from finescope.errors import InputError


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def _refused(match: str, source: object, **options: object) -> str:
    with pytest.raises(InputError, match=match) as caught:
        list(open_corpus(source, **options))  # type: ignore[arg-type]
    return str(caught.value)


def test_missing_column_names_those_there_are_and_the_nearest(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.jsonl", '{"txt": "a", "label": 1}')
    message = _refused(r"c\.jsonl:1: no column 'text'; there are 'txt', 'label'; did you mean 'txt'\?", path)
    assert "\n" not in message
    _refused("no column 'key'; there are 'txt', 'label'", path, text_column="txt", id_column="key")
    write_rows(tmp_path / "c.parquet", [{"txt": "a"}])
    _refused(r"c\.parquet: no column 'text'.*did you mean 'txt'", tmp_path / "c.parquet")


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.jsonl", '{"text": "a"}', "", '{"text": "b"', '{"text": "c"}')
    _refused(r"c\.jsonl:3: broken JSON.*column 13.*\{\"text\": \"b\"", path)


def test_not_an_object_and_broken_arrays(tmp_path: Path) -> None:
    _refused(r"c\.jsonl:1: holds a JSON str", _write(tmp_path / "c.jsonl", '"text"'))
    cases = {
        '[{"text": "a"}, 7]': "1: broken JSON, an element is a JSON int, not an object: 7",
        '[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]': "3: broken JSON, a comma is missing",
        '[{"text": "a"},\n{"text": "b"': "2: broken JSON, Expecting ',' delimiter",
        '[{"text": "a"},\n': "3: broken JSON, the array has no end; the file is truncated",
        '[{"text": "a"}]\n{}': "2: broken JSON, something stands after the array's end",
        '{"text":\n "a",\n "b": }': '3: broken JSON, Expecting value: "b": }',
        '[{"text": "a}]': "1: broken JSON, Invalid control character",
    }
    for text, match in cases.items():
        _refused(f"c.json:{match}", _write(tmp_path / "c.json", text))
    (tmp_path / "c.json").write_bytes(b'[{"text": "\xe9"}]')
    _refused(r"c\.json: not UTF-8", tmp_path / "c.json")


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    _refused(r"c\.jsonl:2: not UTF-8 \(byte 14", path)


@pytest.mark.parametrize("value", [3, 1.5, True, {"a": 1}])
def test_text_that_is_no_string(value: object) -> None:
    _refused(r"rows:1: column 'text' holds .* not a string", [{"text": "a"}, {"text": value}])


@pytest.mark.parametrize(
    "value", [["hi"], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}]]
)
def test_broken_conversations(value: list) -> None:
    _refused(r"rows:0: message 1 in column 'messages'", [{"messages": value}])


@pytest.mark.parametrize("value", [1.5, True, ["a"]])
def test_broken_ids(value: object) -> None:
    _refused("rows:0: id column 'id' holds", [{"text": "a", "id": value}])


def test_empty_corpora(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n\n")
    _refused(r"c\.jsonl has no rows", path)
    with pytest.raises(InputError, match="empty list"):
        open_corpus([])
    _refused("none of its 2 rows has text", [{"text": ""}, {"text": None}])


def test_rows_without_text_keep_their_place_and_are_counted() -> None:
    corpus = open_corpus([{"text": "a"}, {"text": None}, {"text": " \n"}, {"other": 1}, {"text": "b"}])
    rows = list(corpus)
    assert [row.empty for row in rows] == [False, True, True, True, False]
    assert [row.text for row in rows] == ["a", "", " \n", "", "b"]
    assert corpus.stats is not None
    assert (corpus.stats.rows, corpus.stats.empty, corpus.stats.first_empty) == (5, 3, "rows:1")
    _refused("rows:1: the row has no text", [{"text": "a"}, {"text": ""}], empty="error")
    chat = open_corpus([{"messages": []}, {"messages": [{"role": "user", "content": "x"}]}])
    assert [row.empty for row in chat] == [True, False]


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.jsonl", *(json.dumps({"id": n % 90, "text": "t"}) for n in range(100)))
    _refused(r"id '0' occurs twice: at c\.jsonl:1 and at c\.jsonl:91", path)


def test_duplicate_ids_are_found_across_the_blocks_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_BLOCK", 8)
    records = [{"id": f"r{n}", "text": "t"} for n in range(100)]
    assert len(list(open_corpus(records))) == 100
    for first, second in ((0, 99), (3, 4), (17, 50), (88, 97)):
        broken = [dict(record) for record in records]
        broken[second]["id"] = broken[first]["id"]
        _refused(f"'r{first}' occurs twice: at rows:{first} and at rows:{second}", broken)


def test_equal_hashes_of_different_ids_are_no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneHash:
        def __init__(self, *_: object, **__: object) -> None: ...

        def digest(self) -> bytes:
            return b"\0" * 8

    monkeypatch.setattr(ids.hashlib, "blake2b", OneHash)
    assert len(list(open_corpus([{"id": f"r{n}", "text": "t"} for n in range(5)]))) == 5


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    write_rows(path, [{"id": f"r{n}", "text": f"text {n * 7919 % 1009}"} for n in range(5000)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"garbage" * 100)
    message = _refused(name.replace(".", r"\."), path)
    assert "truncated" in message


def test_truncated_gzip_gives_the_line_it_broke_at(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    lines = [json.dumps({"text": str(hash((n, "x")))}).encode() + b"\n" for n in range(3000)]
    path.write_bytes(gzip.compress(b"".join(lines))[:-4000])
    rows = iter(open_corpus(path))
    seen: list[str] = []
    with pytest.raises(InputError, match=r"c\.jsonl\.gz:\d+: can't be unpacked") as caught:
        seen.extend(row.place for row in rows)  # list.extend keeps what came before the error
    assert len(seen) > 100
    assert f"gz:{len(seen) + 1}:" in str(caught.value)


def test_zstd_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "a"}\n'))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    _refused("pip install zstandard", path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(table, tmp_path / "c.parquet")
    _refused(r"c\.parquet: two columns are called 'text'; rename one", tmp_path / "c.parquet")
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as stream:
        stream.write_table(table)
    _refused(r"c\.arrow: two columns are called 'text'; rename one", tmp_path / "c.arrow")


@pytest.mark.parametrize("name", ["c.jsonl", "c.json"])
def test_numbers_that_python_does_not_read_are_named(tmp_path: Path, name: str) -> None:
    number = "9" * 5000
    rows = f'{{"text": "a"}}\n{{"text": "b", "n": {number}}}'
    (tmp_path / name).write_text(rows if name == "c.jsonl" else f"[{rows.replace(chr(10), ',' + chr(10))}]")
    _refused(rf"{name.replace('.', chr(92) + '.')}:2: .*more digits than Python reads", tmp_path / name)


@pytest.mark.parametrize("name", ["c.json.bz2", "c.jsonl.xz"])
def test_packings_that_are_only_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"garbage" * 100)
    assert "can't be unpacked" in _refused(name.replace(".", r"\."), tmp_path / name)
    with pytest.raises(InputError, match="can't write this format"):
        write_rows(tmp_path / name, [{"text": "a"}])


def test_nothing_there_and_unknown_formats(tmp_path: Path) -> None:
    _write(tmp_path / "corpus.jsonl", '{"text": "a"}')
    _refused("did you mean .*corpus.jsonl", tmp_path / "corpsu.jsonl")
    _refused("nor does its folder", tmp_path / "no" / "such.jsonl")
    _refused(r"the format \.txt isn't read; wanted: \.jsonl, ", _write(tmp_path / "c.txt", "text"))
    (tmp_path / "empty").mkdir()
    _refused("folder without corpus files", tmp_path / "empty")
    with pytest.raises(InputError, match=r"end the name in \.jsonl"):
        write_rows(tmp_path / "out.csv", [{"a": 1}])


def test_a_dataset_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    _refused(r"pip install 'finescope\[datasets\]'", "hf:someone/something")
    _refused("hf:NAME:CONFIG:SPLIT", "hf:a:b:c:d")


def test_without_a_hub_datasets_of_others_may_ask_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[bool] = []

    def load_dataset(*_: object, **__: object) -> None:
        during.append(config.HF_HUB_OFFLINE)
        raise OSError("not in the cache")

    config = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(config=config, load_dataset=load_dataset))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    _refused("only its cache was searched", "hf:someone/something")
    assert (during, config.HF_HUB_OFFLINE) == ([True], False)


def test_the_hub_is_asked_with_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)

    def stuck(*_: object, **__: object) -> None:
        time.sleep(1.5)
        raise OSError("no name server")

    monkeypatch.setattr(hub.urllib.request, "urlopen", stuck)
    hub.reachable.cache_clear()
    try:
        start = time.monotonic()
        assert hub.reachable(timeout=0.2) is False
        assert time.monotonic() - start < 1
    finally:
        hub.reachable.cache_clear()


def test_mixed_types_and_late_columns_in_parquet_are_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mixed types need \.jsonl"):
        write_rows(tmp_path / "c.parquet", [{"a": 1}, {"a": "x"}])
    late = [*({"a": n} for n in range(10_000)), {"a": 1, "b": 2}]
    with pytest.raises(InputError, match="row 10000 brings the new column 'b'"):
        write_rows(tmp_path / "c.parquet", late)
    assert list(tmp_path.iterdir()) == []

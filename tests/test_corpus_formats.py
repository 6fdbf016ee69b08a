"""A corpus must read the same from every format, stream, and say where a broken row is.

Fails if: a format drops, reorders or renames rows; a line number in an error is wrong; a conversation is not
recognised; output changes the input's columns.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import feather

from finescope.corpus import open_corpus, write_rows
from finescope.errors import InputError

RECORDS = [
    {"id": f"r{n}", "text": f"Text № {n}\nsecond line", "stars": n, "tags": ["a", str(n)]}
    for n in range(2500)
]


def _lines(records: list[dict]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def _make(path: Path, records: list[dict]) -> Path:
    data = _lines(records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data))
    elif path.suffix == ".zst":
        # Two frames, as `cat a.zst b.zst` makes them: both must be read.
        half = data.index(b"\n", len(data) // 2) + 1
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(data[:half]) + pack(data[half:]))
    elif path.suffix in (".bz2", ".xz"):
        pack = {".bz2": bz2.compress, ".xz": lzma.compress}[path.suffix]
        half = data.index(b"\n", len(data) // 2) + 1
        path.write_bytes(pack(data[:half]) + pack(data[half:]))
    elif path.suffix == ".feather":
        feather.write_feather(pa.Table.from_pylist(records), str(path), chunksize=700)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=700)
    else:
        path.write_bytes(data)
    return path


NAMES = ["c.jsonl", "c.ndjson", "c.json", "c.jsonl.gz", "c.jsonl.zst", "c.json.bz2", "c.jsonl.xz"]
NAMES += ["c.parquet", "c.feather"]
READ_ONLY = ("c.json.bz2", "c.jsonl.xz", "c.feather")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    corpus = open_corpus(_make(tmp_path / name, RECORDS))
    rows = list(corpus)
    assert [row.id for row in rows] == [record["id"] for record in RECORDS]
    assert [row.text for row in rows] == [record["text"] for record in RECORDS]
    assert [row.record for row in rows] == RECORDS
    assert list(corpus) == rows, "a corpus can be read again"
    assert corpus.stats is not None
    assert (corpus.stats.rows, corpus.stats.empty) == (2500, 0)
    bare = list(corpus.rows(records=False))
    assert bare == rows
    assert all(row.record == {} for row in bare)


@pytest.mark.parametrize("name", ["c.jsonl", "c.parquet"])
def test_places_count_from_the_right_number(tmp_path: Path, name: str) -> None:
    rows = list(open_corpus(_make(tmp_path / name, RECORDS[:3])))
    wanted = (
        ["c.jsonl:1", "c.jsonl:2", "c.jsonl:3"]
        if name == "c.jsonl"
        else [f"c.parquet:row {n}" for n in range(3)]
    )
    assert [row.place for row in rows] == wanted


def test_blank_lines_and_a_byte_order_mark_are_skipped_but_lines_still_count(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n   \n{"text": "two"}')
    assert [(row.id, row.text, row.place) for row in open_corpus(path)] == [
        ("c:0", "one", "c.jsonl:1"),
        ("c:1", "two", "c.jsonl:4"),
    ]


def test_a_folder_a_pattern_and_a_list_read_all_files_in_order(tmp_path: Path) -> None:
    _make(tmp_path / "b.jsonl", RECORDS[10:20])
    _make(tmp_path / "a.parquet", RECORDS[:10])
    (tmp_path / "README.md").write_text("not data")
    wanted = [f"r{n}" for n in range(20)]
    assert [row.id for row in open_corpus(tmp_path)] == wanted
    assert [row.id for row in open_corpus(f"{tmp_path}/*.[jp]*")] == wanted
    assert [row.id for row in open_corpus([tmp_path / "a.parquet", tmp_path / "b.jsonl"])] == wanted
    assert [row.id for row in open_corpus(tmp_path, limit=13)] == wanted[:13]


def test_generated_ids_are_stable_and_differ_between_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        _make(tmp_path / folder / "c.jsonl", [{"text": "t"}, {"text": "u"}])
    paths = [tmp_path / "x" / "c.jsonl", tmp_path / "y" / "c.jsonl"]
    assert [row.id for row in open_corpus(paths)] == ["0/c:0", "0/c:1", "1/c:0", "1/c:1"]
    assert [row.id for row in open_corpus(paths[0])] == ["c:0", "c:1"]


def test_named_columns_and_number_ids() -> None:
    corpus = open_corpus(
        [{"body": "b", "key": 7}, {"body": "c", "key": None}], text_column="body", id_column="key"
    )
    assert [(row.id, row.text) for row in corpus] == [("7", "b"), ("rows:1", "c")]


def test_conversations_in_every_common_shape() -> None:
    plain = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    corpus = open_corpus([{"messages": plain}, {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}])
    rows = list(corpus)
    assert rows[0].messages == plain
    assert rows[0].text is None
    assert rows[0].content == "user: hi\nassistant: hello"
    assert rows[1].messages == [{"role": "user", "content": "hi"}]
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert next(iter(open_corpus([{"conversations": shared}]))).messages == plain
    assert next(iter(open_corpus([{"chat": plain}], text_column="chat"))).messages == plain
    both = next(iter(open_corpus([{"text": "t", "messages": plain}])))
    assert (both.text, both.messages) == ("t", None), "text goes before messages"


def test_a_conversation_survives_parquet(tmp_path: Path) -> None:
    plain = [{"role": "user", "content": "hi"}]
    _make(tmp_path / "c.parquet", [{"messages": plain}])
    assert next(iter(open_corpus(tmp_path / "c.parquet"))).messages == plain


def test_fingerprint_follows_contents_and_options_not_the_folder(tmp_path: Path) -> None:
    first = open_corpus(_make(tmp_path / "c.jsonl", RECORDS[:5])).fingerprint()
    (tmp_path / "moved").mkdir()
    moved = _make(tmp_path / "moved" / "c.jsonl", RECORDS[:5])
    assert open_corpus(moved).fingerprint() == first
    assert open_corpus(moved, limit=3).fingerprint() != first
    changed = [*RECORDS[:4], {**RECORDS[4], "stars": 9}]
    assert open_corpus(_make(moved, changed)).fingerprint() != first


@pytest.mark.parametrize("name", [name for name in NAMES if name not in READ_ONLY])
def test_written_rows_read_back_with_appended_columns(tmp_path: Path, name: str) -> None:
    source = open_corpus(_make(tmp_path / "in.parquet", RECORDS))
    rows = ({**row.record, "score": row.record["stars"] / 7} for row in source)
    assert write_rows(tmp_path / name, rows, source) == 2500
    back = [row.record for row in open_corpus(tmp_path / name)]
    assert back == [{**record, "score": record["stars"] / 7} for record in RECORDS]


def test_parquet_keeps_the_types_of_the_source(tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.large_string()), ("n", pa.int16()), ("maybe", pa.float32())])
    table = pa.table({"text": ["a", "b"], "n": [1, 2], "maybe": [None, None]}, schema=schema)
    pq.write_table(table, tmp_path / "in.parquet")
    source = open_corpus(tmp_path / "in.parquet")
    write_rows(tmp_path / "out.parquet", (row.record for row in source), source)
    assert pq.read_schema(tmp_path / "out.parquet").types == schema.types


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, RECORDS[:50])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_failing_iterator_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def failing():
        yield {"text": "new"}
        raise KeyboardInterrupt

    for name in ("c.jsonl", "c.jsonl.gz", "c.parquet"):
        write_rows(tmp_path / name, [{"text": "old"}])
        with pytest.raises(KeyboardInterrupt):
            write_rows(tmp_path / name, failing())
        assert [row.text for row in open_corpus(tmp_path / name)] == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "c.jsonl.gz", "c.parquet"]


def test_values_json_lacks(tmp_path: Path) -> None:
    import datetime

    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    write_rows(tmp_path / "c.jsonl", [{"text": "t", "when": when}])
    assert next(iter(open_corpus(tmp_path / "c.jsonl"))).record["when"] == "2026-01-02T03:04:05"
    with pytest.raises(InputError, match=r"column 'raw'.*parquet"):
        write_rows(tmp_path / "d.jsonl", [{"text": "t", "raw": b"\x00"}])
    assert not (tmp_path / "d.jsonl").exists()


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(RECORDS[:30])
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(tmp_path / "two")
    corpus = open_corpus(tmp_path / "one")
    assert [row.record for row in corpus] == RECORDS[:30]
    assert corpus.len_hint == 30
    assert [row.id for row in open_corpus(tmp_path / "two", split="test")] == [f"r{n}" for n in range(5)]
    with pytest.raises(InputError, match="several splits; name one of train, test"):
        list(open_corpus(tmp_path / "two"))
    with pytest.raises(InputError, match=r"no column 'txet'.*did you mean 'text'"):
        list(open_corpus(tmp_path / "one", text_column="txet"))


def test_zstd_with_a_window_as_long_as_dumps_have(tmp_path: Path) -> None:
    long = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    path = tmp_path / "dump.jsonl.zst"
    path.write_bytes(stream.compress(_lines(RECORDS[:3])) + stream.flush())
    assert [row.id for row in open_corpus(path)] == ["r0", "r1", "r2"]


@pytest.mark.parametrize("ending", [".bz2", ".xz"])
def test_all_streams_of_a_packed_file_are_read(tmp_path: Path, ending: str) -> None:
    """`cat a.xz b.xz` makes several; between them xz may have zeros, where Python's own reader stops."""
    pack = {".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    one, two, three = (pack(_lines(RECORDS[part : part + 1000])) for part in (0, 1000, 2000))
    path = tmp_path / f"c.jsonl{ending}"
    for between, after in ((b"", b""), (b"\0" * 4, b""), (b"\0" * (1 << 21), b"\0" * 8)):
        path.write_bytes(one + between + two + pack(b"") + between + three + after)
        corpus = open_corpus(path)
        assert [row.record for row in corpus] == RECORDS
        assert corpus.fingerprint()["sources"][0]["bytes"] == path.stat().st_size
    for damaged in (one + b"garbage", one + two[:9], one + two[:-3], one + b"\0\0\0\0x", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"c\.jsonl\{ending}:\d+: can't be unpacked"):
            list(open_corpus(path))

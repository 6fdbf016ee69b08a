"""CSV files are read as people write them, and every cell comes out as the text that it was.

Fails if a cell changes (a number, a quote, a line end, an empty cell), if a row is lost or shifted, if a
broken file isn't named with its line, or if a table that describes other data is taken for rows.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finescope.corpus import copy_rows, open_corpus
from finescope.corpus.known import KnownRows
from finescope.errors import InputError

ROWS = [
    {"id": "007", "text": 'He said "hi", then\nleft', "n": "1e5"},
    {"id": "8", "text": "second; with\ttab", "n": ""},
    {"id": "9", "text": "ünï\r\n", "n": "NA"},
]


def _put(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8", **options: str) -> Path:
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("c.csv", {}),
        ("c.csv", {"delimiter": ";", "encoding": "utf-8-sig"}),
        ("c.csv", {"delimiter": "\t", "lineterminator": "\n"}),
        ("c.tsv", {"delimiter": "\t"}),
    ],
)
def test_every_cell_is_the_text_that_it_was(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    corpus = open_corpus(_put(tmp_path / name, ROWS, **options))
    assert [row.record for row in corpus] == ROWS
    assert [row.id for row in corpus] == ["007", "8", "9"]
    copy_rows(tmp_path / "out.jsonl", corpus, [2, 0], known=KnownRows(["007", "8", "9"]))
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        ROWS[2],
        ROWS[0],
    ]
    copy_rows(tmp_path / "out.parquet", corpus, [1])
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [ROWS[1]]


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "c.csv"
    wanted = [{"text": f"a{text}", "other": other} for text, other in rows]
    corpus = open_corpus(_put(path, wanted))
    corpus.scan(output=".jsonl")
    assert [row.record for row in corpus] == wanted


def test_packed_long_and_many(tmp_path: Path) -> None:
    rows = [{"text": "x" * (300_000 if at == 1500 else 3), "at": str(at)} for at in range(3000)]
    path = _put(tmp_path / "c.csv", rows)
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    corpus = open_corpus(tmp_path / "d.csv.gz")
    assert [row.record for row in corpus] == rows
    assert corpus.fingerprint() != open_corpus(path).fingerprint()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"text,n\na,1\nb\n", r"c\.csv:3: 1 cells in a row, but the header has 2"),
        (b'text,n\n"a,1\n', r"c\.csv:\d: broken CSV, unexpected end of data"),
        (b"text,\na,1\n", r"c\.csv:1: a column has no name"),
        (b"text,text\na,1\n", r"c\.csv: two columns are called 'text'"),
        ("text\né\n".encode("latin1"), r"c\.csv is not UTF-8"),
        (b"words\na\n", r"c\.csv: no column 'text'; there are 'words'"),
        (b"", r"c\.csv"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "c.csv").write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_corpus(tmp_path / "c.csv").scan(output=".jsonl")


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (b'"a, b, c";text\n1;x\n', ["a, b, c", "text"]),
        (b"sep=;\r\nid,of,all;text\r\n1;x\r\n", ["id,of,all", "text"]),
        (b"\xef\xbb\xbfsep=|\nid|text\n1|x\n", ["id", "text"]),
        (b"id,text\r1,a;b;c;d\r", ["id", "text"]),
        (b"\r\n\nid;text\n1;x\n", ["id", "text"]),
        (b'\xef\xbb\xbf"id;of;all"\ttext\n1\tx\n', ["id;of;all", "text"]),
    ],
)
def test_the_delimiter_is_what_parts_the_header(tmp_path: Path, data: bytes, header: list[str]) -> None:
    (tmp_path / "c.csv").write_bytes(data)
    assert [list(row.record) for row in open_corpus(tmp_path / "c.csv")] == [header]


def test_a_table_beside_the_data_is_none_of_it(tmp_path: Path) -> None:
    _put(tmp_path / "metadata.csv", [{"file": "a.jsonl", "rows": "1"}])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    corpus = open_corpus(tmp_path)
    assert [row.text for row in corpus] == ["a"]
    assert corpus.left_out == ["metadata.csv (a table without text)"]

"""Rows asked for by number, or from a number on, are those that a pass over the corpus finds there.

Fails if: a blank line, a byte-order mark, a missing end, a line longer than a block or the end of a block
moves a row's number; another row is parsed; rows that aren't there are passed over in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finescope.corpus import jsonfiles, lines, open_corpus
from finescope.corpus.plan import Planner, ShardReader, located
from finescope.errors import InputError, StoreError
from finescope.workflow.marks import read_marks, write_marks

ROWS: list[dict[str, Any]] = [
    {"id": f"r{number}", "text": f"text {number} " + "ä\u2028" * (number * 7 % 90), "n": number}
    for number in range(60)
]
BLANK = ("\n", "  \n", "\t\r\n", "\x0b\x0c \n")


def _lines(end: str = "\n", *, blank: bool = False, last: bool = True) -> bytes:
    found = []
    for number, row in enumerate(ROWS):
        if blank and number % 3 == 0:
            found.append(BLANK[number // 3 % len(BLANK)] * (number % 4))
        found.append(" " * (number % 2) + json.dumps(row, ensure_ascii=False) + end)
    text = "".join(found)
    return (text if last else text.rstrip()).encode()


def _jsonl(path: Path) -> Any:
    path.with_suffix(".jsonl").write_bytes(_lines())
    return path.with_suffix(".jsonl")


def _awkward(path: Path) -> Any:
    path.with_suffix(".jsonl").write_bytes(b"\xef\xbb\xbf" + _lines("\r\n", blank=True, last=False))
    return path.with_suffix(".jsonl")


def _packed(path: Path) -> Any:
    path.with_suffix(".json.gz").write_bytes(gzip.compress(_lines(blank=True)))
    return path.with_suffix(".json.gz")


def _array(path: Path) -> Any:
    path.with_suffix(".json").write_text(json.dumps(ROWS, indent=1))
    return path.with_suffix(".json")


def _parquet(path: Path) -> Any:
    pq.write_table(pa.Table.from_pylist(ROWS), path.with_suffix(".parquet"), row_group_size=7)
    return path.with_suffix(".parquet")


def _csv(path: Path) -> Any:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(ROWS[0]))
        out.writeheader()
        out.writerows(ROWS)
    return path.with_suffix(".csv")


def _arrow(path: Path) -> Any:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=11)
    return path.with_suffix(".arrow")


def _list(path: Path) -> Any:
    return [dict(row) for row in ROWS]


def _several(path: Path) -> Any:
    for name, rows in (("language=en", ROWS[:20]), ("language=de", ROWS[20:])):
        (path / name).mkdir(parents=True)
        text = "\n\n".join(json.dumps(row) for row in rows)
        (path / name / "part.jsonl").write_text(text)
    return path


KINDS = (_jsonl, _awkward, _packed, _array, _parquet, _csv, _arrow, _list, _several)


@pytest.mark.parametrize("block", [1, 13, 500, 1 << 20])
@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__.strip("_") for kind in KINDS])
def test_same_rows_as_in_a_pass(
    kind: Any, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    source = kind(tmp_path / "rows")
    for options in ({}, {"id_column": "none"}, {"text_template": "{{ n }}: {{ text }}"}):
        every = list(open_corpus(source, **options).rows(records=False))
        assert len(every) == len(ROWS)
        for seed in range(6):
            numbers = random.Random(seed).sample(range(len(ROWS)), (0, 1, 2, 9, 59, 60)[seed])
            picked = dict(open_corpus(source, **options).pick(numbers))
            assert list(picked) == sorted(numbers)
            assert [(row, row.place) for row in picked.values()] == [
                (every[number], every[number].place) for number in sorted(numbers)
            ]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__.strip("_") for kind in KINDS])
def test_rows_from_one_on_are_those_of_a_pass(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonfiles, "BLOCK_ROWS", 4)
    source = kind(tmp_path / "rows")
    passed = open_corpus(source)
    every = list(passed.rows(columns=["n"]))
    for number, start in enumerate(passed.starts(range(len(ROWS)))):
        for corpus in (passed, open_corpus(source)):  # the other one has read nothing yet
            found = list(corpus.rows_from(start, columns=["n"]))
            wanted = every[number:]
            assert [(row, row.place, row.record) for row in found] == [
                (row, row.place, row.record) for row in wanted
            ]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__.strip("_") for kind in KINDS])
def test_shards_are_read_in_any_order(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfiles, "BLOCK_ROWS", 4)
    source = kind(tmp_path / "rows")
    corpus = open_corpus(source)
    planner = Planner(7)
    every = []
    for row in corpus.rows(records=False):
        planner.add(row)
        every.append(row)
    planner.close()
    shards = located(corpus, planner.shards)
    assert [(shard.number, shard.first, shard.end) for shard in shards] == [
        (number, 7 * number, min(7 * number + 7, 60)) for number in range(9)
    ]
    assert sum(shard.characters for shard in shards) == sum(len(row.content) for row in every)
    random.Random(3).shuffle(shards)
    reader = ShardReader(open_corpus(source).rows_from)
    for shard in shards:
        assert reader.read(shard) == every[shard.first : shard.end]


def test_what_stands_before_a_mark_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfiles, "BLOCK_ROWS", 4)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_lines())
    corpus = open_corpus(path)
    corpus.scan()
    (start,) = corpus.starts([30])
    assert start.mark is not None
    assert (start.mark.row, start.mark.line) == (28, 29)
    path.write_bytes(b"\xff" * start.mark.offset + path.read_bytes()[start.mark.offset :])
    assert [row.id for row in corpus.rows_from(start)] == [f"r{number}" for number in range(30, 60)]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__.strip("_") for kind in KINDS])
def test_marks_that_were_kept_find_the_same_rows(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonfiles, "BLOCK_ROWS", 4)
    monkeypatch.setattr(lines, "_BLOCK", 13)
    source = kind(tmp_path / "rows")
    passed = open_corpus(source)
    every = list(passed.rows(records=False))
    write_marks(tmp_path / "marks", passed)
    for seed in range(9):
        numbers = random.Random(seed).sample(range(len(ROWS)), seed)
        again = open_corpus(source)
        read_marks(tmp_path / "marks", again)
        for corpus in (passed, again):
            assert [(row, row.place) for _, row in corpus.pick(numbers)] == [
                (every[number], every[number].place) for number in sorted(numbers)
            ]


def test_between_marks_nothing_is_read_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonfiles, "BLOCK_ROWS", 4)
    monkeypatch.setattr(lines, "_BLOCK", 100)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_lines())
    corpus = open_corpus(path)
    corpus.scan()
    written = _lines().splitlines(keepends=True)
    kept = {28, 29, 30, 31, 48, 49, 50, 51}
    path.write_bytes(
        b"".join(b"\n" * len(line) if at not in kept else line for at, line in enumerate(written))
    )
    assert [row.id for _, row in corpus.pick([30, 50, 29])] == ["r29", "r30", "r50"]


def test_marks_of_a_file_that_has_changed_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_lines())
    corpus = open_corpus(path)
    corpus.scan()
    write_marks(tmp_path / "marks", corpus)
    for kept in (True, False):
        again = open_corpus(path)
        read_marks(tmp_path / "marks", again)
        assert bool(again.files[0].marks) == kept
        assert [row.id for _, row in again.pick([59])] == ["r59"]
        path.write_bytes(b"\n" + path.read_bytes())


def test_damaged_marks_are_named(tmp_path: Path) -> None:
    (tmp_path / "marks").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"marks is truncated or corrupt .*remove it"):
        read_marks(tmp_path / "marks", open_corpus([{"text": "a"}]))


@pytest.mark.parametrize("bad", [b"{broken", b'"a string"', b"\xff\xfe", b'{"text": 1}'])
def test_no_other_row_is_parsed(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written = _lines().splitlines(keepends=True)
    path.write_bytes(b"".join([*written[:5], bad + b"\n", *written[5:]]))
    corpus = open_corpus(path)
    assert [row.id for _, row in corpus.pick([60, 4, 6])] == ["r4", "r5", "r59"]
    with pytest.raises(InputError, match=r"rows\.jsonl:6"):
        list(corpus.pick([4, 5]))


@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__.strip("_") for kind in KINDS])
def test_rows_that_are_not_there_are_named(kind: Any, tmp_path: Path) -> None:
    corpus = open_corpus(kind(tmp_path / "rows"))
    with pytest.raises(InputError, match=r"row \d+ was chosen, but there are only \d+; the corpus has"):
        list(corpus.pick([3, 60, 70]))


def test_a_line_longer_than_blocks_is_read_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK", 1000)
    sizes: list[int | None] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    blocks = lines.LineBlocks(Counting(b'{"text": "' + b"x" * 1_000_000 + b'"}\n{"text": "short"}'))
    held = 0
    while (block := blocks.next()) is not None:
        held += len(block)
    assert held == 2
    assert len(sizes) < 20


def test_rows_beyond_the_limit_are_none(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("".join(f'{{"text": "{at}"}}\n' for at in range(9)))
    corpus = open_corpus(tmp_path / "c.jsonl", limit=5)
    assert [row.text for _, row in corpus.pick([4, 0])] == ["0", "4"]
    with pytest.raises(InputError, match="row 5 was chosen, but there are only 5"):
        list(corpus.pick([2, 5]))

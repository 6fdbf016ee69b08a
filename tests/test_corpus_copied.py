"""Rows that are chosen are copied, not made anew: the same types to the last nanosecond, the same bytes of
JSON.

Fails if: a value goes through a Python object that can't hold it; a file's types are forced on another's
values; a fault that only writing shows isn't found by the first pass; the notes of another library no longer
fit the columns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from finescope.corpus import copy_rows, open_corpus, write_rows, writer
from finescope.corpus.known import KnownRows
from finescope.corpus.output import Output
from finescope.corpus.writer import copy_each
from finescope.errors import InputError, StoreError
from support.arrow_values import plain, stored, without_nulls

TEXTS = pa.array(["one", "two", "three"])
RANK = {"finescope_rank": pa.array([1, 2], pa.int64())}


def _table(path: Path, column: pa.Array, name: str = "c") -> Path:
    pq.write_table(pa.table({"text": TEXTS.slice(0, len(column)), name: column}), path)
    return path


def _uuid(*values: bytes) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))


COLUMNS = {
    "nanoseconds": pa.array([1_700_000_000_000_000_001, None, -1], pa.timestamp("ns")),
    "a zone": pa.array([1, 2, 3], pa.timestamp("us", "Asia/Tokyo")),
    "durations": pa.array([1, None, 2**62], pa.duration("ns")),
    "times": pa.array([1, 2, 86_399_999_999_999], pa.time64("ns")),
    "dates beyond 9999": pa.array([3_000_000, None, -1_000_000], pa.date32()),
    "large whole numbers": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "decimals": pa.array([1, 2, 3], pa.decimal128(30, 5)),
    "bytes": pa.array([b"\x00\xff", b"", None], pa.binary()),
    "views": pa.array(["a" * 50, "b", None], pa.string_view()),
    "a dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
    "half floats": pa.array([1.5, None, float("inf")], pa.float16()),
    "UUIDs": _uuid(b"0" * 16, b"1" * 16, b"2" * 16),
    "a tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), (2,)), pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2))
    ),
    "maps": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "nesting": pa.array([[{"a": {"b": [1]}}], [], None]),
    "NaN": pa.array([float("nan"), float("-inf"), -0.0]),
    "not UTF-8": pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_keeps_its_type_and_its_values(tmp_path: Path, name: str) -> None:
    column = COLUMNS[name]
    corpus = open_corpus(_table(tmp_path / "c.parquet", column))
    corpus.scan(output=".parquet")
    assert copy_rows(tmp_path / "out.parquet", corpus, [2, 0], columns=RANK) == 2
    got = pq.read_table(tmp_path / "out.parquet")
    assert stored(got.schema.field("c").type) == stored(
        pq.read_schema(tmp_path / "c.parquet").field("c").type
    )
    values = plain(column)
    assert plain(got["c"]) == [values[2], values[0]]
    assert got["finescope_rank"].to_pylist() == [1, 2]


_BERLIN, _UTC = pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")
TOGETHER = {
    "null, string": (pa.nulls(1), pa.array(["x"]), pa.string()),
    "null, struct": (pa.nulls(1), pa.array([{"k": 1}]), pa.struct([("k", pa.int64())])),
    "list of null, list of string": (
        pa.array([[]], pa.list_(pa.null())),
        pa.array([["a"]]),
        pa.list_(pa.string()),
    ),
    "int32, int64": (pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
    "int64, double": (pa.array([7]), pa.array([0.5]), pa.float64()),
    "uint8, int8": (pa.array([200], pa.uint8()), pa.array([-3], pa.int8()), pa.int16()),
    "a struct gains a field": (
        pa.array([{"a": 1}]),
        pa.array([{"a": 2, "b": "x"}]),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
    "a list of structs gains one": (
        pa.array([[{"a": 1}]]),
        pa.array([[{"b": "x"}]]),
        pa.list_(pa.struct([("a", pa.int64()), ("b", pa.string())])),
    ),
    "dictionary, string": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
    "string, large string": (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
    "string, view": (pa.array(["a"]), pa.array(["b"], pa.string_view()), pa.string()),
    "list, large list": (
        pa.array([[1]]),
        pa.array([[2]], pa.large_list(pa.int64())),
        pa.large_list(pa.int64()),
    ),
    "milliseconds, nanoseconds": (
        pa.array([5], pa.timestamp("ms")),
        pa.array([7], pa.timestamp("ns")),
        pa.timestamp("ns"),
    ),
    "two zones": (
        pa.array([5], pa.timestamp("us", "Europe/Berlin")),
        pa.array([7], pa.timestamp("us", "UTC")),
        pa.timestamp("us", "UTC"),
    ),
    "two zones and units": (
        pa.array([5], pa.timestamp("ms", "+00:00")),
        pa.array([7], pa.timestamp("us", "Asia/Tokyo")),
        pa.timestamp("us", "UTC"),
    ),
    "two zones within": (
        pa.array([[{"a": 1, "b": 2}]], pa.list_(pa.struct([("a", _BERLIN), ("b", _BERLIN)]))),
        pa.array([[{"a": 3, "b": 4}]], pa.list_(pa.struct([("a", _UTC), ("b", _BERLIN)]))),
        pa.list_(pa.struct([("a", _UTC), ("b", _BERLIN)])),
    ),
    "two zones in maps": (
        pa.array([[("k", 1)]], pa.map_(pa.string(), _BERLIN)),
        pa.array([[("k", 2)]], pa.map_(pa.string(), _UTC)),
        pa.map_(pa.string(), _UTC),
    ),
    "a struct gains what may not be null": (
        pa.array([{"a": 1}], pa.struct([pa.field("a", pa.int64(), nullable=False)])),
        pa.array(
            [{"a": 2, "b": [{"c": 3}]}],
            pa.struct(
                [
                    pa.field("a", pa.int64(), nullable=False),
                    pa.field("b", pa.list_(pa.struct([("c", pa.int64())])), nullable=False),
                ]
            ),
        ),
        pa.struct(
            [
                pa.field("a", pa.int64(), nullable=False),
                pa.field("b", pa.list_(pa.struct([("c", pa.int64())]))),
            ]
        ),
    ),
    "null, UUID": (pa.nulls(1), _uuid(b"0" * 16), pa.uuid()),
    "int64, decimal": (pa.array([3]), pa.array([1], pa.decimal128(9, 2)), pa.decimal128(21, 2)),
    "int32, decimal within": (
        pa.array([[{"a": 2**31 - 1}]], pa.list_(pa.struct([("a", pa.int32())]))),
        pa.array([[{"a": 1}]], pa.list_(pa.struct([("a", pa.decimal128(9, 2))]))),
        pa.list_(pa.struct([("a", pa.decimal128(12, 2))])),
    ),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", TOGETHER)
def test_files_of_different_types_go_together(tmp_path: Path, name: str, swapped: bool) -> None:
    first, second, kind = TOGETHER[name]
    # Fields of a struct come in the order in which they turn up.
    other = pa.list_(pa.struct([("b", pa.string()), ("a", pa.int64())])) if "one" in name else kind
    (tmp_path / "in").mkdir()
    for number, column in enumerate((second, first) if swapped else (first, second)):
        _table(tmp_path / "in" / f"{number}.parquet", column)
    corpus = open_corpus(tmp_path / "in")
    corpus.scan(output=".parquet")
    copy_rows(tmp_path / "out.parquet", corpus, [1, 0] if swapped else [0, 1])
    got = pq.read_table(tmp_path / "out.parquet")["c"]
    assert stored(got.type) in (stored(kind), stored(other))
    assert plain(got) == [*plain(first), *plain(second)]


APART = {
    "string, int64": (pa.array(["x"]), pa.array([1])),
    "string, bytes": (pa.array(["x"]), pa.array([b"x"])),
    "bool, int64": (pa.array([True]), pa.array([1])),
    "a zone, none": (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))),
    "a zone, none within": (pa.array([[1]], pa.list_(pa.timestamp("us"))), pa.array([[1]], pa.list_(_UTC))),
    "struct, string": (pa.array([{"a": 1}]), pa.array(["x"])),
    "decimal, double": (pa.array([1], pa.decimal128(38, 2)), pa.array([0.5])),
}


@pytest.mark.parametrize("name", APART)
def test_types_that_do_not_go_together_are_refused_at_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    for number, column in enumerate(APART[name]):
        _table(tmp_path / "in" / f"{number}.parquet", column)
    corpus = open_corpus(tmp_path / "in")
    with pytest.raises(
        InputError, match=r"column 'c' is .* in 0\.parquet and .* in 1\.parquet.*--format jsonl"
    ) as refused:
        corpus.scan(output=".parquet")
    assert ("give them the zone that they are in" in str(refused.value)) == ("zone" in name)
    if name != "string, bytes":
        corpus.scan(output=".jsonl")
        copy_rows(tmp_path / "out.jsonl", corpus, [0, 1])
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (
            pa.struct([("a", pa.list_(pa.null())), ("b", pa.int32())]),
            pa.struct([("a", pa.list_(pa.null())), ("b", pa.int64())]),
            {"a": [None, None], "b": 1},
        ),
        (pa.list_(pa.list_(pa.null())), pa.large_list(pa.list_(pa.null())), [[None] * 4, None]),
        (
            pa.list_(pa.struct([("a", pa.large_list(pa.null()))])),
            pa.list_(pa.struct([("a", pa.large_list(pa.null())), ("b", pa.string())])),
            [None, {"a": [None, None, None]}],
        ),
    ],
    ids=["struct", "lists", "list of structs"],
)
def test_lists_of_nulls_stay_as_long_as_they_are(
    tmp_path: Path, first: pa.DataType, second: pa.DataType, value: Any
) -> None:
    (tmp_path / "in").mkdir()
    for number, kind in enumerate((first, second)):
        _table(tmp_path / "in" / f"{number}.parquet", pa.array([value, None, value], kind))
    corpus = open_corpus(str(tmp_path / "in"))
    corpus.scan(output=".parquet")
    for rows in ([0], [2, 1, 0, 5, 4]):
        copy_rows(tmp_path / "out.parquet", corpus, rows)
        written = pq.read_table(tmp_path / "out.parquet")
        written.validate(full=True)
        wanted = [None if at in (1, 4) else without_nulls(value) for at in rows]
        assert plain(written["c"]) == wanted


_RUNS = pc.run_end_encode(pa.array(["a", "a", None, "b", "b"]))
_VIEW = pa.list_view(pa.int64())
_LISTS = [[1, 2], None, [], [3, None], [4]]
UNUSUAL = {
    "a view of lists": (pa.array(_LISTS, _VIEW), pa.list_(pa.int64())),
    "a large view": (pa.array(_LISTS, pa.large_list_view(pa.int64())), pa.list_(pa.int64())),
    "a view out of order": (
        pa.ListViewArray.from_arrays(
            pa.array([3, 0, 0, 2, 3], pa.int32()),
            pa.array([1, 2, 0, 2, 1], pa.int32()),
            pa.array([1, 2, 3, 4]),
        ),
        pa.list_(pa.int64()),
    ),
    "views within": (
        pa.array([{"a": [value]} for value in _LISTS], pa.struct([("a", pa.list_(_VIEW))])),
        pa.struct([("a", pa.list_(pa.list_(pa.int64())))]),
    ),
    "a view of structs": (
        pa.array([[{"a": 1}], None, [], [{"a": 2}, None], []], pa.list_view(pa.struct([("a", pa.int32())]))),
        pa.list_(pa.struct([("a", pa.int64())])),
    ),
    "runs": (_RUNS, pa.string()),
    "runs within": (pa.StructArray.from_arrays([_RUNS], ["a"]), pa.struct([("a", pa.string())])),
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("output", [".parquet", ".jsonl"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_views_of_lists_and_runs_are_written_as_lists_and_values(
    tmp_path: Path, name: str, output: str, beside: bool
) -> None:
    column, kind = UNUSUAL[name]
    (tmp_path / "in").mkdir()
    table = pa.table({"text": list("vwxyz"), "c": column})
    with pa.ipc.new_file(str(tmp_path / "in" / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=3)
    others = [pa.scalar(None, kind).as_py()] if beside else []
    if beside:
        _table(tmp_path / "in" / "b.parquet", pa.array(others, kind))
    corpus = open_corpus(tmp_path / "in")
    corpus.scan(output=output)
    order = [4, 0, 3, 1, 2, *([5] if beside else [])]
    copy_rows(tmp_path / f"out{output}", corpus, order)
    values = [*column.to_pylist(), *others]
    if output == ".parquet":
        got = pq.read_table(tmp_path / "out.parquet")["c"]
        got.validate(full=True)
        assert plain(got) == [without_nulls(values[at]) for at in order]
    else:
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line)["c"] for line in lines] == [values[at] for at in order]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([2**53 + 1]), pa.array([0.5])),
        (pa.array([{"a": [2**53 + 1]}]), pa.array([{"a": [0.5]}])),
        (pa.array([2**63], pa.uint64()), pa.array([-1])),
        (pa.array([2**62], pa.timestamp("ms")), pa.array([1], pa.timestamp("ns"))),
    ],
)
def test_a_value_that_does_not_fit_is_found_by_the_first_pass(
    tmp_path: Path, first: pa.Array, second: pa.Array
) -> None:
    (tmp_path / "in").mkdir()
    _table(tmp_path / "in" / "0.parquet", first)
    _table(tmp_path / "in" / "1.parquet", second)
    with pytest.raises(InputError, match=r"0\.parquet: column 'c' can't be brought from .*--format jsonl"):
        open_corpus(tmp_path / "in").scan(output=".parquet")


def test_columns_that_some_files_lack_and_names_twice(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _table(tmp_path / "in" / "0.parquet", pa.array([1]), "a")
    _table(tmp_path / "in" / "1.parquet", pa.array(["x"]), "b")
    corpus = open_corpus(tmp_path / "in")
    copy_rows(tmp_path / "out.parquet", corpus, [1, 0])
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows == [{"text": "one", "a": None, "b": "x"}, {"text": "one", "a": 1, "b": None}]
    pq.write_table(pa.table([TEXTS, TEXTS, TEXTS], ["text", "x", "x"]), tmp_path / "in" / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: two columns are called 'x'"):
        open_corpus(tmp_path / "in").scan(output=".parquet")


def test_types_that_a_format_cannot_hold_are_refused_at_first(tmp_path: Path) -> None:
    interval = pa.table({"text": TEXTS, "c": pa.array([(1, 2, 3)] * 3, pa.month_day_nano_interval())})
    empty = pa.table({"text": TEXTS, "c": pa.array([{}] * 3)})
    for number, table in enumerate((interval, empty)):
        path = tmp_path / f"{number}.arrow"
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
        with pytest.raises(InputError, match=r"column 'c' is .*which Parquet can't hold.*--format jsonl"):
            open_corpus(path).scan(output=".parquet")
        corpus = open_corpus(path)
        corpus.scan(output=".jsonl")
        copy_rows(tmp_path / "out.jsonl", corpus, [0])
    for column in (pa.array([b"x"]), pa.array([[{"a": b"x"}]])):
        with pytest.raises(InputError, match=r"column 'c' holds binary.*--format parquet"):
            open_corpus(_table(tmp_path / "b.parquet", column)).scan(output=".jsonl")
    with pytest.raises(InputError, match=r"'\.csv'; choose one of \.jsonl"):
        open_corpus([{"text": "a"}]).scan(output=".csv")


def test_text_that_is_not_utf8_is_found_before_it_is_written_as_json(tmp_path: Path) -> None:
    corpus = open_corpus(_table(tmp_path / "c.parquet", COLUMNS["not UTF-8"]))
    with pytest.raises(InputError, match=r"c\.parquet: column 'c' can't be written as JSON"):
        corpus.scan(output=".jsonl")
    with pytest.raises(InputError, match=r"c\.parquet:row 1: column 'c' holds text that isn't UTF-8"):
        list(open_corpus(tmp_path / "c.parquet", text_column="c"))


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (COLUMNS["nanoseconds"], ["2023-11-14T22:13:20.000000001", None, "1969-12-31T23:59:59.999999999"]),
        (COLUMNS["a zone"], [f"1970-01-01T00:00:00.00000{n}+00:00" for n in (1, 2, 3)]),
        (COLUMNS["durations"], ["PT0.000000001S", None, "PT4611686018.427387904S"]),
        (COLUMNS["times"], ["00:00:00.000000001", "00:00:00.000000002", "23:59:59.999999999"]),
        (COLUMNS["dates beyond 9999"], ["+10183-09-21", None, "-0768-02-04"]),
        (
            pa.array([10**12, -(10**12), 0], pa.timestamp("ms")),
            ["2001-09-09T01:46:40", "1938-04-24T22:13:20", "1970-01-01T00:00:00"],
        ),
        (pa.array([-1, -1500, 1], pa.duration("ms")), ["-PT0.001S", "-PT1.5S", "PT0.001S"]),
        (COLUMNS["large whole numbers"], [2**64 - 1, 0, None]),
        (COLUMNS["decimals"], ["1.00000", "2.00000", "3.00000"]),
        (
            COLUMNS["UUIDs"],
            [f"{d}-{d[:4]}-{d[:4]}-{d[:4]}-{d}{d[:4]}" for d in ("30303030", "31313131", "32323232")],
        ),
        (
            pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())),
            [True, False, None],
        ),
        (COLUMNS["a dictionary"], ["a", "b", "a"]),
        (COLUMNS["maps"], [{"k": 1}, {}, None]),
        (COLUMNS["nesting"], [[{"a": {"b": [1]}}], [], None]),
        (COLUMNS["a tensor"], [[1, 2], [3, 4], [5, 6]]),
        (
            pa.array([[(1, "a"), (1, "b")], [], None], pa.map_(pa.int64(), pa.string())),
            [[[1, "a"], [1, "b"]], [], None],
        ),
        (
            pa.array([{"a": [3_000_000]}, None, {"a": None}], pa.struct([("a", pa.list_(pa.date32()))])),
            [{"a": ["+10183-09-21"]}, None, {"a": None}],
        ),
    ],
    ids=str,
)
def test_tables_as_json(tmp_path: Path, column: pa.Array, wanted: list[Any]) -> None:
    corpus = open_corpus(_table(tmp_path / "c.parquet", column))
    corpus.scan(output=".jsonl")
    copy_rows(tmp_path / "out.jsonl", corpus, [0, 1, 2])
    assert [json.loads(line)["c"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == wanted
    # All columns of a row can be had as Python values too, whatever the dates.
    assert len([row.record["c"] for row in corpus]) == 3


def test_dates_as_json_are_those_of_the_calendar(tmp_path: Path) -> None:
    import datetime

    days = [-719_162, -1, 0, 58, 59, 60, 10_956, 11_015, 11_016, 19_782, 19_783, 47_540, 2_932_896]
    copy_rows(tmp_path / "out.jsonl", open_corpus([{"text": "a"}]), [0])
    pq.write_table(
        pa.table({"text": ["x"] * len(days), "c": pa.array(days, pa.date32())}), tmp_path / "c.parquet"
    )
    copy_rows(tmp_path / "out.jsonl", open_corpus(tmp_path / "c.parquet"), range(len(days)))
    wanted = [(datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat() for day in days]
    assert [json.loads(line)["c"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == wanted


def test_json_keeps_its_own_text(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "n": 1.0e5, "big": 12345678901234567890123, "u": "\\u00fc\\ud83d", "k": 1, "k": 2}',
        '{ "text":"b" , "x" : [ 1 ,2 ] }  ',
        '{"text": "ü", "finescope_rank": 9, "finescope\\u005frank": 8, "y": {"finescope_rank": 7}}',
    ]
    (tmp_path / "c.jsonl").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    corpus = open_corpus(tmp_path / "c.jsonl")
    copy_rows(tmp_path / "out.jsonl", corpus, [2, 0, 1], columns={"finescope_rank": [1, 2, 3]})
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"text": "ü", "y": {"finescope_rank": 7}, "finescope_rank": 1}',
        lines[0][:-1] + ', "finescope_rank": 2}',
        '{ "text":"b" , "x" : [ 1 ,2 ], "finescope_rank": 3}',
    ]
    copy_rows(tmp_path / "out.jsonl", open_corpus([{"text": "a"}]), [0])
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "a"}\n'


def test_json_becomes_parquet_where_its_types_go_together(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [{"text": "a", "n": 1}, {"text": "b", "o": {"x": 1}}, {"text": "c", "n": 0.5, "o": {"y": ["z"]}}]
    rows += [{"text": "d", "late": n} for n in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_corpus(path)
    corpus.scan(output=".parquet")
    copy_rows(tmp_path / "out.parquet", corpus, [2002, 0, 1, 2])
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.schema.field("n").type == pa.float64()
    assert [without_nulls(row) for row in got.to_pylist()] == [rows[2002], rows[0], rows[1], rows[2]]
    # And without a first pass.
    copy_rows(tmp_path / "again.parquet", open_corpus(path), [1])
    assert without_nulls(pq.read_table(tmp_path / "again.parquet").to_pylist()) == [rows[1]]


@pytest.mark.parametrize(
    "rows",
    [
        [{"c": 1}, {"c": "x"}],
        [{"c": 1}] * 1500 + [{"c": "x"}],
        [{"c": 2**64}],
        [{"c": "\ud83d"}],
        [{"c": 1}] * 1500 + [{"c": True}],
        [{"c": 0.5}, {"c": True}],
        [{"c": [{"k": 0.5}]}, {"c": [{"k": False}]}],
        [{"c": {}}],
    ],
)
def test_json_that_parquet_cannot_hold_is_refused_at_first(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": "a", **row}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"column 'c' .*Parquet.*--format jsonl"):
        open_corpus(path).scan(output=".parquet")


def test_a_number_that_a_later_type_cannot_hold_is_refused_at_first(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [{"text": "a", "c": 2**53 + 1}] * 1024 + [{"text": "a", "c": 0.5}] * 1024
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"c\.jsonl: rows can't be written as Parquet .*9007199254740993"):
        open_corpus(path).scan(output=".parquet")


def test_mixed_files_in_either_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "j", "n": 1}\n')
    pq.write_table(
        pa.table({"text": ["t"], "n": [2.5], "when": pa.array([1], pa.timestamp("ns"))}),
        tmp_path / "in" / "b.parquet",
    )
    corpus = open_corpus(tmp_path / "in")
    for ending in (".parquet", ".jsonl"):
        corpus.scan(output=ending)
        copy_rows(tmp_path / f"out{ending}", corpus, [1, 0])
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.select(["text", "n"]).to_pylist() == [{"text": "t", "n": 2.5}, {"text": "j", "n": 1}]
    assert table.schema.field("when").type == pa.timestamp("ns")
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [
        '{"text": "t", "n": 2.5, "when": "1970-01-01T00:00:00.000000001"}',
        '{"text": "j", "n": 1}',
    ]


def test_rows_of_another_corpus_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"text": "y"}\n')
    for out in ("out.jsonl", "out.parquet"):
        assert copy_rows(tmp_path / out, open_corpus(path), [1, 0], known=KnownRows(["a", "c:1"])) == 2
        with pytest.raises(
            StoreError, match=r"c\.jsonl:1: the row's id is 'a', but the scores have 'b' there"
        ):
            copy_rows(tmp_path / out, open_corpus(path), [0], known=KnownRows(["b", "c:1"]))
    with pytest.raises(InputError, match="row 7 was chosen, but there are only 2"):
        copy_rows(tmp_path / "out.jsonl", open_corpus(path), [7])


def test_no_rows_at_all(tmp_path: Path) -> None:
    corpus = open_corpus(_table(tmp_path / "c.parquet", pa.array([1])))
    assert (
        copy_rows(tmp_path / "out.parquet", corpus, [], columns={"finescope_rank": pa.array([], pa.int64())})
        == 0
    )
    assert pq.read_schema(tmp_path / "out.parquet").names == ["text", "c", "finescope_rank"]
    assert copy_rows(tmp_path / "out.jsonl", corpus, []) == 0


def test_notes_of_other_libraries_fit_the_columns(tmp_path: Path) -> None:
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "c": {"_type": "Image"},
        "gone": {"_type": "Audio"},
    }
    image = pa.array(
        [{"bytes": b"x", "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    notes = {
        "huggingface": json.dumps({"info": {"features": features}, "fingerprint": "f"}),
        "pandas": json.dumps({"index_columns": [{"kind": "range", "start": 0, "stop": 1, "step": 1}]}),
        "mine": "kept",
    }
    table = pa.table({"text": ["a"], "c": image}).replace_schema_metadata(notes)
    pq.write_table(table, tmp_path / "c.parquet")
    columns = {"finescope_rank": pa.array([1], pa.int64()), "finescope_score": pa.array([0.5])}
    copy_rows(tmp_path / "out.parquet", open_corpus(tmp_path / "c.parquet"), [0], columns=columns)
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    assert json.loads(metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "text": features["text"],
                "c": features["c"],
                "finescope_rank": {"dtype": "int64", "_type": "Value"},
                "finescope_score": {"dtype": "float64", "_type": "Value"},
            }
        }
    }
    assert b"pandas" not in metadata
    assert metadata[b"mine"] == b"kept"


@pytest.mark.parametrize("within", [False, True])
def test_categories_of_many_files_can_be_read_again(tmp_path: Path, within: bool) -> None:
    """Each file's own dictionary fits its indices of 8 bits; all together don't."""
    wanted = []
    for number in range(3):
        values = [f"{number}-{at}" for at in range(100)]
        column = pa.array(values).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
        if within:
            column = pa.StructArray.from_arrays([column], ["k"])
        table = pa.table({"text": values, "c": column})
        with pa.ipc.new_file(str(tmp_path / f"{number}.arrow"), table.schema) as file:
            file.write_table(table)
        wanted += table.to_pylist()
    corpus = open_corpus(tmp_path)
    corpus.scan(output=".parquet")
    order = [7 * at % 300 for at in range(300)]
    copy_rows(tmp_path / "out.parquet", corpus, order)
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.to_pylist() == [wanted[at] for at in order]
    assert "dictionary<values=string, indices=int32" in str(got.schema.field("c").type)


@pytest.mark.parametrize("within", ["", "struct", "list"])
def test_a_dictionary_may_have_an_entry_for_null(tmp_path: Path, within: str) -> None:
    """pyarrow's own writer of Parquet takes none, and says so when the rows are written."""
    column: pa.Array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 1], pa.int8()), ["a", "b", None])
    if within == "struct":
        column = pa.StructArray.from_arrays([column], ["k"])
    elif within == "list":
        column = pa.ListArray.from_arrays([0, 1, 2, 3, 4], column)
    table = pa.table({"text": list("wxyz"), "c": column})
    with pa.ipc.new_file(str(tmp_path / "c.arrow"), table.schema) as file:
        file.write_table(table)
    corpus = open_corpus(tmp_path / "c.arrow")
    corpus.scan(output=".parquet")
    copy_rows(tmp_path / "out.parquet", corpus, [2, 0, 3])
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == table.take([2, 0, 3]).to_pylist()


def test_notes_of_datasets_follow_types_that_have_changed(tmp_path: Path) -> None:
    """Its reader casts columns to what the note says: a whole number too large for it, or another zone."""
    (tmp_path / "in").mkdir()
    features = {name: {"dtype": "int32", "_type": "Value"} for name in ("n", "same")}
    features["text"] = {"dtype": "string", "_type": "Value"}
    features["when"] = {"dtype": "timestamp[us, tz=Europe/Berlin]", "_type": "Value"}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    for number, (count, zone) in enumerate(((pa.int32(), "Europe/Berlin"), (pa.int64(), "UTC"))):
        columns = {
            "text": ["a"],
            "n": pa.array([1], count),
            "same": pa.array([1], pa.int32()),
            "when": pa.array([1], pa.timestamp("us", zone)),
        }
        table = pa.table(columns).replace_schema_metadata(notes)
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet")
    corpus = open_corpus(tmp_path / "in")
    copy_rows(tmp_path / "out.parquet", corpus, [1, 0], columns={"x": pa.array([[1], [2]])})
    assert b"huggingface" not in (pq.read_schema(tmp_path / "out.parquet").metadata or {})
    copy_rows(tmp_path / "out.parquet", corpus, [1, 0], columns={"x": pa.array([0.5, 1], pa.float32())})
    found = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"])["info"]["features"]
    assert {name: feature["dtype"] for name, feature in found.items()} == {
        "text": "string",
        "n": "int64",
        "same": "int32",
        "when": "timestamp[us, tz=UTC]",
        "x": "float32",
    }


def _noted(path: Path, features: dict[str, Any] | None, **columns: Any) -> None:
    table = pa.table({"text": [path.stem], **columns})
    known = {"text": {"dtype": "string", "_type": "Value"}, **(features or {})}
    notes = {"huggingface": json.dumps({"info": {"features": known}})} if features is not None else None
    pq.write_table(table.replace_schema_metadata(notes), path)


@pytest.mark.parametrize("within", [False, True])
def test_classes_of_one_number_with_two_names_are_refused_at_first(tmp_path: Path, within: bool) -> None:
    """In the first file's names, the second's rows would be of the other class."""
    (tmp_path / "in").mkdir()
    for name, names in (("a", ["neg", "pos"]), ("b", ["pos", "neg"])):
        feature: Any = {"names": names, "_type": "ClassLabel"}
        column = pa.array([[0]] if within else [0])
        feature = {"feature": feature, "_type": "List"} if within else feature
        _noted(tmp_path / "in" / f"{name}.parquet", {"c": feature}, c=column)
    words = r"column 'c' .*: 0 stands for 'neg' in a\.parquet and for 'pos' in b\.parquet.*--format jsonl"
    with pytest.raises(InputError, match=words):
        open_corpus(tmp_path / "in").scan(output=".parquet")
    open_corpus(tmp_path / "in").scan(output=".jsonl")


def test_notes_of_datasets_are_those_of_all_files(tmp_path: Path) -> None:
    """A column's feature may stand in any file; one that files say differently of is none."""
    (tmp_path / "in").mkdir()
    image = pa.array([{"path": "p"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    classes = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    number = {"dtype": "int64", "_type": "Value"}
    _noted(tmp_path / "in" / "a.parquet", None, c=[1])
    _noted(tmp_path / "in" / "b.parquet", {"c": classes, "n": classes}, c=[1], n=[0])
    _noted(tmp_path / "in" / "c.parquet", {"i": {"_type": "Image"}, "n": number}, i=image, n=[0])
    corpus = open_corpus(tmp_path / "in")
    copy_rows(tmp_path / "out.parquet", corpus, [2, 0, 1])
    found = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"huggingface"])["info"]["features"]
    assert found == {
        "text": {"dtype": "string", "_type": "Value"},
        "c": classes,
        "n": number,
        "i": {"_type": "Image"},
    }


def test_columns_that_are_moved_to_utc_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    both = pa.struct([("a", _UTC), ("b", _BERLIN)])
    for number, kind in enumerate((_UTC, _BERLIN, _UTC)):
        columns = {
            "text": ["a"],
            "c": pa.array([number], kind),
            "d": pa.array([1], _BERLIN),
            "e": pa.array([{"a": 1, "b": 1}], both),
        }
        pq.write_table(pa.table(columns), tmp_path / "in" / f"{number}.parquet")
    corpus = open_corpus(tmp_path / "in")
    assert corpus.output(".parquet").moved == {"c": ["Europe/Berlin", "UTC"]}
    assert corpus.output(".jsonl").moved == {}


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("together", [1, 5, 100])
def test_several_files_are_what_each_is_alone_in_as_few_passes(
    tmp_path: Path, ending: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / f"rows{ending}", [{"text": f"t{n}", "n": n} for n in range(9)])
    corpus, passes = open_corpus(tmp_path / f"rows{ending}"), list[int]()
    monkeypatch.setattr(writer, "_TOGETHER", together)
    reading = "read_lines" if ending == ".jsonl" else "read_tables"
    read = getattr(Output, reading)

    def counted(self: Output, rows: list[int], check: Any) -> Any:
        passes.append(len(rows))
        return read(self, rows, check)

    monkeypatch.setattr(Output, reading, counted)
    wanted: dict[str, Any] = {
        "a": ([7, 2], {"x": [1.5, 2.5]}),
        "b": ([2, 8, 0], {"x": [0.0, 1.0, 2.0]}),
        "c": ([], {"x": []}),
    }
    copy_each({tmp_path / f"{name}{ending}": asked for name, asked in wanted.items()}, corpus)
    assert passes == {1: [2, 3, 0], 5: [4], 100: [4]}[together]
    for name, (rows, columns) in wanted.items():
        copy_rows(tmp_path / f"alone{ending}", corpus, rows, columns=columns)
        found = (tmp_path / f"{name}{ending}").read_bytes()
        assert found == (tmp_path / f"alone{ending}").read_bytes()


def test_a_row_costs_no_more_than_itself(tmp_path: Path) -> None:
    """One row of every block is held, not the blocks."""
    wide = pa.table({"text": [f"t{n}" for n in range(4000)], "c": ["x" * 5000] * 4000})
    pq.write_table(wide, tmp_path / "c.parquet")
    corpus = open_corpus(tmp_path / "c.parquet")
    before = pa.total_allocated_bytes()
    output, rows = corpus.output(".parquet"), list(range(0, 4000, 1000))
    blocks = output.table_blocks(output.read_tables(rows), rows, pa.table({"r": [0, 1, 2, 3]}))
    held = [(next(blocks).num_rows, pa.total_allocated_bytes() - before)]
    assert held[0][0] == 4
    assert held[0][1] < 2_000_000


def test_dictionaries_inside_structs_across_row_groups(tmp_path: Path) -> None:
    """pyarrow itself reads such a file whole only through its datasets."""
    inner = pa.StructArray.from_arrays([pa.array(["a", "b", "a"]).dictionary_encode()], ["k"])
    pq.write_table(pa.table({"text": TEXTS, "c": inner}), tmp_path / "c.parquet", row_group_size=1)
    corpus = open_corpus(tmp_path / "c.parquet")
    assert [row.record["c"] for row in corpus] == [{"k": "a"}, {"k": "b"}, {"k": "a"}]
    copy_rows(tmp_path / "out.parquet", corpus, [2, 1])
    assert plain(pq.read_table(tmp_path / "out.parquet")["c"]) == [{"k": "a"}, {"k": "b"}]


@pytest.mark.parametrize("nested", [False, True])
def test_old_times_beyond_the_years_of_nanoseconds(tmp_path: Path, nested: bool) -> None:
    """Spark's "never", 9999-12-31 in INT96: pyarrow by itself reads it as a date of 1816."""

    def put(values: list[int], unit: str) -> Any:
        column = pa.array(values, pa.timestamp(unit))
        if nested:
            column = pa.array(
                [[{"when": value}] for value in column], pa.list_(pa.struct([("when", column.type)]))
            )
        path = tmp_path / "c.parquet"
        table = pa.table({"text": TEXTS.slice(0, len(values)), "c": column})
        pq.write_table(table, path, use_deprecated_int96_timestamps=True, row_group_size=1)
        return open_corpus(path)

    never = 253_402_214_400_000_000
    copy_rows(tmp_path / "out.jsonl", put([never, 1_700_000_000_000_001], "us"), [0, 1])
    wanted = ["9999-12-31T00:00:00", "2023-11-14T22:13:20.000001"]
    lines = [json.loads(line)["c"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line[0]["when"] if nested else line for line in lines] == wanted
    copy_rows(tmp_path / "out.parquet", open_corpus(tmp_path / "c.parquet"), [0])
    assert "timestamp[us]" in str(pq.read_schema(tmp_path / "out.parquet").field("c").type)
    copy_rows(tmp_path / "out.parquet", put([1_700_000_000_000_000_001, -1], "ns"), [1, 0])
    assert "timestamp[ns]" in str(pq.read_schema(tmp_path / "out.parquet").field("c").type), (
        "nanoseconds stay"
    )


def test_schema_like_takes_all_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _table(tmp_path / "in" / "0.parquet", pa.nulls(1))
    _table(tmp_path / "in" / "1.parquet", pa.array(["x"]))
    corpus = open_corpus(tmp_path / "in")
    write_rows(tmp_path / "out.parquet", (row.record for row in corpus), schema_like=corpus)
    assert pq.read_table(tmp_path / "out.parquet")["c"].to_pylist() == [None, "x"]

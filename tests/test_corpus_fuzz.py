"""Whatever corpus there is, the rows that are chosen come out as they went in.

Corpora are made up: formats, folders, partitions, columns of any type that differ from file to file, rows of
any shape. Each is read, some rows are chosen in any order and written, and what was written is compared with
what was put in, by an oracle that knows only json and pyarrow. Fails if a value, a row, a column or a type is
lost or changed, or if a corpus whose files don't go together is taken, or noticed only after the first pass.
"""

from __future__ import annotations

import csv
import decimal
import gzip
import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from finescope.corpus import copy_rows, open_corpus
from finescope.corpus.known import KnownRows, text_crc32
from finescope.errors import InputError
from support.arrow_values import canonical, plain, stored, without_nulls

JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".ndjson")
TABLES = (".parquet", ".arrow")
CSV = (".csv", ".tsv", ".csv.gz")

# ---------------------------------------------------------------------- values and types

small = st.integers(-(2**31), 2**31 - 1)
words = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
floats = st.floats(allow_nan=False, width=32)


@dataclass(frozen=True)
class Kind:
    """A type of Arrow, what fills it, and the types of other files that go together with it."""

    type: pa.DataType
    values: st.SearchStrategy
    relatives: tuple[pa.DataType, ...] = ()


# Not inside others: pyarrow can't write those that are cut.
view = Kind(pa.string_view(), words, (pa.string(),))


def _kinds(depth: int) -> st.SearchStrategy[Kind]:
    far = st.integers(-3_000_000, 3_000_000)
    leaves = st.sampled_from(
        [
            Kind(pa.int64(), small, (pa.int32(), pa.float64())),
            Kind(pa.int64(), st.integers(-(2**63), 2**63 - 1)),
            Kind(pa.uint64(), st.integers(0, 2**64 - 1)),
            Kind(pa.int8(), st.integers(-128, 127), (pa.int16(), pa.int64())),
            Kind(pa.float64(), st.floats()),
            Kind(pa.float32(), floats, (pa.float64(),)),
            Kind(pa.bool_(), st.booleans()),
            Kind(pa.string(), words, (pa.large_string(), pa.dictionary(pa.int16(), pa.string()))),
            Kind(pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", "ü"]), (pa.string(),)),
            Kind(pa.binary(), st.binary(max_size=5), (pa.large_binary(),)),
            Kind(pa.binary(4), st.binary(min_size=4, max_size=4)),
            Kind(pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
            Kind(
                pa.timestamp("us", "Europe/Berlin"),
                st.integers(-(2**50), 2**50),
                (
                    pa.timestamp("ms", "Europe/Berlin"),
                    pa.timestamp("us", "UTC"),
                    pa.timestamp("ns", "+02:00"),
                ),
            ),
            Kind(pa.timestamp("ms"), st.integers(-(2**40), 2**40), (pa.timestamp("s"),)),
            Kind(pa.date32(), far),
            Kind(pa.time64("ns"), st.integers(0, 86_399_999_999_999)),
            Kind(pa.duration("ns"), st.integers(-(2**62), 2**62)),
            Kind(
                pa.decimal128(9, 2), st.integers(-(10**6), 10**6).map(lambda n: decimal.Decimal(n).scaleb(-2))
            ),
            Kind(pa.uuid(), st.binary(min_size=16, max_size=16)),
            Kind(pa.null(), st.none(), (pa.struct([("k", pa.int64())]),)),
            Kind(pa.null(), st.none(), (pa.uuid(),)),
        ]
    )
    if depth == 0:
        return leaves
    inner = _kinds(depth - 1)
    return st.one_of(leaves, leaves, inner.map(_list), st.lists(inner, min_size=1, max_size=3).map(_struct))


def _list(kind: Kind) -> Kind:
    values = st.lists(st.one_of(st.none(), kind.values), max_size=3)
    relatives = (pa.list_(pa.null()), *map(pa.list_, kind.relatives), pa.large_list(kind.type))
    return Kind(pa.list_(kind.type), values, relatives)


def _struct(kinds: list[Kind]) -> Kind:
    names = [f"f{number}" for number in range(len(kinds))]
    values = st.fixed_dictionaries(
        {name: st.one_of(st.none(), kind.values) for name, kind in zip(names, kinds, strict=True)}
    )
    fields = [(name, kind.type) for name, kind in zip(names, kinds, strict=True)]
    return Kind(
        pa.struct(fields), values, (pa.struct(fields[:1]), pa.struct([*fields, ("more", pa.int64())]))
    )


def _missing(values: list[Any]) -> pa.Array:
    return pa.array([value is None for value in values], pa.bool_())


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as an array of a type, by way of plain storage: pyarrow takes no whole numbers for dates."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array(values, kind.storage_type))
    if pa.types.is_struct(kind):
        parts = [_array([(value or {}).get(f.name) for value in values], f.type) for f in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=_missing(values))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = [item for value in values for item in value or ()]
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value or ()))
        large = pa.types.is_large_list(kind)
        made = pa.LargeListArray if large else pa.ListArray
        return made.from_arrays(
            pa.array(ends, pa.int64() if large else pa.int32()),
            _array(flat, kind.value_type),
            type=kind,
            mask=_missing(values),
        )
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    return pa.array(values, kind)


# ---------------------------------------------------------------------- the oracle


def texts(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=lambda number: ("f", number), parse_int=lambda number: ("i", number))


# ---------------------------------------------------------------------- corpora


@dataclass
class Made:
    """A corpus as it was put down."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """What each row holds, in order: columns as the oracle sees them."""
    texts: list[str] = field(default_factory=list)
    """What must be in each row's content."""
    types: dict[str, set[pa.DataType]] = field(default_factory=dict)
    clash: str | None = None
    """A column whose types don't go together."""


PLAIN = {
    "n": Kind(pa.int64(), small, (pa.int32(),)),
    "s": Kind(pa.string(), words),
    "o": _struct([Kind(pa.string(), words)]),
}
"""Columns that JSON files have too."""
FOLDERS = ("", "deep", "deep/er", "lang=en", "lang=de/year=2024", "split=train")
NOISE = {
    "README.md": "# what this is\n",
    "dataset_info.json": '{"mine": {"file_name": "train.jsonl"}}',
    ".cache/x.jsonl": "broken {",
    "_SUCCESS": "",
    "notes.txt": "x",
    "metadata.csv": "file,rows\na,1\n",
}


def _content(draw: Any, mark: str) -> tuple[dict[str, Any], str]:
    """Columns that say what a row says, in one of the shapes that data sets have."""
    shape = draw(st.sampled_from(["text", "messages", "conversations", "json", "parts", "pair"]))
    said = f"{mark} {draw(words)}"
    if shape == "text":
        return {"text": said}, mark
    if shape == "pair":
        return {"prompt": "what", "completion": said}, mark
    if shape == "conversations":
        return {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": said}]}, mark
    content = [{"type": "image"}, {"type": "text", "text": said}] if shape == "parts" else said
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    return {"messages": json.dumps(turns) if shape == "json" else turns}, mark


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)


def _partitions(folder: str) -> dict[str, str]:
    return dict(part.split("=") for part in folder.split("/") if "=" in part)


def _put_json(draw: Any, path: Path, made: Made, mixed: bool, constants: dict[str, Any]) -> None:
    lines, number = [], len(made.rows)
    indent = draw(st.sampled_from([None, 2])) if path.suffix == ".json" else None
    for at in range(number, number + draw(st.integers(1, 4))):
        columns, said = _content(draw, f"w{at}w") if mixed else ({"text": f"w{at}w"}, f"w{at}w")
        record = {"id": f"r{at}", "at": at, **columns}
        if mixed:
            others = draw(st.dictionaries(words.map("x{}".format), json_values, max_size=3))
            record = {**others, **record}
        else:
            record |= {"n": draw(small), "s": draw(words), "o": {"f0": draw(words), "b": [draw(small)]}}
        text = json.dumps(record, ensure_ascii=draw(st.booleans()), indent=indent)
        lines.append(text)
        made.rows.append(
            {**texts(json.dumps(constants)), **texts(text)} if mixed else {**constants, **record}
        )
        made.texts.append(said)
    array = path.suffix == ".json" and (indent or draw(st.booleans()))
    whole = (
        "[" + ",\n".join(lines) + "]"
        if array
        else "\n\n".join(lines) + draw(st.sampled_from(["", "\n", "\r\n"]))
    )
    data = whole.encode("utf-8-sig" if draw(st.booleans()) else "utf-8")
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, lambda data: data)
    path.write_bytes(packed(data))


def _put_table(draw: Any, path: Path, made: Made, kinds: dict[str, Kind], constants: dict[str, Any]) -> None:
    number, count = len(made.rows), draw(st.integers(1, 4))
    arrays = {
        "id": pa.array([f"r{at}" for at in range(number, number + count)]),
        "text": pa.array([f"w{at}w" for at in range(number, number + count)]),
        "at": pa.array(range(number, number + count), pa.int64()),
    }
    for name, kind in kinds.items():
        if draw(st.integers(0, 9)) == 0:
            continue  # this file lacks the column
        values = draw(st.lists(st.one_of(st.none(), kind.values), min_size=count, max_size=count))
        chosen = draw(st.sampled_from([kind.type, kind.type, *kind.relatives, pa.null()]))
        arrays[name] = _relative(values, kind.type, chosen)
        made.types.setdefault(name, set()).add(arrays[name].type)
    if made.clash:
        clashing = pa.array([1] * count) if made.types.get(made.clash) is None else pa.array(["a"] * count)
        arrays[made.clash] = clashing
        made.types.setdefault(made.clash, set()).add(clashing.type)
    table = pa.table(arrays)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=draw(st.sampled_from([1, 2, 100])))
        table = pq.read_table(path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=draw(st.sampled_from([1, 100])))
    columns = {name: plain(table[name]) for name in table.column_names}
    for at in range(count):
        made.rows.append({**constants, **{name: column[at] for name, column in columns.items()}})
        made.texts.append(f"w{number + at}w")


def _put_csv(draw: Any, path: Path, made: Made, constants: dict[str, Any]) -> None:
    stream = io.StringIO(newline="")
    names = draw(st.permutations(["id", "text", "s"]))
    made.types.setdefault("s", set()).add(pa.string())
    writer = csv.DictWriter(stream, names, delimiter="\t" if ".tsv" in path.name else ",")
    writer.writeheader()
    number = len(made.rows)
    for at in range(number, number + draw(st.integers(1, 4))):
        record = {"id": f"r{at}", "text": f"w{at}w", "s": draw(words.filter(lambda word: "\0" not in word))}
        writer.writerow(record)
        made.rows.append({**constants, **record})
        made.texts.append(f"w{at}w")
    data = stream.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _relative(values: list[Any], own: pa.DataType, chosen: pa.DataType) -> pa.Array:
    """The values in the type of one file, or nulls where that type holds none of them."""
    if chosen == own:
        return _array(values, own)
    try:
        found = _array(values, own).cast(chosen)
        found.validate(full=True)  # pyarrow 26 casts some lists to what no file could hold
        return found
    except (pa.ArrowException, ValueError):
        return pa.nulls(len(values), chosen)


@st.composite
def corpora(draw: Any) -> tuple[Path, Made, str]:
    """A corpus in a folder, what is in it, and the ending to write under."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    made = Made()
    family = draw(st.sampled_from(["json", "table", "table", "plain json", "mixed"]))
    kinds = draw(st.lists(st.one_of(_kinds(2), st.just(view)), max_size=4)) if family == "table" else []
    named = {f"c{number}": kind for number, kind in enumerate(kinds)}
    files = draw(st.integers(1, 3))
    if family == "table" and files > 1 and draw(st.integers(0, 9)) == 0:
        made.clash = "clash"
    partitioned = draw(st.booleans())
    places = []
    for number in range(files):
        folder = draw(st.sampled_from(FOLDERS if partitioned else FOLDERS[:3]))
        ending = draw(st.sampled_from({"table": TABLES, "mixed": (*TABLES, *JSON, *CSV)}.get(family, JSON)))
        places.append(root / folder / f"{draw(st.sampled_from(['part', 'a']))}-{number}{ending}")
    for path in sorted(places, key=_order(root)):
        path.parent.mkdir(parents=True, exist_ok=True)
        constants: dict[str, Any] = _partitions(str(path.parent.relative_to(root)))
        constants = {key: int(value) if key == "year" else value for key, value in constants.items()}
        if path.name.endswith(CSV):
            _put_csv(draw, path, made, constants)
        elif path.suffix in TABLES:
            _put_table(draw, path, made, PLAIN if family == "mixed" else named, constants)
        else:
            _put_json(draw, path, made, family == "json", constants)
    noise = set(NOISE) - ({"metadata.csv"} if all(path.name.endswith(CSV) for path in places) else set())
    for name in draw(st.lists(st.sampled_from(sorted(noise)), unique=True)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(NOISE[name])
    output = draw(
        {
            "json": st.sampled_from(JSON[:3]),
            "plain json": st.sampled_from([".parquet", ".jsonl"]),
            "table": st.sampled_from([".parquet", ".jsonl" if _has_json(named) else ".parquet"]),
            "mixed": st.sampled_from([".parquet", ".jsonl", ".jsonl.gz"]),
        }[family]
    )
    return root, made, output


def _has_json(kinds: dict[str, Kind]) -> bool:
    """Whether the oracle knows how the values look in JSON."""
    others = ("timestamp", "date", "time", "duration", "decimal", "binary", "uuid")
    return not any(name in f"{kind.type} {kind.relatives}" for kind in kinds.values() for name in others)


def _order(root: Path) -> Any:
    """Files in the order of a walk: by name, folders among the files."""
    return lambda path: path.relative_to(root).parts


def _check(case: tuple[Path, Made, str], draw: Any) -> None:
    root, made, output = case
    try:
        corpus = open_corpus(root)
        if made.clash and len(made.types[made.clash]) > 1 and output == ".parquet":
            event("clash")
            with pytest.raises(InputError, match=r"column 'clash' is int64 in .* and string in "):
                corpus.scan(output=output)
            return
        seen = [row.content for row in corpus.rows(records=False, output=output)]
        for content, said in zip(seen, made.texts, strict=True):
            assert said in content
        assert [row.id for row in corpus.rows(records=False)] == [f"r{at}" for at in range(len(seen))]
        chosen = draw(st.lists(st.integers(0, len(seen) - 1), unique=True))
        target = root / f"out{output}"
        # What a row says is the same while it is copied: it isn't taken for one that has changed.
        known = KnownRows(
            [f"r{at}" for at in range(len(seen))], np.array(list(map(text_crc32, seen)), np.uint32)
        )
        rank = pa.array(range(len(chosen)), pa.int64())
        count = copy_rows(target, corpus, chosen, columns={"rank": rank}, known=known)
        assert count == len(chosen)
        event(f"{output}, {len({type(source) for source in corpus.sources})} kinds of file")
        typed = all(source.schema() is not None for source in corpus.sources)
        _compare(target, output, [made.rows[at] for at in chosen], made, typed=typed)
    finally:
        shutil.rmtree(root)


def _compare(target: Path, output: str, wanted: list[dict[str, Any]], made: Made, *, typed: bool) -> None:
    if output != ".parquet":
        opened = {".gz": gzip.decompress, ".zst": _unzstd}.get(target.suffix, lambda data: data)
        lines = opened(target.read_bytes()).decode().split("\n")[:-1]
        for at, (line, original) in enumerate(zip(lines, wanted, strict=True)):
            got = json.loads(line)
            assert got.pop("rank") == at
            if _raw(original):  # JSON as it came: the same members, numbers written in the same way
                assert texts(line) == {**original, "rank": ("i", str(at))}
            else:
                assert canonical(without_nulls(got)) == without_nulls(original)
        return
    table = pq.read_table(target, partitioning=None)
    columns = {name: plain(table[name]) for name in table.column_names}
    assert columns.pop("rank") == list(range(len(wanted)))
    assert set(columns) >= {name for row in wanted for name in row}
    for name, column in columns.items():
        assert column == [without_nulls(row.get(name)) for row in wanted], name
        if typed and len(made.types.get(name, ())) == 1:
            (kind,) = made.types[name]
            assert stored(table.schema.field(name).type) == stored(kind)


def _raw(row: dict[str, Any]) -> bool:
    """Whether the oracle kept the row as text: numbers are then pairs."""
    return isinstance(row.get("at"), tuple)


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


PROFILE = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, derandomize=True, **PROFILE)
@given(case=corpora(), data=st.data())
def test_rows_come_out_as_they_went_in(case: tuple[Path, Made, str], data: Any) -> None:
    _check(case, data.draw)


# Where somebody says how many, they are the same ones every time.
CORPORA = os.environ.get("FINESCOPE_TEST_CORPORA", "")


@pytest.mark.slow
@settings(max_examples=int(CORPORA or 10_000), derandomize=bool(CORPORA), **PROFILE)
@given(case=corpora(), data=st.data())
def test_many_corpora_come_out_as_they_went_in(case: tuple[Path, Made, str], data: Any) -> None:
    _check(case, data.draw)

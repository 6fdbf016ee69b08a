"""A corpus is found where it lies: in folders of folders, beside other things, in arrays, behind URLs.

Fails if: a file is passed over because of its format, or because it lies deeper; a file is read twice; a
description beside the data is read as rows; a partition's key is lost; an array has to fit in memory; a URL
needs other words than a path.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finescope.corpus import copy_rows, open_corpus
from finescope.corpus.jsontext import Objects
from finescope.errors import InputError


def _put(root: Path, **files: str) -> Path:
    """Write files, one row for every letter; ``__`` in a name is a slash, ``_`` before the ending a dot."""
    for name, letters in files.items():
        path = root / name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_parquet", ".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"id": list(letters), "text": list(letters)}), path)
        else:
            path.write_text("".join(json.dumps({"id": c, "text": c}) + "\n" for c in letters))
    return root


def _ids(source: Any, **options: Any) -> str:
    return "".join(row.id for row in open_corpus(source, **options))


def test_folders_of_folders_in_order_of_name(tmp_path: Path) -> None:
    _put(tmp_path, b_jsonl="cd", a__z_jsonl="b", a__deep__er__x_parquet="a", c__y_jsonl="e")
    assert _ids(tmp_path) == "abcde"
    assert _ids(f"{tmp_path}/*") == "abcde"
    assert _ids(f"{tmp_path}/**/*.jsonl") == "bcde"
    assert _ids(f"{tmp_path}/**") == "abcde"
    assert _ids([tmp_path / "c", tmp_path / "b.jsonl"]) == "ecd"
    os.symlink(tmp_path, tmp_path / "c" / "loop")  # a link that leads back
    assert _ids(tmp_path) == "abcde"


def test_what_lies_beside_the_data_is_left_out_and_said(tmp_path: Path) -> None:
    _put(tmp_path, train_jsonl="ab", data__x_parquet="c")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "train.jsonl"}}, indent=2))
    (tmp_path / "one_line.json").write_text('{"mine": {"columns": {"prompt": "text"}}}')
    (tmp_path / "README.md").write_text("# what this is")
    for hidden in (".cache/x.jsonl", "_SUCCESS", "_delta_log/0.json", ".git/config.json"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("{broken")
    corpus = open_corpus(tmp_path)
    assert _ids(tmp_path) == "cab"
    assert corpus.left_out == [
        "README.md",
        "dataset_info.json (one object without text)",
        "one_line.json (one object without text)",
    ]
    (tmp_path / "row.json").write_text('{"id": "r", "text": "a row alone in its file"}')
    assert _ids(tmp_path) == "crab"


def _put_in(root: Path, name: str, *records: dict[str, Any]) -> None:
    """Write records in the format that a name ends in."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffixes[-2] if path.suffix == ".gz" else path.suffix
    table = pa.Table.from_pylist(list(records))
    if kind == ".parquet":
        pq.write_table(table, path)
        return
    if kind in (".arrow", ".feather"):
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
        return
    if kind in (".csv", ".tsv"):
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(records[0]), delimiter="\t" if kind == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(records)
        text = stream.getvalue()
    elif kind == ".json":
        text = json.dumps(records, indent=1)
    else:
        text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


MIXED = [
    "a.csv",
    "b.jsonl",
    "c/d.tsv.gz",
    "c/e.json",
    "f.parquet",
    "g.arrow",
    "h.jsonl.gz",
    "lang=en/i.csv",
    "lang=en/j.feather",
]


@pytest.mark.parametrize("output", [".parquet", ".jsonl"])
@pytest.mark.parametrize("pattern", ["", "/*", "/**", "url", "url/**"])
def test_files_of_all_formats_are_read_in_order_of_name(
    tmp_path: Path, memory: Any, pattern: str, output: str
) -> None:
    folder = tmp_path / "in"
    wanted = []
    for number, name in enumerate(MIXED):
        record = {"id": f"r{number}", "text": f"text {number}", "c": f"0{number}"}
        _put_in(folder, name, record)
        wanted.append({**record, "lang": "en"} if name.startswith("lang") else record)
    (folder / "README.md").write_text("# what this is")
    (folder / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string"}}}')
    _put_in(folder, "metadata.csv", {"file": "b.jsonl", "rows": 1})
    _put_in(folder, "zz/splits.tsv.gz", {"split": "train", "rows": 1})
    source = f"{folder}{pattern}"
    if pattern.startswith("url"):
        memory.put(f"{folder}/", "/mixed/", recursive=True)
        source = f"memory://mixed{pattern.removeprefix('url')}"
    corpus = open_corpus(source)
    assert [row.id for row in corpus] == [row["id"] for row in wanted]
    assert sorted(corpus.left_out) == [
        "README.md",
        "dataset_info.json (one object without text)",
        "metadata.csv (a table without text)",
        f"{'' if pattern == '/*' else 'zz/'}splits.tsv.gz (a table without text)",
    ]
    once = [".tsv", ".json", ".parquet", ".arrow", ".feather"]
    assert corpus.formats == {".csv": 2, ".jsonl": 2, **dict.fromkeys(once, 1)}
    assert corpus.suffix == ".jsonl"
    corpus.scan(output=output)
    order = [5, 0, 7, 2, 8, 4, 1, 3, 6]
    assert copy_rows(tmp_path / f"out{output}", corpus, order) == 9
    if output == ".parquet":
        got = pq.read_table(tmp_path / "out.parquet", partitioning=None).to_pylist()
        assert got == [{"lang": None, **wanted[at]} for at in order]
    else:
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [wanted[at] for at in order]


def test_what_does_not_go_into_one_table_is_refused_by_name(tmp_path: Path) -> None:
    _put_in(tmp_path, "a.parquet", {"text": "a", "n": 1})
    _put_in(tmp_path, "b.csv", {"text": "b", "n": 1})
    corpus = open_corpus(tmp_path)
    with pytest.raises(
        InputError, match=r"column 'n' is int64 in a\.parquet and string in b\.csv.*--format jsonl"
    ):
        corpus.scan(output=corpus.suffix)
    corpus = open_corpus(tmp_path)
    corpus.scan(output=".jsonl")
    copy_rows(tmp_path / "out.jsonl", corpus, [1, 0])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "b", "n": "1"}, {"text": "a", "n": 1}]


def test_what_is_no_data_depends_on_what_is_read(tmp_path: Path) -> None:
    _put_in(tmp_path, "a.jsonl", {"q": "one", "said": {"text": "x"}})
    _put_in(tmp_path, "b.csv", {"q": "two"})
    _put_in(tmp_path, "c.csv", {"text": "three"})
    (tmp_path / "d.json").write_text('{"text": "what this is"}')
    for options in ({"text_column": "q"}, {"text_template": "{{ q }}"}):
        corpus = open_corpus(tmp_path, **options)  # type: ignore[arg-type]
        assert [row.content for row in corpus] == ["one", "two"]
        assert corpus.left_out == ["d.json (one object without text)", "c.csv (a table without text)"]
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "d.json").unlink()
    # Of tables alone none is left out: its column may go by another name.
    with pytest.raises(InputError, match=r"c\.csv: no column 'q'; there are 'text'"):
        list(open_corpus(tmp_path, text_column="q"))


def test_rows_in_a_list_within_one_object_are_refused_by_name(tmp_path: Path) -> None:
    """As some exports have them: beside other files they would pass for a description of those."""
    _put(tmp_path, z_jsonl="z")
    for rows in (2, 30_000):
        for held, words in (
            ({"data": [{"text": "a" * 60}] * rows}, "'data'"),
            ({"train": {"rows": [{"text": "a" * 60}] * rows}}, r"'train\.rows'"),
        ):
            (tmp_path / "a.json").write_text(json.dumps({"version": 1, **held}, indent=1))
            for source in (tmp_path, tmp_path / "a.json"):
                with pytest.raises(InputError, match=rf"a\.json is one object that holds rows in {words}"):
                    open_corpus(source)
    (tmp_path / "a.json").write_text(json.dumps({"features": [{"name": "text"}], "long": "x" * (1 << 21)}))
    assert open_corpus(tmp_path).left_out == ["a.json (one object without text)"]


def test_a_folder_that_links_lead_to_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    _put(root, v1__a_jsonl="ab", v2__a_jsonl="cd")
    os.symlink("v2", root / "latest")
    (root / "same.jsonl").symlink_to("v1/a.jsonl")  # a file's link is a file: caches keep equal ones once
    for pattern, link in (
        ("", "latest (a link to v2)"),
        ("/**", "latest (a link to v2)"),
        ("/**/*.jsonl", "latest/a.jsonl (a link to v2/a.jsonl)"),
    ):
        corpus = open_corpus(f"{root}{pattern}", id_column=None)
        assert [row.content for row in corpus] == list("ababcd")
        assert corpus.left_out == [link]
    assert _ids(f"{root}/latest/*.jsonl") == _ids(root / "latest") == "cd"
    os.symlink(_put(tmp_path / "elsewhere", b_jsonl="e"), root / "w")
    _put(root / "_kept", c_jsonl="f")
    os.symlink("_kept", root / "x")
    corpus = open_corpus(root, id_column=None)
    assert [row.content for row in corpus] == list("ababcdef")
    assert corpus.left_out == ["_kept/ (hidden)", "latest (a link to v2)"]


def test_hidden_files_are_said_and_patterns_mean_the_same_everywhere(tmp_path: Path, memory: Any) -> None:
    _put(tmp_path, a_jsonl="a", **{".b_jsonl": "b", "_c_jsonl": "c", ".d__e_jsonl": "e"})
    memory.put(f"{tmp_path}/", "/hidden/", recursive=True)
    for root in (str(tmp_path), "memory://hidden"):
        corpus = open_corpus(root)
        assert ([row.id for row in corpus], corpus.left_out) == (
            ["a"],
            [".b.jsonl (hidden)", "_c.jsonl (hidden)"],
        )
        assert sorted(_ids(f"{root}/*.jsonl")) == sorted(_ids(f"{root}/**/*.jsonl")) == ["a", "c"]
        assert _ids(f"{root}/.*.jsonl") == "b"
        with pytest.raises(InputError, match=r"\*\.md does not exist"):
            open_corpus(f"{root}/*.md")
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(InputError, match=r"\*\.md matches no corpus files; it holds x\.md; wanted: \.jsonl"):
        open_corpus(f"{tmp_path}/*.md")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.csv", "train.jsonl"),
        ("train.jsonl", "train.jsonl.gz"),
        ("csv/train.csv", "parquet/train-00000-of-00001.parquet"),
        ("a.arrow", "lang=en/b.tsv"),
    ],
)
def test_rows_that_lie_there_in_two_formats_do_not_count_twice(
    tmp_path: Path, memory: Any, one: str, other: str
) -> None:
    rows = [{"text": f"row {number}\nof it", "n": str(number)} for number in range(30)]
    _put_in(tmp_path, one, *rows)
    _put_in(tmp_path, other, *rows[:25])
    memory.put(f"{tmp_path}/", "/twice/", recursive=True)
    for source in (tmp_path, f"{tmp_path}/**", "memory://twice"):
        with pytest.raises(InputError, match=rf"{one} and {other} begin with the same rows"):
            open_corpus(source)
    corpus = open_corpus([tmp_path / one, tmp_path / other])  # asked for by name
    assert len(list(corpus)) == 55
    assert len(list(open_corpus(tmp_path / other))) == 25


def test_files_of_one_name_with_other_rows_are_read_and_said(tmp_path: Path) -> None:
    _put_in(tmp_path, "train.csv", {"text": "a"}, {"text": "b"})
    _put_in(tmp_path, "train.jsonl", {"text": "c"}, {"text": "b"})
    _put_in(tmp_path, "more.jsonl.gz", {"text": "a"})  # one row may be like another
    corpus = open_corpus(tmp_path)
    assert [row.text for row in corpus] == list("aabcb")
    assert corpus.remarks == ["train.csv and train.jsonl differ, so both are read"]
    (tmp_path / "train.csv").write_text('text\n"broken')
    with pytest.raises(InputError, match=r"train\.csv:2: broken CSV"):
        list(open_corpus(tmp_path))


RUN = ["stages/train.json", "sae/metrics.jsonl", "codes/corpus/shard-00000.parquet", "curated.jsonl"]
PLANNED = ["config.yaml", "plan.parquet"]
STORE = ["manifest.json", "shard-00000.safetensors", "shard-00000.parquet"]


@pytest.mark.parametrize("names", [RUN, PLANNED, STORE])
def test_what_was_made_of_the_rows_is_none_of_them(tmp_path: Path, memory: Any, names: list[str]) -> None:
    """An output folder beside the data: the next run must not read what the last has written."""
    root = _put(tmp_path / "in", a_jsonl="ab")
    for name in names:
        path = root / "x" / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"id": ["z"], "text": ["z"]}), path)
        else:
            path.write_text('{"id": "z", "text": "z"}\n')
    memory.put(f"{root}/", "/made/", recursive=True)
    for source in (root, f"{root}/**", f"{root}/*", "memory://made", "memory://made/**"):
        corpus = open_corpus(source)
        assert [row.id for row in corpus] == ["a", "b"]
        assert next(name for name in corpus.left_out if "FineScope" in name).endswith(
            "out (work of FineScope)"
        )
    with pytest.raises(InputError, match=r"out is a folder that FineScope works in"):
        open_corpus(root / "x" / "out")
    if names == RUN:  # what a run has chosen may be asked for
        assert _ids(root / "x" / "out" / "curated.jsonl") == "z"
        assert _ids(f"{root}/x/*/curated.jsonl") == _ids(f"{root}/x/out/*.jsonl") == "z"


def test_a_folder_with_descriptions_only(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {}}')
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(InputError, match=r"without corpus files; it holds README\.md, dataset_info\.json"):
        open_corpus(tmp_path)
    with pytest.raises(InputError, match=r"dataset_info\.json:1: no column 'text'; there are 'mine'"):
        list(open_corpus(tmp_path / "dataset_info.json"))


def test_a_folder_that_is_called_like_a_file(tmp_path: Path) -> None:
    """What Spark writes under ``corpus.parquet``: a folder with parts, marks and checksums."""
    _put(tmp_path, **{"corpus.parquet__part-00000_parquet": "ab", "corpus.parquet__part-00001_parquet": "c"})
    (tmp_path / "corpus.parquet" / "_SUCCESS").write_text("")
    (tmp_path / "corpus.parquet" / ".part-00000.parquet.crc").write_bytes(b"crc")
    corpus = open_corpus(tmp_path / "corpus.parquet")
    assert [row.id for row in corpus] == ["a", "b", "c"]
    assert corpus.left_out == []
    assert _ids(tmp_path) == "abc"


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    """Not at the separators that a text may hold, where ``str.splitlines`` would cut it."""
    texts = ["one\u2028two", "three\u0085four\x1c", "five\u2029\x0b"]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), newline="")
    corpus = open_corpus(path)
    assert [row.text for row in corpus] == texts
    copy_rows(tmp_path / "out.jsonl", corpus, [0, 1, 2])
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes() + b"\n"


def test_partitions_become_columns(tmp_path: Path) -> None:
    _put(tmp_path, **{"lang=en__year=2023__a_parquet": "a", "lang=de__year=2024__b_jsonl": "b"})
    _put(tmp_path, **{"lang=a%20b__c_jsonl": "c"})
    wanted = {
        "a": {"lang": "en", "year": 2023},
        "b": {"lang": "de", "year": 2024},
        "c": {"lang": "a b"},
        "d": {"lang": None},
    }
    _put(tmp_path / "lang=__HIVE_DEFAULT_PARTITION__", d_jsonl="d")
    corpus = open_corpus(tmp_path)
    found = {row.id: row.record for row in corpus}
    assert {
        id_: {k: v for k, v in record.items() if k not in ("id", "text")} for id_, record in found.items()
    } == wanted
    assert {row.id: row.record for row in corpus.rows(columns=["year"])}["a"] == {"year": 2023}
    order = [row.id for row in corpus]
    corpus.scan(output=".parquet")
    copy_rows(tmp_path / "out.parquet", corpus, range(4))
    table = pq.read_table(tmp_path / "out.parquet", partitioning=None)
    assert table.schema.field("year").type == pa.int64()
    assert [row["lang"] for row in table.to_pylist()] == [wanted[id_]["lang"] for id_ in order]
    corpus.scan(output=".jsonl")
    copy_rows(tmp_path / "out.jsonl", corpus, range(4))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{"lang": line.get("lang")} for line in lines] == [{"lang": wanted[id_]["lang"]} for id_ in order]
    assert {row.record.get("year") for row in open_corpus(f"{tmp_path}/lang=*/**/*.parquet")} == {2023}
    assert next(iter(open_corpus(f"{tmp_path}/lang=e*"))).record["lang"] == "en"
    # A file that is named is that file: what its folders are called says nothing.
    assert "lang" not in next(iter(open_corpus(tmp_path / "lang=en" / "year=2023" / "a.parquet"))).record


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["5", "-9223372036854775808"], pa.int64()),
        (["5", "99999999999999999999"], pa.string()),
        (["5", "9223372036854775808"], pa.string()),
        (["5", "None"], pa.string()),
        (["None"], pa.string()),
        (["7", "007"], pa.string()),
        (["1", "-0"], pa.string()),
        (["1", "²"], pa.string()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
    ],
)
@pytest.mark.parametrize("name", ["a_parquet", "a_jsonl"])
def test_a_partition_is_a_number_if_all_values_are_written_as_one(
    tmp_path: Path, name: str, values: list[str], kind: pa.DataType
) -> None:
    for value in values:
        _put(tmp_path / "in" / f"k={value}", **{name: "a"})
    corpus = open_corpus(tmp_path / "in", id_column=None)
    corpus.scan(output=".parquet")
    copy_rows(tmp_path / "out.parquet", corpus, range(len(values)))
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.schema.field("k").type == kind
    found = ["__HIVE_DEFAULT_PARTITION__" if value is None else str(value) for value in got["k"].to_pylist()]
    assert found == sorted(values)


def test_what_is_no_file_of_rows_is_named(tmp_path: Path) -> None:
    """A link to nothing, as git-annex leaves of what it hasn't fetched, and a pipe, which never ends."""
    root = _put(tmp_path / "in", a_jsonl="a")
    os.mkfifo(root / "p.jsonl")
    (root / "other.txt").symlink_to("gone")
    for pattern in ("", "/*"):
        corpus = open_corpus(f"{root}{pattern}")
        assert corpus.scan().rows == 1
        assert sorted(corpus.left_out) == ["other.txt", "p.jsonl (a pipe or a device)"]
    for name in ("b.jsonl", "c.json"):
        (root / name).symlink_to(".git/annex/objects/x")
        for path in (root, f"{root}/*", root / name):
            with pytest.raises(InputError, match=rf"{name} is a link to \.git/annex/objects/x, which isn't"):
                open_corpus(path)
        (root / name).unlink()


def test_what_git_lfs_has_not_fetched_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123\n"
    _put(tmp_path, a_jsonl="a")
    for name in ("b.csv", "b.jsonl", "b.parquet", "b.arrow", "b.jsonl.zst", "b.csv.gz"):
        (tmp_path / name).write_text(pointer)
        for source in (tmp_path, tmp_path / name, f"{tmp_path}/*"):
            with pytest.raises(
                InputError, match=rf"/{re.escape(name)} is a pointer of Git LFS.*git lfs pull --include=b"
            ):
                open_corpus(source)
        (tmp_path / name).unlink()
    _put_in(tmp_path, "b.jsonl", {"id": "b", "text": pointer})
    assert _ids(tmp_path) == "ab"


def test_what_datasets_keeps_of_its_own_work_is_no_data(tmp_path: Path) -> None:
    """The folder of a cache: rows, and beside them what ``map`` made of them."""
    for name in (
        "set-train.arrow",
        "cache-0123456789abcdef.arrow",
        "cache-0123456789abcdef_00001_of_00002.arrow",
    ):
        _put_in(tmp_path, name, {"text": name})
    _put_in(tmp_path, "cache-of-mine.arrow", {"text": "mine"})
    corpus = open_corpus(tmp_path)
    assert [row.content for row in corpus] == ["mine", "set-train.arrow"]
    assert corpus.left_out == [
        "cache-0123456789abcdef.arrow (a cache of datasets)",
        "cache-0123456789abcdef_00001_of_00002.arrow (a cache of datasets)",
    ]
    named = tmp_path / "cache-0123456789abcdef.arrow"
    assert [row.content for row in open_corpus(named)] == [named.name]


def _commit(table: Path, number: int, *actions: dict[str, Any]) -> None:
    path = table / "_delta_log" / f"{number:020d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(action) + "\n" for action in actions))


def _add(path: str, **more: Any) -> dict[str, Any]:
    return {"add": {"path": path, "partitionValues": {}, "dataChange": True, **more}}


def test_of_a_delta_lake_table_the_files_that_its_log_counts(tmp_path: Path, memory: Any) -> None:
    table = tmp_path / "t"
    names = {"old_parquet": "a", "new_parquet": "b", "k=x%20y__c_parquet": "c", "stray_parquet": "d"}
    _put(table, **names, _delta_log__00000000000000000002_checkpoint_parquet="z")
    (table / "README.md").write_text("x")
    _commit(table, 0, {"metaData": {"configuration": {}}}, _add("old.parquet"), {"commitInfo": {}})
    _commit(table, 1, {"remove": {"path": "old.parquet"}}, _add("new.parquet"))
    _commit(table, 2, _add("k%3Dx%2520y/c.parquet", partitionValues={"k": "x y"}))
    memory.put(f"{tmp_path}/", "/delta/", recursive=True)
    for source in (table, tmp_path, f"{tmp_path}/*", "memory://delta/t", "memory://delta"):
        corpus = open_corpus(source)
        assert [(row.id, row.record.get("k")) for row in corpus] == [("c", "x y"), ("b", None)]
        assert sorted(corpus.left_out) == [
            "README.md",
            "old.parquet (no part of the Delta Lake table)",
            "stray.parquet (no part of the Delta Lake table)",
        ]
    assert sorted(_ids(f"{table}/*.parquet")) == ["a", "b", "d"]
    (table / "new.parquet").unlink()
    with pytest.raises(InputError, match=r"t: new\.parquet, a part of this Delta Lake table, isn't there"):
        open_corpus(table)


@pytest.mark.parametrize(
    ("number", "action", "words"),
    [
        (0, _add("a.parquet", deletionVector={"storageType": "u"}), r"a\.parquet has rows that are deleted"),
        (0, _add("a.parquet", partitionValues={"day": "1"}), "column 'day' stands in the log alone"),
        (0, _add("s3://other/a.parquet"), "lies elsewhere"),
        (
            0,
            {"metaData": {"configuration": {"delta.columnMapping.mode": "name"}}},
            "other names in the files",
        ),
        (11, _add("a.parquet"), "only the later commits"),
    ],
)
def test_delta_lake_tables_that_files_alone_cannot_tell_are_refused(
    tmp_path: Path, number: int, action: dict[str, Any], words: str
) -> None:
    _put(tmp_path, a_parquet="a")
    _commit(tmp_path, number, action)
    with pytest.raises(InputError, match=rf"is a Delta Lake table .*{words}.* with a pattern"):
        open_corpus(tmp_path)
    assert _ids(f"{tmp_path}/*.parquet") == "a"
    _commit(tmp_path, 0, {"add": 3})
    with pytest.raises(InputError, match=r"\.json is no commit of a Delta Lake table|only the later commits"):
        open_corpus(tmp_path)


def test_a_column_of_the_file_goes_before_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "a.jsonl").write_text('{"text": "a", "lang": "fr"}\n')
    pq.write_table(pa.table({"text": ["b"], "lang": ["it"]}), tmp_path / "lang=en" / "b.parquet")
    corpus = open_corpus(tmp_path)
    assert [row.record["lang"] for row in corpus] == ["fr", "it"]
    copy_rows(tmp_path / "out.jsonl", corpus, [0, 1])
    assert [json.loads(line)["lang"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        "fr",
        "it",
    ]


ARRAY = [
    {"id": "a", "text": 'one, "two"\n]}', "n": [1, {"x": []}]},
    {"id": "b", "text": "ü\u2028"},
    {"id": "c", "text": "x"},
]


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz"])
def test_an_array_is_read_like_lines(tmp_path: Path, ending: str, indent: int | None) -> None:
    data = ("\ufeff \n" + json.dumps(ARRAY, indent=indent, ensure_ascii=False) + "\n\n").encode()
    path = tmp_path / f"c{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    corpus = open_corpus(path)
    assert [row.record for row in corpus] == ARRAY
    assert [row.id for row in corpus.rows(records=False)] == ["a", "b", "c"]
    copy_rows(tmp_path / "out.jsonl", corpus, [2, 0])
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [ARRAY[2], ARRAY[0]]


def test_objects_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("\n".join(json.dumps(record, indent=1) for record in ARRAY))
    assert [(row.record, row.place) for row in open_corpus(path)] == [
        (ARRAY[0], "c.json:1"),
        (ARRAY[1], "c.json:11"),
        (ARRAY[2], "c.json:15"),
    ]
    assert list(open_corpus(_empty_array(tmp_path / "e.json"), limit=1).sources[0].records(None)) == []


def _empty_array(path: Path) -> Path:
    path.write_text(" [ ] ")
    return path


def test_an_array_is_streamed() -> None:
    class Endless:
        """An array without end, handed out in blocks of odd sizes."""

        given = 0

        def read(self, size: int) -> str:
            element = '{"text": "' + "x" * 997 + '"},\n'
            head = "[" if self.given == 0 else ""
            block = (
                head + (element * (size // len(element) + 2))[self.given % len(element) :][: size - len(head)]
            )
            self.given += len(block) - len(head)
            return block

    source = Endless()
    for number, (line, text, value) in enumerate(Objects(source)):
        assert (line, len(text), len(value["text"])) == (number + 1, 1009, 997)
        assert source.given < 1010 * number + (3 << 20)
        if number == 20_000:
            break


def test_blocks_may_end_anywhere() -> None:
    text = json.dumps([{"a": "\\ud83d\\ude00\\\\", "b": [True, None, -1.5e-3]}, {"c": "é" * 5}] * 3, indent=1)

    class Dribble:
        def __init__(self, step: int) -> None:
            self.at, self.step = 0, step

        def read(self, _: int) -> str:
            block = text[self.at : self.at + self.step]
            self.at += self.step
            return block

    for step in range(1, 60):
        assert [value for _, _, value in Objects(Dribble(step))] == json.loads(text)


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_urls_are_paths(tmp_path: Path, memory: Any) -> None:
    _put(tmp_path, **{"b_jsonl": "cd", "lang=en__a_parquet": "ab"})
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"id": "e", "text": "e"}\n'))
    (tmp_path / "d.json").write_text('[{"id": "f", "text": "f"}]')
    (tmp_path / "info.json").write_text('{"not": "a row"}')
    (tmp_path / "README.md").write_text("x")
    with pa.ipc.new_stream(
        str(tmp_path / "a.arrow"), (table := pa.table({"id": ["z"], "text": ["z"]})).schema
    ) as stream:
        stream.write_table(table)
    memory.put(f"{tmp_path}/", "/bucket/corpus/", recursive=True)
    here, there = open_corpus(tmp_path), open_corpus("memory://bucket/corpus")
    assert [row.id for row in there] == [row.id for row in here] == list("zcdefab")
    assert [row.record for row in there] == [row.record for row in here]
    assert there.fingerprint() == here.fingerprint()
    assert (
        sorted(there.left_out)
        == sorted(here.left_out)
        == ["README.md", "info.json (one object without text)"]
    )
    assert there.len_hint == 7
    for ending in (".parquet", ".jsonl"):
        for name, corpus in (("here", here), ("there", there)):
            corpus.scan(output=ending)
            copy_rows(tmp_path / f"{name}{ending}", corpus, [5, 1, 4, 0])
        assert (tmp_path / f"here{ending}").read_bytes() == (tmp_path / f"there{ending}").read_bytes()
    assert _ids("memory://bucket/corpus/*.jsonl*") == "cde"
    assert _ids("memory://bucket/corpus/**/*.parquet") == "ab"
    assert _ids("memory://bucket/corpus/b.jsonl") == "cd"
    assert _ids(f"file://{tmp_path}/b.jsonl") == "cd"


def test_urls_that_lead_nowhere(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"none\.zip can't be opened: .*No such file"):
        open_corpus("zip://a.jsonl::/none.zip")
    with pytest.raises(InputError, match=r"/bucket/none\.jsonl does not exist"):
        open_corpus("memory://bucket/none.jsonl")
    with pytest.raises(InputError, match="nosuch://x can't be opened"):
        open_corpus("nosuch://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://b/a\.jsonl needs a package .*finescope\[urls\]"):
        open_corpus("s3://b/a.jsonl")
    memory.pipe("/bucket/broken.parquet", b"PAR1 no")
    with pytest.raises(InputError, match=r"broken\.parquet"):
        list(open_corpus("memory://bucket/broken.parquet"))

    class Failing(type(memory)):  # type: ignore[misc]
        cachable = False

        def _open(self, *_: Any, **__: Any) -> Any:
            raise PermissionError("no credentials")

    corpus = open_corpus(_at(memory, "/bucket/a.jsonl", b'{"text": "a"}\n'))
    corpus.sources[0]._file.system = Failing()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"/bucket/a\.jsonl can't be read: PermissionError: no credentials"):
        list(corpus)


def _at(memory: Any, path: str, data: bytes) -> str:
    memory.pipe(path, data)
    return f"memory:/{path}"


def test_a_file_is_hashed_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finescope.corpus import files

    _put(tmp_path, a_jsonl="ab")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n') * 2)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(tmp_path.iterdir())]
    corpus = open_corpus(tmp_path)
    corpus.scan()
    monkeypatch.setattr(files, "sha256_file", None)
    assert [source["sha256"] for source in corpus.fingerprint()["sources"]] == hashes
    monkeypatch.undo()
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    assert (
        corpus.fingerprint()["sources"][0]["sha256"] == hashlib.sha256(b'{"text": "changed"}\n').hexdigest()
    )


def test_saved_datasets_need_no_package(tmp_path: Path) -> None:
    """The folder of ``save_to_disk``, as it is on the disk: Arrow streams and two notes."""
    for split, letters in (("train", ["ab", "c"]), ("test", ["d"])):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        names = [f"data-{n:05d}-of-{len(letters):05d}.arrow" for n in range(len(letters))]
        for name, part in zip(names, letters, strict=True):
            table = pa.table(
                {"id": list(part), "text": list(part), "when": pa.array([1] * len(part), pa.timestamp("ns"))}
            )
            with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
                stream.write_table(table)
        (folder / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": name} for name in names]})
        )
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert _ids(tmp_path / "set" / "train") == "abc"
    assert _ids(tmp_path / "set", split="test") == "d"
    with pytest.raises(InputError, match="set has several splits; name one of train, test"):
        open_corpus(tmp_path / "set")
    with pytest.raises(InputError, match="set has no split 'dev'; name one of train, test"):
        open_corpus(tmp_path / "set", split="dev")
    corpus = open_corpus(tmp_path / "set" / "train")
    assert (corpus.len_hint, next(iter(corpus)).place) == (3, "train:row 0")
    copy_rows(tmp_path / "out.parquet", corpus, [2, 0])
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["c", "a"]
    _put(tmp_path / "set" / "train", z_jsonl="z")
    assert _ids(tmp_path / "set" / "train") == "abc", (
        "what else lies in the folder is not part of the dataset"
    )
    (tmp_path / "set" / "dataset_dict.json").unlink()
    assert _ids(tmp_path / "set") == "dabc", "datasets in a folder of folders"
    empty = tmp_path / "set" / "empty"
    empty.mkdir()
    (empty / "state.json").write_text('{"_data_files": []}')
    (empty / "dataset_info.json").write_text("{}")
    corpus = open_corpus(tmp_path / "set")
    assert corpus.scan().rows == 4
    assert corpus.left_out == ["empty (a saved dataset without rows)"]
    with pytest.raises(InputError, match="names no data files: it has no rows"):
        open_corpus(empty)
    (tmp_path / "set" / "test" / names[0]).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"is no Arrow file, or is truncated"):
        _ids(tmp_path / "set" / "test")


def test_of_very_many_files_those_of_one_name_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finescope.corpus.copies._MOST", 2)
    rows = [{"text": letter * 3, "n": letter} for letter in "abc"]
    for name in ("one.jsonl", "other.csv", "third.jsonl"):
        _put_in(tmp_path, name, *rows)
    assert len(list(open_corpus(tmp_path))) == 9
    _put_in(tmp_path, "one.csv", *rows)
    with pytest.raises(InputError, match=r"one\.csv and .*one\.jsonl begin with the same rows"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("output", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["b.csv", "b.tsv.gz", "b.jsonl", "b.parquet", "k=1/b.csv", "k=1/b.parquet"])
def test_an_empty_file_beside_others_has_no_rows(tmp_path: Path, name: str, output: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({}), path)
    else:
        path.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    for other, text in (("a", "x"), ("c", "y")):
        beside = path.parent / path.name.replace("b.", f"{other}.").removesuffix(".gz")
        if beside.suffix == ".parquet":
            pq.write_table(pa.table({"id": [other], "text": [text]}), beside)
        elif beside.suffix == ".jsonl":
            beside.write_text(json.dumps({"id": other, "text": text}))
        else:
            beside.write_text(f"id\ttext\n{other}\t{text}\n")
    corpus = open_corpus(tmp_path / "in")
    assert corpus.scan(output=output).rows == 2
    assert copy_rows(tmp_path / f"out{output}", corpus, [1, 0]) == 2
    path.rename(path.parent / f"alone-{path.name}")
    with pytest.raises(InputError, match="has no rows"):
        open_corpus(path.parent / f"alone-{path.name}").scan(output=output)

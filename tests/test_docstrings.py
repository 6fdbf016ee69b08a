"""The demo's corpus is built from whatever is installed.

It must be labelled, free of copies and the same on every run, and building it must never run foreign code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from finescope.demo.docstrings import (
    Docstring,
    collect_docstrings,
    label_counts,
    library_root,
    prose,
    write_docstrings,
)
from finescope.errors import StoreError

SENTENCE = "Return the number of {} that were found in the given container, as an integer."


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "demo"
    for name in ("alpha", "beta", "_private", "alpha/tests"):
        (root / name).mkdir(parents=True)
    (root / "alpha" / "__init__.py").write_text(
        f'"""{SENTENCE.format("apples")}"""\nraise SystemExit("imported!")\n'
    )
    (root / "alpha" / "core.py").write_text(
        f'def count():\n    """{SENTENCE.format("pears")}"""\n'
        f'def again():\n    """{SENTENCE.format("pears").upper()}"""\n'
        f'def shared():\n    """{SENTENCE.format("shared things")}"""\n'
        f'def _hidden():\n    """{SENTENCE.format("hidden things")}"""\n'
        f'class Box:\n    """{SENTENCE.format("boxes")}"""\n'
        f'    def size(self):\n        """{SENTENCE.format("sides")}"""\n'
        'def short():\n    """Too short."""\n'
    )
    (root / "alpha" / "tests" / "test_core.py").write_text(f'"""{SENTENCE.format("tests")}"""\n')
    (root / "beta" / "__init__.py").write_text(f'"""{SENTENCE.format("shared things")}"""\n')
    (root / "beta" / "more.py").write_text(f'"""{SENTENCE.format("plums")}"""\n"\\d"\n')
    (root / "beta" / "broken.py").write_text("def broken(:\n")
    (root / "_private" / "secret.py").write_text(f'"""{SENTENCE.format("secrets")}"""\n')
    return root


def test_labels_and_duplicates(library: Path) -> None:
    rows = collect_docstrings(["demo"], roots={"demo": library}, min_per_label=1)
    assert {row.id: row.label for row in rows} == {
        "demo.alpha": "demo.alpha",
        "demo.alpha.core.count": "demo.alpha",
        "demo.alpha.core.Box": "demo.alpha",
        "demo.alpha.core.Box.size": "demo.alpha",
        "demo.beta.more": "demo.beta",
    }
    assert label_counts(rows) == {"demo.alpha": 4, "demo.beta": 1}


def test_limits_per_label(library: Path) -> None:
    few = collect_docstrings(["demo"], roots={"demo": library}, min_per_label=2, max_per_label=3)
    assert label_counts(few) == {"demo.alpha": 3}
    assert few == collect_docstrings(["demo"], roots={"demo": library}, min_per_label=2, max_per_label=3)


def test_same_name_twice_gets_two_ids(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.py").write_text(
        f'def f():\n    """{SENTENCE.format("cats")}"""\ndef f():\n    """{SENTENCE.format("dogs")}"""\n'
    )
    rows = collect_docstrings(["demo"], roots={"demo": tmp_path}, min_per_label=1)
    assert [row.id for row in rows] == ["demo.a.m.f", "demo.a.m.f#2"]


def test_prose_ends_at_the_first_section() -> None:
    assert prose("Do a thing.\n\nMore of :func:`~a.b.thing`.\n\nParameters\n----------\nx : int") == (
        "Do a thing. More of a.b.thing."
    )
    for tail in ("Args:\n    x: y", ">>> import thing", ":param x: y", ".. note:: z", "Returns:\n  q"):
        assert prose(f"Do a thing.\n\n{tail}") == "Do a thing."
    assert prose("One sentence here. Another one follows it.", 25) == "One sentence here."
    assert prose("word " * 100, 22) == "word word word word"


def test_installed_standard_library_is_a_corpus() -> None:
    root = library_root("stdlib")
    assert root is not None
    before = set(sys.modules)
    rows = collect_docstrings(["stdlib", "no_such_library_here"], max_per_label=40)
    assert len({row.label for row in rows}) >= 15
    assert {"asyncio", "email", "logging"} <= {row.label for row in rows}
    assert len({row.text.lower() for row in rows}) == len(rows) == len({row.id for row in rows})
    assert not {
        name for name in set(sys.modules) - before if name.split(".")[0] in ("tkinter", "turtle", "email")
    }
    assert max(label_counts(rows).values()) <= 40


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.parquet"])
def test_written_rows_read_back(tmp_path: Path, name: str) -> None:
    rows = [Docstring("a.b", "Größe — “quoted” text", "a"), Docstring("a.c", "line", "a")]
    write_docstrings(tmp_path / "deep" / name, rows)
    if name.endswith("parquet"):
        import pyarrow.parquet as pq

        read = pq.read_table(tmp_path / "deep" / name).to_pylist()
    else:
        read = [
            json.loads(line) for line in (tmp_path / "deep" / name).read_text(encoding="utf-8").splitlines()
        ]
    assert read == [row.to_dict() for row in rows]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]


def test_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "place").write_text("a file where a folder is needed")
    with pytest.raises((StoreError, OSError)):
        write_docstrings(tmp_path / "place" / "docs.jsonl", [Docstring("a", "b", "c")])
    assert [path.name for path in tmp_path.iterdir()] == ["place"]

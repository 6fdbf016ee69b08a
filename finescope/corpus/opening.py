"""Opening a corpus: finding its files, and what is read of their rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from finescope.corpus.beside import Found
from finescope.corpus.content import TEXT, ContentReader
from finescope.corpus.places import find, settle_partitions
from finescope.corpus.reader import Corpus
from finescope.corpus.source import MemorySource
from finescope.errors import InputError
from finescope.storage.files import PathLike


def open_corpus(
    source: PathLike | Iterable[Any],
    *,
    text_column: str | Sequence[str] = TEXT,
    text_template: str | None = None,
    id_column: str | None = "id",
    limit: int | None = None,
    empty: str = "skip",
    split: str | None = None,
    lenient: bool = False,
) -> Corpus:
    """Open a corpus of texts or conversations.

    What is read of a row: see ``ContentReader``. Ids come from ``id_column``; where there is none:
    ``<file stem>:<row number from 0>``.

    Args:
        source: a file (.jsonl, .ndjson or .json with one object a line or an array of objects, .csv, .tsv,
            each also .gz, .zst, .bz2 or .xz; .parquet; .arrow, .feather), a folder of such files and folders
            or a pattern (in order of name, all formats; what is passed over stands in ``Corpus.left_out``;
            folders called ``key=value`` give columns), a folder written by
            ``save_to_disk``, all of these also as an ``fsspec`` URL; ``hf:NAME``, ``hf:NAME:SPLIT`` or
            ``hf:NAME:CONFIG:SPLIT`` for a dataset of the Hugging Face hub; a list of any of these, or a list
            of dictionaries.
        text_column: column of the text, or several, which are joined; "a,b" means ["a", "b"]. Dotted names
            reach into objects.
        text_template: Jinja template that makes the text out of a row's columns, instead of ``text_column``.
        id_column: column of the ids; None or "none" numbers the rows.
        limit: read only the first rows.
        empty: what a row without text means: "skip" keeps its place, counts it and gives it an empty code;
            "error" refuses it.
        split: split of a Hugging Face dataset.
        lenient: take the default columns where those named are missing.

    Raises:
        InputError: nothing there, a format that isn't read, or, in a folder or pattern, the same rows in two
            formats. Contents are checked while reading.
    """
    content = ContentReader(text_column, text_template, lenient=lenient)
    found = Found()
    if isinstance(source, (str, os.PathLike)):
        found = find(source, split, content)
    else:
        items = list(source)
        if not items:
            raise InputError("the corpus is an empty list; give at least one file or one row")
        if all(isinstance(item, dict) for item in items):
            found.sources.append(MemorySource(items))
        elif all(isinstance(item, (str, os.PathLike)) for item in items):
            for item in items:
                found.add(find(item, split, content))
        else:
            raise InputError("a corpus given as a list is a list of paths or a list of dictionaries")
    settle_partitions(found.sources)
    return Corpus(
        found.sources,
        content=content,
        id_column=id_column,
        limit=limit,
        empty=empty,
        lenient=lenient,
        left_out=found.left_out,
        remarks=found.remarks,
    )

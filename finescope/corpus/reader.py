"""Corpus: the rows of one or many files or datasets, in order, as often as asked for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finescope.corpus.formats import (
    JSONL_ENDINGS,
    DatasetSource,
    JsonlSource,
    MemorySource,
    ParquetSource,
    Source,
    is_saved_dataset,
)
from finescope.corpus.ids import UniqueIds
from finescope.corpus.row import Row, parse_content, parse_id
from finescope.errors import InputError, nearest_names
from finescope.storage.files import PathLike

_CHAT_COLUMNS = ("messages", "conversations")
_FORMATS = (
    ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, a folder of those, a saved Hugging Face dataset, or hf:NAME"
)


@dataclass(frozen=True)
class CorpusStats:
    """What a full pass over a corpus counted."""

    rows: int
    """All rows, those without text included."""
    empty: int
    """Rows without text. They keep their place in the order and get an empty code."""
    characters: int
    """Characters of text in all rows."""
    first_empty: str | None
    """Place of the first row without text."""
    own_ids: int
    """Rows with an id of their own; those of the others were made up."""


class Corpus:
    """Rows of one or many sources, re-iterable, streaming: memory doesn't grow with the size.

    Attributes:
        name: short name for messages.
        stats: counts of the last full pass; None before it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        text_column: str = "text",
        id_column: str = "id",
        limit: int | None = None,
        empty: str = "skip",
    ) -> None:
        """Wrap sources; ``open_corpus`` is the usual way to make one."""
        if empty not in ("skip", "error"):
            raise ValueError(f"empty must be 'skip' or 'error', got {empty!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self._sources = list(sources)
        self._text_column, self._id_column = text_column, id_column
        self._limit, self._empty = limit, empty
        self.stats: CorpusStats | None = None
        first = self._sources[0].name
        self.name = first if len(self._sources) == 1 else f"{first} and {len(self._sources) - 1} more"

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def __repr__(self) -> str:
        return f"Corpus({self.name}, rows={self.len_hint})"

    @property
    def len_hint(self) -> int | None:
        """Number of rows if it is known without reading everything, else None (JSONL before a full pass)."""
        if self.stats is not None:
            return self.stats.rows
        counts = [source.count() for source in self._sources]
        if any(count is None for count in counts):
            return None
        total = sum(count or 0 for count in counts)
        return total if self._limit is None else min(total, self._limit)

    @property
    def suffix(self) -> str:
        """Ending of output in the same format: ``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.parquet``."""
        return self._sources[0].suffix

    def arrow_schema(self) -> Any:
        """Return the pyarrow schema of the first source, or None for JSONL and lists."""
        return self._sources[0].schema()

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the corpus: name, size and SHA-256 of each source, and the options.

        Reads every byte of every file. Folders aren't part of it: a moved corpus is the same corpus.
        """
        return {
            "sources": [source.fingerprint() for source in self._sources],
            "text_column": self._text_column,
            "id_column": self._id_column,
            "limit": self._limit,
        }

    def scan(self) -> CorpusStats:
        """Read everything once and return the counts: all checks that reading makes, before a long run.

        Raises:
            InputError: as ``rows``.
        """
        for _ in self.rows(records=False):
            pass
        if self.stats is None:
            raise RuntimeError("a full pass ended without counts")
        return self.stats

    def rows(self, *, records: bool = True) -> Iterator[Row]:
        """Yield every row in order; rows without text come with ``text == ""`` (policy "skip").

        Args:
            records: fill ``Row.record``. False reads only text and id, quicker for wide Parquet files.

        Raises:
            InputError: naming file and line or row: broken JSON, a missing column, text that is no string, an
                id that occurs twice, an empty row under policy "error"; or no rows, or no row with text.
        """
        unique = UniqueIds(self._ids_again)
        count = empty = characters = own_ids = 0
        first_empty: str | None = None
        for row in self._parse(records):
            unique.add(row.id)
            if row.empty:
                if self._empty == "error":
                    raise InputError(f"{row.place}: the row has no text; write one or remove the row")
                empty, first_empty = empty + 1, first_empty or row.place
            count += 1
            own_ids += not row.generated_id
            characters += len(row.text) if row.text is not None else len(row.content)
            yield row
        if count == 0:
            raise InputError(f"{self.name} has no rows; give a corpus with at least one")
        if empty == count:
            raise InputError(
                f"{self.name}: none of its {count} rows has text in column {self._text_column!r}; "
                "name the column that holds the text"
            )
        unique.close()
        self.stats = CorpusStats(count, empty, characters, first_empty, own_ids)

    def _ids_again(self) -> Iterator[tuple[str, str]]:
        for row in self._parse(records=False):
            yield row.id, row.place

    def _parse(self, records: bool) -> Iterator[Row]:
        stems = [source.stem for source in self._sources]
        left = self._limit
        for position, source in enumerate(self._sources):
            # Two files of one name in different folders must not give two rows one generated id.
            stem = source.stem if stems.count(source.stem) == 1 else f"{position}/{source.stem}"
            columns = source.columns()
            text, row_id = self._pick(columns, source.name) if columns is not None else (None, None)
            wanted = None if records or text is None else [text, *([row_id] if row_id else [])]
            for number, place, record in source.records(wanted):
                if text is None:
                    text, row_id = self._pick(list(record), place)
                content, messages = parse_content(record.get(text), text, place)
                own = parse_id(record.get(row_id), row_id, place) if row_id else None
                kept = record if records else {}
                yield Row(own or f"{stem}:{number}", content, messages, kept, place, not own)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return

    def _pick(self, columns: Sequence[str], place: str) -> tuple[str, str | None]:
        """Return the columns that hold text and id (None: ids are generated)."""
        text: str | None = self._text_column if self._text_column in columns else None
        if text is None and self._text_column == "text":
            text = next((name for name in _CHAT_COLUMNS if name in columns), None)
        if text is None:
            raise InputError(f"{place}: {_no_column(self._text_column, columns, 'text')}")
        if self._id_column in columns:
            return text, self._id_column
        if self._id_column != "id":  # asked for by name, so generating ids would hide a slip of the pen
            raise InputError(f"{place}: {_no_column(self._id_column, columns, 'id')}")
        return text, None


def _no_column(wanted: str, columns: Sequence[str], kind: str) -> str:
    near = nearest_names(wanted, columns)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"name one of these with --{kind}-column ({kind}_column=)"
    )
    return f"no column {wanted!r}; there are {', '.join(map(repr, columns)) or 'no columns'}; {hint}"


def open_corpus(
    source: PathLike | Iterable[Any],
    *,
    text_column: str = "text",
    id_column: str = "id",
    limit: int | None = None,
    empty: str = "skip",
    split: str | None = None,
) -> Corpus:
    """Open a corpus of texts or conversations.

    Text comes from ``text_column``; where there is none and the default name was asked for, from ``messages``
    (role and content) or ``conversations`` (from and value). A cell that is a list is a
    conversation. Ids come from ``id_column``; where there is none: ``<file stem>:<row number from 0>``.

    Args:
        source: a file (.jsonl, .ndjson or .json with one object a line, each also .gz or .zst; .parquet), a
            folder or glob pattern of such files (in order of name), a folder written by ``save_to_disk``,
            ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIG:SPLIT`` for a dataset of the Hugging Face hub,
            a list of any of these, or a list of dictionaries.
        text_column: column of the text.
        id_column: column of the ids.
        limit: read only the first rows.
        empty: what a row without text means: "skip" keeps its place, counts it and gives it an empty code;
            "error" refuses it.
        split: split of a Hugging Face dataset.

    Raises:
        InputError: nothing there, or a format that isn't read. Contents are checked while reading.
    """
    options: dict[str, Any] = {
        "text_column": text_column,
        "id_column": id_column,
        "limit": limit,
        "empty": empty,
    }
    if isinstance(source, (str, os.PathLike)):
        return Corpus(_sources(source, split), **options)
    items = list(source)
    if not items:
        raise InputError("the corpus is an empty list; give at least one file or one row")
    if all(isinstance(item, dict) for item in items):
        return Corpus([MemorySource(items)], **options)
    if not all(isinstance(item, (str, os.PathLike)) for item in items):
        raise InputError("a corpus given as a list is a list of paths or a list of dictionaries")
    return Corpus([found for item in items for found in _sources(item, split)], **options)


def _sources(source: PathLike, split: str | None) -> list[Source]:
    text = os.fspath(source)
    if text.startswith("hf:"):
        return [DatasetSource(text[3:], split=split, local=False)]
    path = Path(text).expanduser()
    if path.is_dir():
        if is_saved_dataset(path):
            return [DatasetSource(os.fspath(path), split=split, local=True)]
        files = sorted(file for file in path.iterdir() if file.is_file() and _known(file))
        if not files:
            raise InputError(f"{path} is a folder without corpus files; wanted: {_FORMATS}")
        return [_file_source(file) for file in files]
    if path.exists():
        return [_file_source(path)]
    if glob.has_magic(text):
        files = sorted(Path(name) for name in glob.glob(os.fspath(path), recursive=True))
        if files:
            return [found for file in files for found in _sources(file, split)]
    raise InputError(_not_there(path))


def _known(path: Path) -> bool:
    return path.name.lower().endswith((*JSONL_ENDINGS, ".parquet"))


def _file_source(path: Path) -> Source:
    if path.name.lower().endswith(".parquet"):
        return ParquetSource(path)
    if path.name.lower().endswith(JSONL_ENDINGS):
        return JsonlSource(path)
    raise InputError(
        f"{path}: the format {path.suffix or 'without an ending'} isn't read; wanted: {_FORMATS}"
    )


def _not_there(path: Path) -> str:
    message = f"{path} does not exist"
    if path.parent.is_dir():
        near = nearest_names(path.name, [entry.name for entry in path.parent.iterdir()])
        return f"{message}; did you mean {path.parent / near[0]}?" if near else message
    return f"{message}, nor does its folder"

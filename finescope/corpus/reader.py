"""Corpus: the rows of one or many files or datasets, in order, as often as asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from finescope.corpus.content import Content, ContentReader, no_column
from finescope.corpus.dotted import held, lookup
from finescope.corpus.files import File
from finescope.corpus.ids import UniqueIds
from finescope.corpus.output import Output
from finescope.corpus.packing import PACKED
from finescope.corpus.row import Row, parse_id
from finescope.corpus.source import Look, Record, Source, Start, by_source, too_few
from finescope.errors import InputError

_NOTHING = object()
_PATIENCE = 10_000
"""Rows without a column that was asked for, after which a source is taken not to have it."""


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
    conversations: int = 0
    """Rows that are conversations."""


class Corpus:
    """Rows of one or many sources, re-iterable, streaming: memory doesn't grow with the size.

    Attributes:
        name: short name for messages.
        stats: counts of the last full pass; None before it.
        left_out: what lay beside the files and isn't read, by name.
        remarks: what else is to be said of the files, in words.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        content: ContentReader | None = None,
        id_column: str | None = "id",
        limit: int | None = None,
        empty: str = "skip",
        lenient: bool = False,
        left_out: Sequence[str] = (),
        remarks: Sequence[str] = (),
    ) -> None:
        """Wrap sources; ``open_corpus`` is the usual way to make one."""
        if empty not in ("skip", "error"):
            raise ValueError(f"empty must be 'skip' or 'error', got {empty!r}")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self._sources = list(sources)
        self._content = content or ContentReader()
        self._id_column = None if id_column in (None, "", "none") else id_column
        self._limit, self._empty, self._lenient = limit, empty, lenient
        self._outputs: dict[str, Output] = {}
        self._stems = Counter(source.stem for source in self._sources)
        self.left_out, self.remarks = list(left_out), list(remarks)
        self.stats: CorpusStats | None = None
        first = self._sources[0].name
        self.name = first if len(self._sources) == 1 else f"{first} and {len(self._sources) - 1} more"

    def __iter__(self) -> Iterator[Row]:
        return self.rows()

    def __repr__(self) -> str:
        return f"Corpus({self.name}, rows={self.len_hint})"

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the rows are read from, in order."""
        return tuple(self._sources)

    @property
    def files(self) -> list[File]:
        """The files that the rows are read from, in order."""
        return [file for source in self._sources for file in source.files]

    @property
    def formats(self) -> dict[str, int]:
        """How many files there are of each format, by its ending without what they are packed with."""
        names = [file.name.lower() for file in self.files]
        endings = (PurePath(name.removesuffix(_packing(name))).suffix for name in names)
        return dict(Counter(endings).most_common())

    @property
    def len_hint(self) -> int | None:
        """Number of rows if it is known without reading everything, else None (JSON before a full pass)."""
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
        """Return the pyarrow schema of all sources together, or None where the first is JSON or a list.

        Raises:
            InputError: columns whose types don't go together.
        """
        return self.output(".parquet").schema if self._sources[0].schema() is not None else None

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the corpus: name, size and SHA-256 of each source, and the options.

        Reads the bytes of the files that no full pass has read yet. Folders aren't part of it: a moved corpus
        is the same corpus.
        """
        return {
            "sources": [source.fingerprint() for source in self._sources],
            "text_column": ",".join(self._content.columns),
            "text_template": self._content.source,
            "id_column": self._id_column,
            "limit": self._limit,
        }

    def digests(self) -> list[Any]:
        """Return, as plain values for ``know``, the hashes of all files and what the files looked like."""
        return [file.known() for file in self.files]

    def know(self, stats: CorpusStats, digests: Sequence[Any]) -> None:
        """Take what an earlier pass has told; a file that looks otherwise by now is hashed when asked for.

        Args:
            stats: what it counted.
            digests: of ``digests``.
        """
        self.stats = stats
        for file, known in zip(self.files, digests, strict=False):
            if known:
                (size, marks), digest = known
                file.keep_digest((size, tuple(marks)), digest)

    def output(self, suffix: str) -> Output:
        """Return how selected rows are written in a format, by its ending; see ``copy_rows``.

        Raises:
            InputError: an unknown ending, or columns that the format can't hold.
        """
        if suffix not in self._outputs:
            self._outputs[suffix] = Output(self._sources, suffix)
        return self._outputs[suffix]

    def scan(self, *, output: str | None = None) -> CorpusStats:
        """Read everything once and return the counts: all checks that reading makes, before a long run.

        Args:
            output: as ``rows``.

        Raises:
            InputError: as ``rows``.
        """
        for _ in self.rows(records=False, output=output):
            pass
        if self.stats is None:
            raise RuntimeError("a full pass ended without counts")
        return self.stats

    def rows(
        self, *, records: bool = True, columns: Sequence[str] | None = None, output: str | None = None
    ) -> Iterator[Row]:
        """Yield every row in order; rows without text come with ``text == ""`` (policy "skip").

        Args:
            records: fill ``Row.record`` with all columns. False reads only text and id, quicker for wide
                tables.
            columns: fill ``Row.record`` with these columns (where a row has them) instead; dotted names reach
                into objects.
            output: ending of the format that selected rows will be written in: whatever could fail then is
                tried in this pass.

        Raises:
            InputError: naming file and line or row: broken JSON, a missing column, text that is no string, an
                id that occurs twice, an empty row under policy "error"; or no rows, or no row with text; or
                rows that can't be written in that format.
        """
        written = None if output is None else self.output(output)
        yield from self._checked(columns if columns is not None else None if records else (), written)
        if written is not None:
            written.settle()

    def pick(self, numbers: Iterable[int]) -> Iterator[tuple[int, Row]]:
        """Yield (number, row) of some rows, in ascending order, with text and id; no other row is parsed.

        Args:
            numbers: of rows, from 0, in any order, each once.

        Raises:
            InputError: there are fewer rows, or one of these is broken.
        """
        wanted = list(numbers)
        if self._limit is not None and max(wanted, default=-1) >= self._limit:
            raise too_few(max(wanted), self._limit, self.name)
        for position, start, inside in by_source(self._sources, wanted):
            source = self._sources[position]
            for number, place, record in source.picked(inside, self._wanted(source, ())):
                yield start + number, self._picked(position, number, place, record)

    def looking(self, see: Callable[[int, Row], None]) -> Callable[[int, int], Look]:
        """Return what shows rows to ``see``, with their numbers among all, while they are being copied."""

        def look(position: int, start: int) -> Look:
            def show(number: int, place: str, record: Record) -> None:
                see(start + number, self._picked(position, number, place, record))

            return Look(self._wanted(self._sources[position], ()), show)

        return look

    def _picked(
        self, position: int, number: int, place: str, record: Record, columns: Sequence[str] = ()
    ) -> Row:
        source = self._sources[position]
        said = self._content.read(record, place, full_rows=source.full_rows)
        return self._row(f"{self._stem(position)}:{number}", place, record, said, columns)

    def rows_from(self, start: Start, *, columns: Sequence[str] = ()) -> Iterator[Row]:
        """Yield the rows from one on, parsing none before it. They are those that ``rows`` yields.

        What only a whole pass can tell isn't told: an id that occurs twice, a corpus without text.

        Args:
            start: where the first stands, of ``starts``; the limit isn't looked at.
            columns: fill ``Row.record`` with these, as for ``rows``.

        Raises:
            InputError: a row is broken; names file and line or row.
        """
        number, mark = start.row, start.mark
        for position in range(start.source, len(self._sources)):
            source = self._sources[position]
            for at, place, record in source.records_from(number, self._wanted(source, columns), mark):
                yield self._picked(position, at, place, record, columns)
            number, mark = 0, None

    def starts(self, numbers: Sequence[int]) -> list[Start]:
        """Return where rows stand; after a pass over the rows, no file is read for it.

        Args:
            numbers: of rows, from 0, ascending.

        Raises:
            InputError: there are fewer rows.
        """
        return [
            Start(position, number, self._sources[position].mark(number))
            for position, _, inside in by_source(self._sources, numbers)
            for number in inside
        ]

    def _checked(self, columns: Sequence[str] | None, output: Output | None) -> Iterator[Row]:
        unique = UniqueIds(self._ids_again)
        count = empty = characters = own_ids = conversations = 0
        first_empty: str | None = None
        for row in self._parse(columns, output):
            unique.add(row.id)
            if row.empty:
                if self._empty == "error":
                    raise InputError(f"{row.place}: the row has no text; write one or remove the row")
                empty, first_empty = empty + 1, first_empty or row.place
            count += 1
            own_ids += not row.generated_id
            conversations += row.messages is not None
            characters += len(row.text) if row.text is not None else len(row.content)
            yield row
        if count == 0:
            raise InputError(f"{self.name} has no rows; give a corpus with at least one")
        if empty == count:
            raise InputError(
                f"{self.name}: none of its {count} rows has text in column "
                f"{','.join(self._content.columns)!r}; name the column that holds the text"
            )
        unique.close()
        self.stats = CorpusStats(count, empty, characters, first_empty, own_ids, conversations)

    def _ids_again(self) -> Iterator[tuple[str, str]]:
        for row in self._parse(columns=()):
            yield row.id, row.place

    def _parse(self, columns: Sequence[str] | None, output: Output | None = None) -> Iterator[Row]:
        left = self._limit
        for position, source in enumerate(self._sources):
            for row in self._of_source(position, source, columns, output):
                yield row
                if left is not None:
                    left -= 1
                    if left == 0:
                        return

    def _of_source(
        self, position: int, source: Source, columns: Sequence[str] | None, output: Output | None
    ) -> Iterator[Row]:
        stem = self._stem(position)
        wanted = self._wanted(source, columns)
        search = _Search(self._content, None if self._lenient else self._id_column)
        trial = output.trial(position) if output is not None else None
        also, visit = trial if trial is not None else ((), None)
        for number, place, record in source.records(wanted, also, visit):
            said = self._content.read(record, place, full_rows=source.full_rows)
            row = self._row(f"{stem}:{number}", place, record, said, columns)
            search.saw(record, row, said)
            yield row
        search.end()

    def _row(
        self,
        name: str,
        place: str,
        record: Record,
        said: Content | None,
        columns: Sequence[str] | None = (),
    ) -> Row:
        """Return a row, called ``name`` if it has no id of its own, with some of its columns."""
        own = None
        if self._id_column is not None:
            own = parse_id(lookup(record, self._id_column, None, place), self._id_column, place)
        kept = record if columns is None else {}
        if columns:
            found = ((name, lookup(record, name, _NOTHING, place)) for name in columns)
            kept = {name: value for name, value in found if value is not _NOTHING}
        text, messages, tools = said or Content("")
        return Row(own or name, text, messages, kept, place, not own, tools)

    def _stem(self, position: int) -> str:
        """Return the prefix of made-up ids: files of one name in two folders must not give one id twice."""
        stem = self._sources[position].stem
        return stem if self._stems[stem] == 1 else f"{position}/{stem}"

    def _wanted(self, source: Source, columns: Sequence[str] | None) -> list[str] | None:
        """Return the columns to read from a table; None for all, and for sources that have no schema."""
        schema = source.schema()
        if schema is None:
            return None
        names = list(schema.names)
        if not set(names) - set(source.constants) and source.length() == 0:
            return []  # an empty file, as an empty table is written
        texts = self._content.wanted(names)
        if texts == []:
            raise InputError(f"{source.name}: {self._content.refusal(names)}")
        asked = self._id_column if self._id_column != "id" and not self._lenient else None
        if asked is not None and not held(asked, names):
            raise InputError(f"{source.name}: {no_column(asked, names, 'id')}")
        if columns is None or texts is None:
            return None
        ids = [self._id_column] if self._id_column is not None else []
        return list(dict.fromkeys([*texts, *ids, *columns]))


class _Search:
    """Notices that none of a source's rows has the columns asked for."""

    def __init__(self, content: ContentReader, id_column: str | None) -> None:
        self._content, self._id_column = content, id_column
        self._no_text: tuple[str, list[str]] | None = None
        self._no_id: tuple[str, list[str]] | None = None
        # A default name may be missing: ids are then made up. With a name given that would hide a slip.
        self._left = _PATIENCE
        self._text = False
        self._id = id_column in (None, "id")

    def saw(self, record: Record, row: Row, said: Content | None) -> None:
        """Take note of a row."""
        if self._text and self._id:
            return
        self._text = self._text or said is not None
        self._id = self._id or not row.generated_id
        if not self._text and self._no_text is None:
            self._no_text = row.place, _names(record)
        if not self._id and self._no_id is None:
            self._no_id = row.place, _names(record)
        self._left -= 1
        if self._left == 0:
            self.end()

    def end(self) -> None:
        """Refuse a source without texts, or without the ids asked for.

        Raises:
            InputError: naming the first row, what columns it has, and the nearest name.
        """
        if not self._text and self._no_text is not None:
            raise InputError(f"{self._no_text[0]}: {self._content.refusal(self._no_text[1])}")
        if not self._id and self._no_id is not None:
            raise InputError(f"{self._no_id[0]}: {no_column(str(self._id_column), self._no_id[1], 'id')}")


def _packing(name: str) -> str:
    return next((ending for ending in PACKED if name.endswith(ending)), "")


def _names(record: dict[str, Any]) -> list[str]:
    inner = [f"{name}.{part}" for name, value in record.items() if isinstance(value, dict) for part in value]
    return [*record, *inner]

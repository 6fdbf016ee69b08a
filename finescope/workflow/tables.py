"""Scores and selections as Parquet tables, and the curated rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finescope.corpus import copy_rows
from finescope.corpus.known import KnownRows
from finescope.curation.scoring.evidence import Evidence, pooled
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import Preset
from finescope.curation.scoring.table import ScoreTable
from finescope.curation.selection import REASONS, Selection
from finescope.errors import StoreError
from finescope.progress import counted
from finescope.storage.files import PathLike, atomic_path
from finescope.storage.remote import downloaded, is_url
from finescope.storage.strings import Strings

if TYPE_CHECKING:
    from finescope.corpus import Corpus
    from finescope.embeddings.store import CodeStore
    from finescope.embeddings.words import CountedTexts

SCORE_COLUMNS = (
    "finescope_rank",
    "finescope_score",
    "finescope_nearest_target",
    "finescope_nearest_similarity",
)
"""Columns that curated rows have beyond their own."""


@dataclass
class ScoredRows:
    """The score table of a corpus together with what identifies its rows.

    Attributes:
        table: scores of the N rows.
        ids: N ids.
        target_ids: Q ids, to which ``table.nearest_target`` points.
        tokens: int64 [N] tokens per row.
        is_target: bool [N], rows that are targets themselves.
        settings: how the scores were made.
        crc32: uint32 [N], ``text_crc32`` of the texts that were scored; None where that isn't known.
    """

    table: ScoreTable
    ids: Sequence[str]
    target_ids: list[str]
    tokens: NDArray[np.int64]
    is_target: NDArray[np.bool_]
    settings: dict[str, Any]
    crc32: NDArray[np.uint32] | None = None

    @property
    def known(self) -> KnownRows:
        """What the rows must be when they are read again."""
        return KnownRows(self.ids, self.crc32)

    @property
    def targets_in_corpus(self) -> dict[str, int]:
        """How many rows are targets themselves, by reason: see ``TargetRows``."""
        return dict(self.settings.get("targets") or {"same_id": int(self.is_target.sum())})

    @property
    def recipe(self) -> Preset:
        """How the scores were made."""
        made = self.settings
        return Preset(
            made["preset"], made["pooling"], made["weights"], made["scorer"], "rank", "", made["top_m"]
        )

    def nearest_id(self, row: int) -> str | None:
        """Return the id of a row's nearest target, or None for rows without a code."""
        target = int(self.table.nearest_target[row])
        return self.target_ids[target] if target >= 0 else None


_OF_ROWS = ("id", "tokens", "valid", "is_target")
_OF_TARGETS = ("score", "nearest_target_index", "nearest_similarity")
_CRC32 = "text_crc32"
"""A column that tables made of codes without texts lack."""


def write_scores(path: PathLike, scored: ScoredRows, *, rows: bool = True) -> None:
    """Write one line per corpus row, in the corpus' order.

    Args:
        path: the file.
        scored: the scores.
        rows: False leaves out what doesn't depend on the targets; see ``write_rows``.

    Raises:
        StoreError: the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    notes = {"settings": scored.settings, "scorer": scored.table.scorer, "target_ids": scored.target_ids}
    columns, kept = _target_columns(scored), dict[str, Any]()
    if rows:
        shared = _row_columns(scored)
        columns = {name: shared.pop(name) for name in ("index", "id")} | columns | shared
    else:
        # Scores hardly shrink, and there is one table a set.
        kept = {"use_dictionary": ["nearest_target", "nearest_target_index"], "compression": "none"}
    written = pa.table(columns).replace_schema_metadata({"finescope": json.dumps(notes)})
    with atomic_path(path) as temporary:
        pq.write_table(written, temporary, **kept)


def write_rows(path: PathLike, scored: ScoredRows) -> None:
    """Write of a table of scores what doesn't depend on the targets, one line per corpus row.

    Raises:
        StoreError: the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.table(_row_columns(scored)).replace_schema_metadata({"finescope": "{}"})
    with atomic_path(path) as temporary:
        pq.write_table(written, temporary)


def _row_columns(scored: ScoredRows) -> dict[str, Any]:
    """What doesn't depend on the targets."""
    import pyarrow as pa

    columns = {
        "index": pa.array(np.arange(len(scored.table), dtype=np.int64)),
        "id": _as_column(scored.ids),
        "tokens": pa.array(scored.tokens),
        "valid": pa.array(scored.table.valid),
        "is_target": pa.array(scored.is_target),
    }
    if scored.crc32 is not None:
        columns[_CRC32] = pa.array(scored.crc32)
    return columns


def _target_columns(scored: ScoredRows) -> dict[str, Any]:
    import pyarrow as pa

    table = scored.table
    return {
        "score": pa.array(table.score),
        "nearest_target": _picked(scored.target_ids, table.nearest_target),
        "nearest_target_index": pa.array(table.nearest_target),
        "nearest_similarity": pa.array(table.nearest_similarity),
    }


@dataclass(frozen=True)
class RowTable:
    """What ``write_rows`` wrote of N rows; the names are those of ``ScoredRows``."""

    ids: Strings
    tokens: NDArray[np.int64]
    valid: NDArray[np.bool_]
    is_target: NDArray[np.bool_]
    crc32: NDArray[np.uint32] | None


def read_rows(path: PathLike) -> RowTable:
    """Read what ``write_rows`` wrote.

    Raises:
        StoreError: the file is missing, damaged, or not such a table.
    """
    table, _ = _read(path, (*_OF_ROWS, _CRC32), "a table of rows", _REMEDY)
    return _rows_of(table)


def _rows_of(table: Any) -> RowTable:
    return RowTable(
        Strings(table.column("id")),
        _values(table, "tokens", np.int64),
        _values(table, "valid", np.bool_),
        _values(table, "is_target", np.bool_),
        _values(table, _CRC32, np.uint32) if _CRC32 in table.column_names else None,
    )


def _values(table: Any, name: str, dtype: Any) -> NDArray[Any]:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


_REMEDY = "run `finescope score`, or curate again"


def read_scores(path: PathLike, rows: RowTable | None = None) -> ScoredRows:
    """Read what ``write_scores`` wrote.

    Args:
        path: the file.
        rows: what ``write_rows`` wrote, where the file was written without it.

    Raises:
        StoreError: the file is missing, damaged, not a table of scores, or one of other rows.
    """
    columns = _OF_TARGETS if rows is not None else (*_OF_ROWS, *_OF_TARGETS, _CRC32)
    table, notes = _read(path, columns, "a table of scores", _REMEDY)
    of_rows = _rows_of(table) if rows is None else rows
    if table.num_rows != len(of_rows.ids):
        raise StoreError(f"{path} has the scores of {table.num_rows:,} rows, not of {len(of_rows.ids):,}")
    scores = ScoreTable(
        _values(table, "score", np.float64),
        _values(table, "nearest_target_index", np.int64),
        _values(table, "nearest_similarity", np.float64),
        of_rows.valid,
        notes["scorer"],
    )
    return ScoredRows(
        scores,
        of_rows.ids,
        notes["target_ids"],
        of_rows.tokens,
        of_rows.is_target,
        notes["settings"],
        of_rows.crc32,
    )


def _as_column(values: Sequence[str]) -> Any:
    import pyarrow as pa

    return values.column if isinstance(values, Strings) else pa.array(values, pa.string())


def _picked(values: Sequence[str], places: NDArray[np.int64]) -> Any:
    """Return a column of the values at int64 [n] places; null where the place is below 0."""
    import pyarrow as pa

    found = _as_column(values).take(pa.array(places, mask=places < 0))
    return found.cast(pa.string())


def _read(path: PathLike, columns: Sequence[str], what: str, remedy: str) -> tuple[Any, dict[str, Any]]:
    """Return a table of ours, with those of the columns that it has, and the notes in its header."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_url(path):
        with downloaded(str(path)) as copy:
            return _read(copy, columns, what, remedy)
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in (*file.schema_arrow.names, _CRC32)]
            held = [name for name in columns if name in file.schema_arrow.names]
            table = file.read(held)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; {remedy}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is truncated or not a Parquet file ({error}); {remedy}") from None
    raw = (table.schema.metadata or {}).get(b"finescope")
    if raw is None:
        raise StoreError(f"{path} is not {what}; {remedy}")
    if missing:
        raise StoreError(
            f"{path} is not {what} by itself: it has no column {missing[0]!r}. The tables of several target "
            "sets leave that to another file; give their folder"
        )
    return table, json.loads(raw)


def write_selection(path: Path, scored: ScoredRows, selection: Selection) -> None:
    """Write one line per corpus row: its rank in the selection (null for others) and what became of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(scored.table)
    rank = np.zeros(count, np.int64)
    rank[selection.indices] = np.arange(1, len(selection) + 1)
    resembles = np.full(count, -1, np.int64)
    resembles[list(selection.resembles)] = list(selection.resembles.values())
    names = pa.array(REASONS, pa.string())
    table = pa.table(
        {
            "index": pa.array(np.arange(count, dtype=np.int64)),
            "id": _as_column(scored.ids),
            "rank": pa.array(rank, mask=rank == 0),
            "reason": pa.DictionaryArray.from_arrays(pa.array(selection.reason.astype(np.int8)), names),
            "resembles": _picked(scored.ids, resembles),
        }
    )
    notes: dict[str, Any] = {"config": selection.config, "tokens": selection.tokens}
    if selection.unfilled:
        notes["unfilled"] = selection.unfilled
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"finescope": json.dumps(notes)}), temporary)


def read_selection(path: Path) -> Selection:
    """Read what ``write_selection`` wrote; which row another one resembles is left out.

    Raises:
        StoreError: the file is missing, damaged, or not a selection.
    """
    table, notes = _read(path, ["rank", "reason"], "a selection", "select the rows again")
    ranks = table.column("rank").fill_null(0).to_numpy()
    chosen = np.flatnonzero(ranks)
    reasons = table.unify_dictionaries().column("reason").combine_chunks()
    position = np.array([REASONS.index(name) for name in reasons.dictionary.to_pylist()], np.uint8)
    return Selection(
        chosen[np.argsort(ranks[chosen])].astype(np.int64),
        position[reasons.indices.to_numpy()],
        tokens=notes["tokens"],
        config=notes["config"],
        unfilled=notes.get("unfilled", []),
    )


def write_curated(path: PathLike, corpus: Corpus, scored: ScoredRows, selected: NDArray[np.int64]) -> int:
    """Write the selected rows as they came, best first, with ``SCORE_COLUMNS`` appended; return how many.

    Raises:
        StoreError: one of them isn't the row that was scored: it has another id or another text.
    """
    columns = curated_columns(scored, selected)
    return copy_rows(path, corpus, selected.tolist(), columns=columns, known=scored.known)


def curated_columns(scored: ScoredRows, selected: NDArray[np.int64]) -> dict[str, Any]:
    """Return ``SCORE_COLUMNS`` of the selected rows, as Arrow arrays."""
    import pyarrow as pa

    values = (
        pa.array(np.arange(1, len(selected) + 1, dtype=np.int64)),
        pa.array(scored.table.score[selected]),
        pa.array([scored.nearest_id(row) for row in selected.tolist()], pa.string()),
        pa.array(scored.table.nearest_similarity[selected]),
    )
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def about_targets(found: Mapping[str, int]) -> list[str]:
    """Return in words which rows were left out as targets, and which weren't although they have their ids.

    Args:
        found: the counts of ``TargetRows``; of one of several sets ``of_other_sets`` too.
    """
    reasons = [
        f"{counted(found[name], 'row')} with {words}"
        for name, words in (
            ("same_text", "the text of a target"),
            ("same_id", "the id of a target"),
            ("of_other_sets", "the text or id of another set's target"),
        )
        if found.get(name)
    ]
    said = [f"left out as targets themselves: {' and '.join(reasons)}"] if reasons else []
    if found.get("other_text"):
        said.append(
            f"not left out: {counted(found['other_text'], 'row')} with the id of a target but another text"
        )
    return said


def corpus_as_scored(store: CodeStore, recipe: Preset) -> CorpusScorer:
    """Return the codes of a corpus as a recipe looks at them.

    Raises:
        ValueError: the stored pooling can't be turned into the recipe's.
    """
    codes = pooled(store, str(store.facts.get("pooling", "")), recipe.pooling)
    return CorpusScorer(codes, weights=recipe.weights)


def evidence_of(store: CodeStore, texts: CountedTexts | None = None) -> Evidence:
    """Return what a store of codes tells about its rows; ``texts`` stand for words that it doesn't keep."""
    return Evidence(
        store,
        str(store.facts.get("pooling", "")),
        store.words() if texts is None else texts,
        None if store.width is None else store,
        store.token_counts(),
    )

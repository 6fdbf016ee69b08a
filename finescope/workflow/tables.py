"""Scores and selections as Parquet tables, and the curated rows."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finescope.corpus.writer import copy_each
from finescope.curation.limits import REASONS
from finescope.curation.scoring.evidence import Evidence, pooled
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.presets import Preset
from finescope.curation.selected import Reasons, Selection
from finescope.progress import counted
from finescope.storage.files import PathLike, atomic_path
from finescope.workflow.saved import SavedScores, SavedTable
from finescope.workflow.scored import (
    CRC32,
    ID,
    NEAREST,
    OF_ROWS,
    OF_TARGETS,
    ROWS,
    Block,
    Scored,
    ScoredRows,
    as_column,
    at_each,
    known_each,
)

if TYPE_CHECKING:
    from finescope.corpus import Corpus
    from finescope.curation.scoring.fitted import Scoring
    from finescope.embeddings.store import CodeStore
    from finescope.embeddings.words import CountedTexts

SCORE_COLUMNS = (
    "finescope_rank",
    "finescope_score",
    "finescope_nearest_target",
    "finescope_nearest_similarity",
)
"""Columns that curated rows have beyond their own."""


_FAST = {"write_statistics": False, "write_batch_size": 1 << 16}
"""Of tables that there are as many of as target sets: nobody looks for rows by their numbers."""


def write_scores(path: PathLike, scored: Scored, *, rows: bool = True) -> None:
    """Write one line per corpus row, in the corpus' order, a group of rows at a time.

    Args:
        path: the file.
        scored: the scores.
        rows: False leaves out what doesn't depend on the targets; see ``write_rows``.

    Raises:
        StoreError: the file can't be written.
    """
    notes = {"settings": scored.settings, "scorer": scored.scorer, "target_ids": scored.target_ids}
    names = [name for name in scored.columns if rows or name in OF_TARGETS]
    # Scores hardly shrink, and there is one table a set.
    alone: dict[str, Any] = {
        "use_dictionary": ["nearest_target", "nearest_target_index"] if scored.has_nearest else False,
        "compression": "none",
        **_FAST,
    }

    def columns(first: int, block: Block) -> dict[str, Any]:
        found = _target_columns(block, scored.target_ids)
        if not rows:
            return found
        shared = _row_columns(first, block)
        return {name: shared.pop(name) for name in ("index", ID)} | found | shared

    _write(path, notes, (columns(*block) for block in scored.blocks(*names)), {} if rows else alone)


def write_rows(path: PathLike, scored: Scored) -> None:
    """Write of a table of scores what doesn't depend on the targets, one line per corpus row.

    Raises:
        StoreError: the file can't be written.
    """
    names = [name for name in scored.columns if name not in OF_TARGETS]
    _write(path, {}, (_row_columns(*block) for block in scored.blocks(*names)))


def _row_columns(first: int, block: Block) -> dict[str, Any]:
    """What doesn't depend on the targets."""
    import pyarrow as pa

    columns = {"index": pa.array(np.arange(first, first + len(block[ID]), dtype=np.int64)), ID: block[ID]}
    for name in ("tokens", "valid", "is_target", CRC32):
        if name in block:
            columns[name] = pa.array(block[name])
    return columns


def _target_columns(block: Block, target_ids: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa

    found = {"score": pa.array(block["score"])}
    if "nearest_target_index" in block:
        found["nearest_target"] = _picked(target_ids, block["nearest_target_index"])
        found |= {name: pa.array(block[name]) for name in NEAREST}
    return found


def _picked(values: Sequence[str], places: NDArray[np.int64]) -> Any:
    """Return a column of the values at int64 [n] places; null where the place is below 0."""
    import pyarrow as pa

    found = as_column(values).take(pa.array(places, mask=places < 0))
    return found.cast(pa.string())


def _write(
    path: PathLike,
    notes: Mapping[str, Any],
    blocks: Iterable[dict[str, Any]],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write columns, a group of rows a block, with notes in the header.

    Raises:
        StoreError: the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary, contextlib.ExitStack() as opened:
        writer: Any = None
        for block in blocks:
            table = pa.table(block).replace_schema_metadata({"finescope": json.dumps(notes)})
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(temporary, table.schema, **(options or {})))
            writer.write_table(table, ROWS)


def read_rows(path: PathLike) -> SavedTable:
    """Open what ``write_rows`` wrote.

    Raises:
        StoreError: the file is missing, damaged, or not such a table.
    """
    return SavedTable(path, list(OF_ROWS), "a table of rows")


def read_scores(
    path: PathLike, rows: SavedTable | None = None, scoring: Callable[[], Scoring] | None = None
) -> SavedScores:
    """Open what ``write_scores`` wrote; nothing of it is held until it is asked for.

    Args:
        path: the file.
        rows: what ``write_rows`` wrote, where the file was written without it.
        scoring: gives what made the scores; it finds the nearest targets where they aren't kept.

    Raises:
        StoreError: the file is missing, damaged, not a table of scores, or one of other rows.
    """
    return SavedScores(path, rows, scoring)


def write_selection(path: Path, scored: Scored, selection: Selection, *, rows: bool = True) -> None:
    """Write one line per corpus row: its rank in the selection (null for others) and what became of it.

    Args:
        path: the file.
        scored: the scores.
        selection: of these rows.
        rows: False leaves out number and id of the rows.
    """
    import pyarrow as pa

    order = np.argsort(selection.indices)
    chosen = selection.indices[order]
    alike = np.array(sorted(selection.resembles), np.int64)
    others = np.array([selection.resembles[row] for row in alike.tolist()], np.int64)
    other_ids = scored.columns_at(others, [ID])[ID].to_pylist()
    names = pa.array(REASONS, pa.string())

    def columns(first: int, ids: Any, reason: NDArray[np.uint8]) -> dict[str, Any]:
        count = len(reason)
        rank, resembles = np.zeros(count, np.int64), np.full(count, -1, np.int64)
        for some, values, column in ((chosen, order + 1, rank), (alike, np.arange(alike.size), resembles)):
            low, high = np.searchsorted(some, [first, first + count])
            column[some[low:high] - first] = values[low:high]
        numbers = {} if ids is None else {"index": pa.array(np.arange(first, first + count)), ID: ids}
        return {
            **numbers,
            "rank": pa.array(rank, mask=rank == 0),
            "reason": pa.DictionaryArray.from_arrays(pa.array(reason.astype(np.int8)), names),
            "resembles": _picked(other_ids, resembles) if alike.size else pa.nulls(count, pa.string()),
        }

    notes: dict[str, Any] = {"config": selection.config, "tokens": selection.tokens}
    if selection.unfilled:
        notes["unfilled"] = selection.unfilled

    def blocks() -> Iterator[dict[str, Any]]:
        ids, first = (block[ID] for _, block in scored.blocks(ID)) if rows else itertools.repeat(None), 0
        for reason in selection.reasons(ROWS):
            yield columns(first, next(ids), reason)
            first += len(reason)

    _write(path, notes, blocks(), {} if rows else _FAST)


def read_selection(path: Path) -> Selection:
    """Read what ``write_selection`` wrote; which row another one resembles is left out.

    In memory are the selected rows; what became of the others is read when it is asked for.

    Raises:
        StoreError: the file is missing, damaged, or not a selection.
    """
    table = SavedTable(path, ["rank", "reason"], "a selection", "select the rows again")

    def reasons() -> Iterator[NDArray[np.uint8]]:
        for _, group in table.groups(["reason"]):
            held = group.unify_dictionaries().column("reason").combine_chunks()
            position = np.array([REASONS.index(name) for name in held.dictionary.to_pylist()], np.uint8)
            yield position[held.indices.to_numpy()]

    counts = np.zeros(len(REASONS), np.int64)
    rows, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for (first, group), reason in zip(table.groups(["rank"]), reasons(), strict=True):
        rank = group.column("rank").fill_null(0).to_numpy()
        chosen = np.flatnonzero(rank)
        rows.append(first + chosen)
        ranks.append(rank[chosen])
        counts += np.bincount(reason, minlength=len(REASONS))
    return Selection(
        np.concatenate(rows)[np.argsort(np.concatenate(ranks))],
        Reasons(counts, reasons),
        tokens=table.notes["tokens"],
        config=table.notes["config"],
        unfilled=table.notes.get("unfilled", []),
    )


def write_curated(path: PathLike, corpus: Corpus, scored: Scored, selected: NDArray[np.int64]) -> int:
    """Write the selected rows as they came, best first, with ``SCORE_COLUMNS`` appended; return how many.

    Raises:
        StoreError: one of them isn't the row that was scored: it has another id or another text.
    """
    write_each_curated({"": path}, corpus, {"": scored}, {"": selected})
    return len(selected)


def write_each_curated(
    paths: Mapping[str, PathLike],
    corpus: Corpus,
    scored: Mapping[str, Scored],
    selected: Mapping[str, NDArray[np.int64]],
) -> None:
    """Write the selected rows of every target set as ``write_curated``; the rows are read once.

    Raises:
        StoreError: as ``write_curated``.
    """
    picked = at_each(scored, selected)
    files = {paths[name]: (rows.tolist(), curated_columns(picked[name])) for name, rows in selected.items()}
    copy_each(files, corpus, known=known_each(len(next(iter(scored.values()))), picked, selected))


def curated_columns(picked: ScoredRows) -> dict[str, Any]:
    """Return ``SCORE_COLUMNS`` of selected rows, best first, as Arrow arrays."""
    import pyarrow as pa

    values = (
        pa.array(np.arange(1, len(picked) + 1, dtype=np.int64)),
        pa.array(picked.table.score),
        _picked(picked.target_ids, picked.table.nearest_target),
        pa.array(picked.table.nearest_similarity),
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
    from finescope.embeddings.store import StoredLengths

    return Evidence(
        store,
        str(store.facts.get("pooling", "")),
        store.words() if texts is None else texts,
        None if store.width is None else store,
        StoredLengths(store),
    )

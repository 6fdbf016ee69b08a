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


_READ = ("id", "score", "nearest_target_index", "nearest_similarity", "tokens", "valid", "is_target")
_CRC32 = "text_crc32"
"""A column that tables made of codes without texts lack."""


def write_scores(path: PathLike, scored: ScoredRows) -> None:
    """Write one line per corpus row, in the corpus' order.

    Raises:
        StoreError: the file can't be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = scored.table
    columns = {
        "index": pa.array(np.arange(len(table), dtype=np.int64)),
        "id": _as_column(scored.ids),
        "score": pa.array(table.score),
        "nearest_target": _picked(scored.target_ids, table.nearest_target),
        "nearest_target_index": pa.array(table.nearest_target),
        "nearest_similarity": pa.array(table.nearest_similarity),
        "tokens": pa.array(scored.tokens),
        "valid": pa.array(table.valid),
        "is_target": pa.array(scored.is_target),
    }
    if scored.crc32 is not None:
        columns[_CRC32] = pa.array(scored.crc32)
    notes = {"settings": scored.settings, "scorer": table.scorer, "target_ids": scored.target_ids}
    written = pa.table(columns).replace_schema_metadata({"finescope": json.dumps(notes)})
    with atomic_path(path) as temporary:
        pq.write_table(written, temporary)


def read_scores(path: PathLike) -> ScoredRows:
    """Read what ``write_scores`` wrote.

    Raises:
        StoreError: the file is missing, damaged, or not a table of scores.
    """
    remedy = "run `finescope score`, or curate again"
    table, notes = _read(path, (*_READ, _CRC32), "a table of scores", remedy)

    def column(name: str) -> NDArray[Any]:
        return np.asarray(table.column(name).to_numpy(zero_copy_only=False))

    scores = ScoreTable(
        column("score").astype(np.float64),
        column("nearest_target_index").astype(np.int64),
        column("nearest_similarity").astype(np.float64),
        column("valid").astype(np.bool_),
        notes["scorer"],
    )
    return ScoredRows(
        scores,
        Strings(table.column("id")),
        notes["target_ids"],
        column("tokens").astype(np.int64),
        column("is_target").astype(np.bool_),
        notes["settings"],
        column(_CRC32).astype(np.uint32) if _CRC32 in table.column_names else None,
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
        held = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in columns if name in held])
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; {remedy}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is truncated or not a Parquet file ({error}); {remedy}") from None
    raw = (table.schema.metadata or {}).get(b"finescope")
    if raw is None:
        raise StoreError(f"{path} is not {what}; {remedy}")
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
    notes = {"finescope": json.dumps({"config": selection.config, "tokens": selection.tokens})}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(notes), temporary)


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
        found: the counts of ``TargetRows``.
    """
    reasons = [
        f"{counted(found[name], 'row')} with {words}"
        for name, words in (("same_text", "the text of a target"), ("same_id", "the id of a target"))
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

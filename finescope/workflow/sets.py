"""Several target sets over one corpus: a folder with a table of scores for each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.quotas import select_by_score
from finescope.curation.scoring.evidence import Evidence, Spaces
from finescope.curation.scoring.fitted import Scoring, score_in_passes
from finescope.curation.sets import select_sets
from finescope.errors import InputError, StoreError
from finescope.storage.files import make_folder, read_json, write_json
from finescope.workflow.fresh import FreshScores
from finescope.workflow.layout import SETS
from finescope.workflow.scored import Scored
from finescope.workflow.setnames import MIXTURE, ROWS, check_set_name
from finescope.workflow.stages.score import check_comparable, marked
from finescope.workflow.tables import (
    SCORE_COLUMNS,
    curated_columns,
    evidence_of,
    read_rows,
    read_scores,
    write_each_curated,
    write_rows,
    write_scores,
)

if TYPE_CHECKING:
    from finescope.corpus import Corpus
    from finescope.curation.limits import SelectionConfig
    from finescope.curation.scoring.presets import Preset
    from finescope.curation.selected import Selection
    from finescope.embeddings.store import CodeStore

SET_COLUMN = "finescope_set"
"""Column of a mixture that says which set a row is from."""


def score_sets(
    corpus: CodeStore, sets: Mapping[str, CodeStore], recipe: Preset, *, seed: int = 42
) -> dict[str, FreshScores]:
    """Score the rows of a code store against several others, in the passes that one of them takes.

    A row that is a target of any set is marked in all of them: it is to be found by none.

    Args:
        corpus: codes of N rows.
        sets: by name, codes of targets, made by the same SAE.
        recipe: pooling, weights and scorer.
        seed: for ``random``.

    Raises:
        InputError: as ``check_comparable``, targets without a latent, or a pooling or scorer that the stored
            codes can't serve.
    """
    seeds = {name: evidence_of(targets) for name, targets in sets.items()}
    found = score_each(corpus, sets, Spaces(evidence_of(corpus)), seeds, recipe, seed)
    return {name: scored for name, (scored, _) in found.items()}


def score_each(
    corpus: CodeStore,
    sets: Mapping[str, CodeStore],
    spaces: Spaces,
    seeds: Mapping[str, Evidence],
    recipe: Preset,
    seed: int,
    *,
    nearest: bool = True,
) -> dict[str, tuple[FreshScores, Scoring]]:
    """Score as ``score_sets``, given the corpus' spaces and by set what is known of its targets.

    ``nearest`` is as in ``score_in_passes``.

    Raises:
        InputError: as ``score_sets``.
    """
    for name, targets in sets.items():
        check_set_name(name)
        check_comparable(corpus, targets)
    try:
        scorings = [Scoring(spaces, seeds[name], recipe, seed=seed) for name in sets]
        scores = score_in_passes(scorings, nearest=nearest)
    except ValueError as error:
        raise InputError(f"{corpus.directory}: {error}") from None
    found = marked(corpus, list(sets.values()), list(zip(scorings, scores, strict=True)))
    anywhere = np.unique(np.concatenate([scored.target_rows for scored in found]))
    for name, scored in zip(sets, found, strict=True):
        scored.settings["set"] = name
        scored.settings["targets"]["of_other_sets"] = anywhere.size - scored.target_rows.size
        scored.target_rows = anywhere
    return dict(zip(sets, zip(found, scorings, strict=True), strict=True))


def write_sets(folder: Path, scored: Mapping[str, Scored]) -> None:
    """Write a folder that holds ``NAME.parquet`` for every set, and ``rows.parquet``: what they share.

    Raises:
        StoreError: it can't be written.
    """
    make_folder(folder)
    for name, rows in scored.items():
        write_scores(folder / f"{name}.parquet", rows, rows=False)
    write_rows(folder / f"{ROWS}.parquet", next(iter(scored.values())))
    write_json(folder / SETS, {"format": "finescope-sets", "sets": list(scored)})


def read_sets(folder: Path) -> dict[str, Scored]:
    """Open what ``write_sets`` wrote.

    Raises:
        StoreError: a file is missing or damaged.
    """
    found = read_json(folder / SETS)
    names = found.get("sets") if isinstance(found, dict) else None
    if not names or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{folder / SETS} names no sets; run `finescope score` again")
    for name in names:
        check_set_name(name)
    rows = read_rows(folder / f"{ROWS}.parquet")
    return {name: read_scores(folder / f"{name}.parquet", rows) for name in names}


def select_each(
    scored: Mapping[str, Scored],
    limits: SelectionConfig,
    *,
    exclusive: bool = False,
    shares: Mapping[str, float] | None = None,
    **arguments: Any,
) -> dict[str, Selection]:
    """Select rows for every target set, of saved scores.

    Where every set is for itself, and its scores alone decide, no table is held in memory.

    Args:
        scored: by set.
        limits, exclusive, shares, arguments: as ``select_sets``.

    Raises:
        ValueError, InputError: as ``select_sets``.
    """
    if not (exclusive or shares is not None or limits.look_at_codes):
        labels = arguments.get("labels")
        return {
            name: select_by_score(len(rows), partial(rows.row_blocks, limits), limits, labels)
            for name, rows in scored.items()
        }
    rows = next(iter(scored.values()))
    return select_sets(
        {name: each.table_for(limits) for name, each in scored.items()},
        limits,
        exclusive=exclusive,
        shares=shares,
        tokens=rows.tokens,
        exclude=rows.is_target,
        **arguments,
    )


def write_set_rows(
    folder: Path,
    ending: str,
    corpus: Corpus,
    scored: Mapping[str, Scored],
    selections: Mapping[str, Selection],
    *,
    mixed: bool,
) -> list[Path]:
    """Write the selected rows of every set, ``NAME.jsonl`` or as ``ending`` says; return the files.

    Args:
        folder: where to.
        ending: of the files, which decides their format.
        corpus: the rows.
        scored: by set.
        selections: by set.
        mixed: whether to write ``mixture`` too; see ``write_mixture``.

    Raises:
        StoreError: as ``write_curated``.
    """
    make_folder(folder)
    places = {name: folder / f"{name}{ending}" for name in selections}
    chosen = {name: selection.indices for name, selection in selections.items()}
    write_each_curated(places, corpus, scored, chosen)
    written = list(places.values())
    if mixed:
        written.append(folder / f"{MIXTURE}{ending}")
        write_mixture(written[-1], corpus, scored, selections)
    return written


def write_mixture(
    path: Path, corpus: Corpus, scored: Mapping[str, Scored], selections: Mapping[str, Selection]
) -> None:
    """Write the selected rows of all sets into one file, with ``SET_COLUMN``.

    They are in such an order that every beginning of it has, as far as it can, the shares of the whole.

    Raises:
        StoreError: the corpus isn't the one that was scored.
    """
    import pyarrow as pa

    from finescope.corpus import copy_rows

    places = sorted(
        ((rank + 0.5) / len(selection), at, rank)
        for at, selection in enumerate(selections.values())
        for rank in range(len(selection))
    )
    names, chosen = list(selections), list(selections.values())
    picked = {name: scored[name].at(selection.indices) for name, selection in selections.items()}
    parts = [curated_columns(each) for each in picked.values()]
    columns = {}
    for column in SCORE_COLUMNS:
        values = [parts[at][column][rank].as_py() for _, at, rank in places]
        columns[column] = pa.array(values, parts[0][column].type)
    columns[SET_COLUMN] = pa.array([names[at] for _, at, _ in places], pa.string())
    rows = [int(chosen[at].indices[rank]) for _, at, rank in places]
    known = scored[names[0]].known_at(np.unique(rows))
    copy_rows(path, corpus, rows, columns=columns, known=known)

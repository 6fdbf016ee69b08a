"""A callable class for ``ray.data.Dataset.map_batches`` that adds the scores of a finished run to rows.

Nothing here imports Ray: a batch is a dictionary of NumPy arrays, a pyarrow Table or a pandas DataFrame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from finescope.workflow.rowscorer import RowScorer
from finescope.workflow.tables import SCORE_COLUMNS

_, SCORE, NEAREST, SIMILARITY = SCORE_COLUMNS
TOKENS = "finescope_tokens"


class AddScores:
    """Adds ``finescope_score`` to the rows of a batch, and what else is asked for.

    For a pool of actors, each of which loads the model once:

        dataset.map_batches(
            AddScores,
            fn_constructor_kwargs={"run": "/shared/curated"},
            compute=ray.data.ActorPoolStrategy(size=8),
            batch_size=256,
        )

    A row scores what it would in the run, whatever batch or actor it comes to. Where a row has no code its
    score is null: NaN in NumPy and pandas.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        nearest: bool = False,
        tokens: bool = False,
        **options: Any,
    ) -> None:
        """Load model, autoencoder and what the run has learned.

        Args:
            run: ``--out`` of ``finescope curate``, a folder that every machine sees by that name, or a URL.
            nearest: add ``finescope_nearest_target`` and ``finescope_nearest_similarity`` too.
            tokens: add ``finescope_tokens`` too.
            options: of ``RowScorer``: model, sae, device, batch_tokens.

        Raises:
            InputError, StoreError: as ``RowScorer``.
        """
        self._scorer = RowScorer(run, **options)
        self._nearest, self._tokens = nearest, tokens

    def __call__(self, batch: Any) -> Any:
        """Return the batch, of the kind that it is of, with the columns added.

        Text or conversation is read as the run's corpus was, by its columns.

        Raises:
            InputError, StoreError: as ``RowScorer.score``; rows are numbered within the batch.
        """
        found = self._scorer.score(_records(batch, self._scorer), full_rows=True)
        columns: dict[str, Any] = {SCORE: np.where(found.valid, found.score, np.nan)}
        if self._nearest:
            names = np.empty(len(found), object)
            names[:] = found.nearest_target
            columns[NEAREST] = names
            columns[SIMILARITY] = np.where(found.valid, found.nearest_similarity, np.nan)
        if self._tokens:
            columns[TOKENS] = found.tokens
        if not hasattr(batch, "schema"):
            return {**batch, **columns} if isinstance(batch, Mapping) else batch.assign(**columns)
        import pyarrow as pa

        kept = batch.drop_columns([name for name in columns if name in batch.column_names])
        for name, values in columns.items():
            kind = pa.string() if name == NEAREST else None
            kept = kept.append_column(name, pa.array(values, kind, from_pandas=True))
        return kept


def _records(batch: Any, scorer: RowScorer) -> list[dict[str, Any]]:
    """The rows of a batch as dictionaries of what is read of them."""
    names = list(batch.column_names if hasattr(batch, "schema") else batch.keys())
    wanted = scorer.columns(names)
    if hasattr(batch, "schema"):
        return list(batch.select(wanted).to_pylist())
    columns = [[_plain(value) for value in np.asarray(batch[name]).tolist()] for name in wanted]
    return [dict(zip(wanted, values, strict=True)) for values in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    """A cell as Python has it: NumPy and pandas keep lists as arrays, and nothing as NaN."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and value != value else value

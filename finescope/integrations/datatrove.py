"""A filter of datatrove that keeps documents which a finished run scores high enough."""

from __future__ import annotations

import functools
import os
from typing import Any

try:
    from datatrove.data import Document  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.filters.base_filter import (  # type: ignore[import-not-found,unused-ignore]
        BaseFilter,
    )
except ImportError as error:
    raise ImportError(
        "finescope.integrations.datatrove needs a package that isn't installed: "
        "pip install 'finescope[datatrove]'"
    ) from error

from finescope.workflow.rowscorer import RowScorer
from finescope.workflow.tables import SCORE_COLUMNS

NO_CODE, LOW_SCORE = "finescope_no_code", "finescope_low_score"
"""Why a document is dropped: it has no latent of positive weight, or its score is below the limit."""
_, _SCORE, _NEAREST, _SIMILARITY = SCORE_COLUMNS


class FineScopeFilter(BaseFilter):  # type: ignore[misc]
    """Keeps the documents whose score reaches a limit, and writes the score into their metadata.

    A document scores what a row of that text scores in the run, whatever batch, task or worker it comes to.
    Each process loads model and autoencoder once, when its first batch comes. Metadata: ``finescope_score``
    and, with it, ``finescope_nearest_target`` and ``finescope_nearest_similarity``; None of a document
    without a code.
    """

    name = "🔬 FineScope"

    def __init__(
        self,
        run: str | os.PathLike[str],
        min_score: float | None = None,
        *,
        exclusion_writer: Any = None,
        batch_size: int = 256,
        **options: Any,
    ) -> None:
        """Set up the step; nothing is loaded yet.

        Args:
            run: ``--out`` of ``finescope curate``, a folder or a URL.
            min_score: documents that score less are dropped, and those without a code. None keeps all.
            exclusion_writer: a datatrove writer for those that are dropped.
            batch_size: documents that are read and scored together.
            options: of ``RowScorer``: model, sae, device, batch_tokens.
        """
        super().__init__(exclusion_writer, batch_size)
        self.run_folder, self.min_score, self.options = os.fspath(run), min_score, options

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Score documents; return of each whether it is kept, or that it isn't and why."""
        scorer = _loaded(self.run_folder, tuple(sorted(self.options.items())))
        found = scorer.score([document.text for document in batch])
        results: list[bool | tuple[bool, str]] = []
        for at, document in enumerate(batch):
            valid, score = bool(found.valid[at]), float(found.score[at])
            document.metadata |= {
                _SCORE: score if valid else None,
                _NEAREST: found.nearest_target[at],
                _SIMILARITY: float(found.nearest_similarity[at]) if valid else None,
            }
            if self.min_score is None or (valid and score >= self.min_score):
                results.append(True)
            else:
                results.append((False, LOW_SCORE if valid else NO_CODE))
        return results

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Score one document, as ``filter_batch`` does."""
        return self.filter_batch([doc])[0]


@functools.lru_cache(1)
def _loaded(run: str, options: tuple[tuple[str, Any], ...]) -> RowScorer:
    """What scores by a run, once a process: executors copy their steps for each task."""
    return RowScorer(run, **dict(options))

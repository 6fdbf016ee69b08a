"""Scores of corpus rows against target rows: exact in float64, streamed, independent of threads and shards.

Every scorer works on unit vectors in the weighted space, t̂ = w∘t/‖w∘t‖ and ĉ = w∘c/‖w∘c‖ with w ≥ 0 per
latent:

    max          max over targets of ⟨t̂, ĉ⟩ (FineScope paper)
    mean         mean over targets of ⟨t̂, ĉ⟩
    top_m_mean   mean of the m largest ⟨t̂, ĉ⟩
    centroid     cosine of ĉ with the mean of the (not normalised) w∘t (Rocchio without negatives)
    contrast     ⟨mean_t t̂ − mean_corpus ĉ, ĉ⟩: what targets have and the corpus at large has not
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BLOCK_ROWS,
    BoolArray,
    Codes,
    FloatArray,
    IntArray,
    add_rows,
    iter_blocks,
    iter_shard_codes,
    panel_columns,
    reciprocal,
    scale_rows,
    to_csr64,
    weighted_norms,
)
from finescope.curation.scoring.weighting import resolve_weights
from finescope.errors import InputError

SCORERS = ("contrast", "max", "mean", "top_m_mean", "centroid")
"""Names of the scorers."""
_QUERY_COLUMNS = 64


@dataclass
class ScoreTable:
    """Scores of all N corpus rows, in row order.

    Attributes:
        score: float64 [N]; larger is nearer to the targets. 0 for a row without latents.
        nearest_target: int64 [N], the target with the largest cosine (the first of equals); -1 for rows that
            are not valid.
        nearest_similarity: float64 [N], that cosine in the weighted space, clipped to [-1, 1].
        valid: bool [N]; False for rows without any latent of positive weight or with a non-finite value. Such
            rows are never selected.
        scorer: name of the scorer.
    """

    score: FloatArray
    nearest_target: IntArray
    nearest_similarity: FloatArray
    valid: BoolArray
    scorer: str

    def __len__(self) -> int:
        return int(self.score.size)

    def ranking(self) -> IntArray:
        """Return the valid rows by (score descending, row ascending), int64 [≤N]."""
        return rank_rows(self.score, self.valid)

    def columns(self) -> dict[str, Any]:
        """Return the per-row arrays by name, for a table of all scores."""
        return {
            "score": self.score,
            "nearest_target": self.nearest_target,
            "nearest_similarity": self.nearest_similarity,
            "valid": self.valid,
        }


def rank_rows(score: FloatArray, valid: BoolArray | None = None) -> IntArray:
    """Return row numbers by (score descending, row ascending), without rows that are NaN or not valid."""
    keep = ~np.isnan(score) if valid is None else valid & ~np.isnan(score)
    rows = np.flatnonzero(keep)
    return rows[np.argsort(-score[rows], kind="stable")].astype(np.int64)


class CorpusScorer:
    """A corpus with its weights, norms and mean, ready to be scored against any number of target sets.

    Preparing takes two passes over the corpus (three for ``weights="idf"``), a score one more. Memory beyond
    the
    corpus: one float64 block, one [F, 64] panel of queries (narrower when F is large), and a few numbers per
        row.
    """

    def __init__(self, corpus: Codes, *, weights: Any = None, block_rows: int = BLOCK_ROWS):
        """Prepare the corpus.

        Args:
            corpus: N rows over F latents: SparseCodes, or a store with ``iter_shards()``.
            weights: None or "none", "idf", or float [F].
            block_rows: rows held in float64 at a time; never changes a result.

        Raises:
            InputError: the corpus has no rows.
            ValueError: weights of the wrong shape, negative, or of an unknown name.
        """
        self.corpus = corpus
        self.block_rows = block_rows
        widths = {shard.num_latents for shard in iter_shard_codes(corpus)}
        if not widths:
            raise InputError("the corpus holds no rows; embed a corpus first")
        if len(widths) > 1:
            raise ValueError(f"corpus shards have different numbers of latents: {sorted(widths)}")
        self.num_latents: int = widths.pop()
        self.weights: FloatArray | None = resolve_weights(weights, corpus, self.num_latents)
        squared = None if self.weights is None else self.weights * self.weights
        norms = [weighted_norms(block, squared) for _, block in iter_blocks(corpus, block_rows)]
        self.norms: FloatArray = np.concatenate(norms) if norms else np.zeros(0)
        if self.norms.size == 0:
            raise InputError("the corpus holds no rows; embed a corpus first")
        self.valid: BoolArray = np.isfinite(self.norms) & (self.norms > 0)
        # Rows that are not valid get factor 0; their own values are never multiplied (0 × inf is NaN).
        self._factors = np.where(self.valid, reciprocal(np.where(self.valid, self.norms, 1.0)), 0.0)
        self._mean: FloatArray | None = None

    def __len__(self) -> int:
        return int(self.norms.size)

    def corpus_mean(self) -> FloatArray:
        """Return mean ĉ over the valid rows, float64 [F]; computed once, when first asked for."""
        if self._mean is None:
            total = np.zeros(self.num_latents)
            for start, block in iter_blocks(self.corpus, self.block_rows):
                rows = np.flatnonzero(self.valid[start : start + block.shape[0]])
                kept = block if rows.size == block.shape[0] else block[rows]
                add_rows(total, scale_rows(kept, self._factors[start + rows]))
            if self.weights is not None:
                total *= self.weights
            self._mean = total / max(1, int(self.valid.sum()))
        return self._mean

    def score(self, targets: SparseCodes, scorer: str = "contrast", *, m: int = 3) -> ScoreTable:
        """Score every corpus row against the targets.

        Args:
            targets: T rows over the same F latents.
            scorer: one of ``SCORERS``.
            m: how many of the best targets ``top_m_mean`` averages (all of them when there are fewer).

        Raises:
            InputError: no target, no target with a latent of positive weight, or a non-finite target.
            ValueError: unknown scorer, m < 1, or another number of latents.
        """
        if scorer not in SCORERS:
            raise ValueError(f"unknown scorer {scorer!r}; known are {', '.join(SCORERS)}")
        if m < 1:
            raise ValueError(f"m must be at least 1, got {m}")
        unit, raw, usable = self._unit_targets(targets)
        query = self._linear_query(unit, raw, usable, scorer)
        n = len(self)
        score = np.zeros(n)
        nearest = np.full(n, -1, np.int64)
        similarity = np.full(n, -np.inf)
        best = np.full((n, min(m, usable.size)), -np.inf) if scorer == "top_m_mean" else None
        for low in range(0, usable.size, self._columns(usable.size)):
            columns = usable[low : low + self._columns(usable.size)]
            panel = self._panel(unit, columns)
            for start, block in iter_blocks(self.corpus, self.block_rows):
                rows = slice(start, start + block.shape[0])
                cosines = self._cosines(block, panel, rows)
                place = cosines.argmax(axis=1)
                top = cosines[np.arange(place.size), place]
                better = top > similarity[rows]
                nearest[rows][better] = columns[place[better]]
                similarity[rows][better] = top[better]
                if best is not None:
                    both = np.concatenate([best[rows], cosines], axis=1)
                    both.sort(axis=1)
                    best[rows] = both[:, -best.shape[1] :]
        if query is not None:
            for start, block in iter_blocks(self.corpus, self.block_rows):
                rows = slice(start, start + block.shape[0])
                score[rows] = self._cosines(block, query[:, None], rows)[:, 0]
        elif best is not None:
            score = best[:, ::-1].cumsum(axis=1)[:, -1] / best.shape[1]
        else:
            score = similarity.copy()
        score[~self.valid] = 0.0
        nearest[~self.valid] = -1
        similarity[~self.valid] = 0.0
        return ScoreTable(score, nearest, np.clip(similarity, -1.0, 1.0), self.valid.copy(), scorer)

    def nearest_rows(
        self, targets: SparseCodes, k: int, *, mask: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Return for each target its k nearest valid corpus rows by weighted cosine.

        Args:
            targets: T rows.
            k: rows per target.
            mask: bool [N]; only rows that are True are returned.

        Returns:
            ids int64 [T,k] ordered by (cosine descending, row ascending) and cosines float64 [T,k]; missing
            places hold -1 and -inf.
        """
        unit, _, _ = self._unit_targets(targets)
        allowed = self.valid if mask is None else self.valid & mask
        total = len(targets)
        ids = np.full((total, k), -1, np.int64)
        cosines = np.full((total, k), -np.inf)
        step = self._columns(total)
        for low in range(0, total, step):
            columns = np.arange(low, min(low + step, total))
            panel = self._panel(unit, columns)
            for start, block in iter_blocks(self.corpus, self.block_rows):
                rows = np.flatnonzero(allowed[start : start + block.shape[0]])
                if rows.size == 0 or k == 0:
                    continue
                found = self._cosines(block[rows], panel, start + rows).T
                together = np.concatenate([cosines[columns], found], axis=1)
                names = np.concatenate(
                    [ids[columns], np.broadcast_to(start + rows, (columns.size, rows.size))], axis=1
                )
                # Kept rows come first and are lower than this block's, so a stable sort settles ties by row.
                order = np.argsort(-together, axis=1, kind="stable")[:, :k]
                cosines[columns] = np.take_along_axis(together, order, axis=1)
                ids[columns] = np.take_along_axis(names, order, axis=1)
        return ids, cosines

    def mean_cosines(self, targets: SparseCodes, labels: IntArray, groups: int) -> FloatArray:
        """Return the mean weighted cosine of each target to the valid rows of each group.

        Args:
            targets: T rows.
            labels: int64 [N], the group of each corpus row.
            groups: number of groups G.

        Returns:
            float64 [T,G]; -inf for a group without valid rows.
        """
        unit, _, _ = self._unit_targets(targets)
        sums = np.zeros((groups, len(targets)))
        step = self._columns(len(targets))
        for low in range(0, len(targets), step):
            columns = np.arange(low, min(low + step, len(targets)))
            panel = self._panel(unit, columns)
            for start, block in iter_blocks(self.corpus, self.block_rows):
                rows = slice(start, start + block.shape[0])
                part = sums[:, columns]  # a copy: the columns are picked by position
                np.add.at(part, labels[rows], self._cosines(block, panel, rows))
                sums[:, columns] = part
        counts = np.bincount(labels[self.valid], minlength=groups)
        means = np.full((len(targets), groups), -np.inf)
        means[:, counts > 0] = (sums[counts > 0] / counts[counts > 0, None]).T
        return means

    # ------------------------------------------------------------------ parts

    def _columns(self, wanted: int) -> int:
        return panel_columns(self.num_latents, min(wanted, _QUERY_COLUMNS))

    def _unit_targets(self, targets: SparseCodes) -> tuple[Any, Any, IntArray]:
        if targets.num_latents != self.num_latents:
            raise ValueError(
                f"targets have {targets.num_latents} latents and the corpus {self.num_latents}; "
                "both must come from the same SAE"
            )
        if len(targets) == 0:
            raise InputError("there are no targets; give at least one seed row")
        raw = to_csr64(targets)
        if not np.isfinite(raw.data).all():
            row = (
                int(np.searchsorted(raw.indptr, np.flatnonzero(~np.isfinite(raw.data))[0], side="right")) - 1
            )
            raise InputError(f"target {row} holds a NaN or infinite value; its activations are broken")
        if self.weights is not None:
            raw.data = raw.data * self.weights[raw.indices]
        norms = weighted_norms(raw, None)
        usable = np.flatnonzero(norms > 0).astype(np.int64)
        if usable.size == 0:
            raise InputError("no target has a latent of positive weight, so nothing can be similar to one")
        return scale_rows(raw, reciprocal(norms)), raw, usable

    def _linear_query(self, unit: Any, raw: Any, usable: IntArray, scorer: str) -> FloatArray | None:
        """The scorers that are one inner product with ĉ; None for the others."""
        if scorer not in ("contrast", "mean", "centroid"):
            return None
        query = np.zeros(self.num_latents)
        add_rows(query, raw if scorer == "centroid" else unit)
        query /= usable.size
        if scorer == "centroid":
            query /= math.sqrt(math.fsum(query * query))
        if scorer == "contrast":
            query -= self.corpus_mean()
        return query if self.weights is None else query * self.weights

    def _panel(self, unit: Any, columns: IntArray) -> FloatArray:
        """The unit targets as dense columns [F, len(columns)], with the corpus' weights folded in."""
        panel = np.ascontiguousarray(unit[columns].toarray().T)
        if self.weights is not None:
            panel *= self.weights[:, None]
        return panel

    def _cosines(self, block: Any, panel: FloatArray, rows: Any) -> FloatArray:
        """⟨ĉ, column⟩ for the rows of a block, [n, columns]; 0 for rows that are not valid."""
        products = np.asarray(block @ panel)
        products[~self.valid[rows]] = 0.0
        products *= self._factors[rows][:, None]
        return products


def score_corpus(
    targets: SparseCodes,
    corpus: Codes,
    *,
    scorer: str = "contrast",
    weights: Any = "idf",
    m: int = 3,
) -> ScoreTable:
    """Score all N corpus rows against T targets.

    Args:
        targets: T rows over F latents.
        corpus: N rows over F latents: SparseCodes, or a store with ``iter_shards()``, streamed.
        scorer: one of ``SCORERS`` (formulas at the top of this module).
        weights: None or "none", "idf", or float [F].
        m: for ``top_m_mean``.

    Raises:
        InputError: empty corpus, empty or unusable targets.
        ValueError: unknown scorer or weighting, or different numbers of latents.
    """
    return CorpusScorer(corpus, weights=weights).score(targets, scorer, m=m)

"""Quality of a selection without labels: how near to the targets, how varied, how biased by length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import (
    BoolArray,
    Codes,
    FloatArray,
    IntArray,
    PickedRows,
    add_at,
    iter_blocks,
    latents_of,
    panel_columns,
    product,
    reciprocal,
    row_access,
    rows_of,
    scaled_values,
    unit_rows,
    weighted_norms,
)
from finescope.curation.metrics import spearman
from finescope.curation.scoring.space import Space
from finescope.curation.scoring.weighting import document_frequency

VENDI_ROWS = 2000
"""Rows at most for the Vendi score; its cost grows with the cube of the smaller side of the matrix."""


def target_similarity(
    targets: SparseCodes, selected: Codes, *, weights: FloatArray | None = None
) -> tuple[float, float, float, FloatArray]:
    """Return mean, minimum and maximum cosine over all pairs, and each target's best cosine.

    Args:
        targets: T rows; selected: R rows, over the same F latents.
        weights: float64 [F] or None.

    Returns:
        Three floats (NaN when there is no pair), and float64 [T].
    """
    left, rows = unit_rows(targets, weights), rows_of(selected)
    if left.shape[0] == 0 or rows == 0:
        return math.nan, math.nan, math.nan, np.full(left.shape[0], math.nan)
    total, low, high = 0.0, math.inf, -math.inf
    best = np.full(left.shape[0], -np.inf)
    step = panel_columns(targets.num_latents, left.shape[0])
    for first in range(0, left.shape[0], step):
        panel = left[first : first + step].toarray().T
        panel = np.ascontiguousarray(panel if weights is None else panel * weights[:, None])
        for _, block in iter_blocks(selected):
            cosines = product(block, panel) * reciprocal(weighted_norms(block, weights))[:, None]
            np.clip(cosines, -1.0, 1.0, out=cosines)
            total += math.fsum(cosines.sum(axis=0))
            low, high = min(low, float(cosines.min())), max(high, float(cosines.max()))
            best[first : first + step] = np.maximum(best[first : first + step], cosines.max(axis=0))
    return total / (left.shape[0] * rows), low, high, best


def pairwise_diversity(codes: Codes, *, weights: FloatArray | None = None) -> float:
    """Return 1 − the mean cosine over all pairs of different rows, in one pass over the non-zeros.

    With unit rows u, the sum of ⟨u_i, u_j⟩ over i ≠ j is ‖Σ u‖² − Σ ‖u‖². Rows without latents have cosine 0
    with everything. NaN for fewer than two rows.
    """
    count = rows_of(codes)
    if count < 2:
        return math.nan
    total = np.zeros(latents_of(codes))
    own = 0.0
    for _, block in iter_blocks(codes):
        values = scaled_values(block, reciprocal(weighted_norms(block, weights)))
        add_at(total, block.indices.numpy(), values)
        weighted = values if weights is None else values * weights[block.indices.numpy()]
        own += math.fsum(weighted * weighted)
    if weights is not None:
        total *= weights
    return 1.0 - (math.fsum(total * total) - own) / (count * (count - 1.0))


def vendi_score(
    codes: Codes, *, weights: FloatArray | None = None, max_rows: int = VENDI_ROWS, seed: int = 42
) -> float:
    """Return the Vendi score: the effective number of different rows, between 1 and R.

    exp(−Σ λ log λ) over the eigenvalues λ of K/R, where K holds the cosines of the R rows (Friedman and
    Dieng, 2023). The non-zero eigenvalues of X Xᵀ and Xᵀ X agree, so the smaller of the two (only latents
    that occur count) is decomposed.

    Args:
        codes: R rows; rows without latents are left out.
        weights: float64 [F] or None.
        max_rows: a seeded sample of this many rows is used when there are more. The score is bounded by the
            number of rows, so compare only scores with the same sample size.
        seed: of the sample.

    Returns:
        NaN when no row has a latent.
    """
    source, rows = row_access(codes), np.arange(rows_of(codes))
    if rows.size > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(rows.size, max_rows, replace=False))
    unit = unit_rows(source.take(rows), weights)
    unit = unit[np.flatnonzero(np.diff(unit.indptr) > 0)]
    unit = unit[np.flatnonzero(np.asarray(abs(unit).sum(axis=1)).ravel() > 0)]
    if unit.shape[0] == 0:
        return math.nan
    active = np.unique(unit.indices)
    unit = unit[:, active]
    gram = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    eigenvalues = np.linalg.eigvalsh(np.asarray(gram.todense()) / unit.shape[0])
    positive = eigenvalues[eigenvalues > 1e-15]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def latent_coverage(targets: SparseCodes, selected: Codes, corpus: Codes | IntArray) -> dict[str, float]:
    """Return which shares of the latents in use occur in the selection.

    Args:
        targets: T rows; selected: R rows, over the same F latents.
        corpus: N rows; or int64 [F], how many of them hold each latent.

    Returns:
        ``latents``: distinct latents of the selection; ``of_corpus``: as a share of those of the corpus;
        ``of_targets``: share of the targets' latents that occur in the selection. NaN where there are none.
    """
    chosen, everything, wanted = _active(selected), _active(corpus), _active(targets)
    return {
        "latents": int(chosen.sum()),
        "of_corpus": float((chosen & everything).sum() / everything.sum()) if everything.any() else math.nan,
        "of_targets": float((chosen & wanted).sum() / wanted.sum()) if wanted.any() else math.nan,
    }


def _active(codes: Codes | IntArray) -> BoolArray:
    return (codes if isinstance(codes, np.ndarray) else document_frequency(codes)[0]) > 0


def length_bias(score: FloatArray, lengths: Any, indices: IntArray) -> dict[str, float | None]:
    """Return how much the scores prefer long rows.

    Args:
        score: float64 [N].
        lengths: numbers [N], tokens or characters.
        indices: selected rows.

    Returns:
        ``spearman``: rank correlation of score and length over all rows (None when one is constant);
        ``mean_length_ratio``: mean length of the selected rows over that of all rows (None when undefined).
    """
    values = np.asarray(lengths, dtype=np.float64)
    if values.shape != score.shape:
        raise ValueError(
            f"lengths must have one entry for each of the {score.size} rows, got {list(values.shape)}"
        )
    mean = float(values.mean()) if values.size else 0.0
    ratio = float(values[indices].mean()) / mean if len(indices) and mean > 0 else None
    return {"spearman": spearman(score, values), "mean_length_ratio": ratio}


def curation_quality(
    targets: SparseCodes,
    corpus: Codes | Space,
    indices: IntArray,
    *,
    weights: FloatArray | None = None,
    score: FloatArray | None = None,
    lengths: Any = None,
    coverage_threshold: float = 0.5,
    seed: int = 42,
) -> dict[str, Any]:
    """Measure a selection. The first five keys are the supplement's.

    Args:
        targets: T rows over F latents.
        corpus: N rows; or the space in which they were scored, whose weights are then taken.
        indices: selected rows.
        weights: float64 [F] of the space that similarities are measured in; None is the plain codes.
        score: float64 [N], for the length bias.
        lengths: numbers [N], for the length bias.
        coverage_threshold: a target counts as covered when a selected row has at least this cosine.
        seed: of the Vendi sample.

    Returns:
        avg_similarity_to_target, min_…, max_…, diversity_of_selected, num_selected, vendi_score,
        target_coverage, latent_coverage, and length_bias when lengths and scores are given. Undefined values
        are None, so that the dictionary is valid JSON.
    """
    frequency: Codes | IntArray
    if isinstance(corpus, Space):
        weights, frequency, corpus = corpus.weights, corpus.frequency, corpus.corpus
    else:
        frequency = corpus
    selected = PickedRows(corpus, indices)
    mean, low, high, best = target_similarity(targets, selected, weights=weights)
    found: dict[str, Any] = {
        "avg_similarity_to_target": mean,
        "min_similarity_to_target": low,
        "max_similarity_to_target": high,
        "diversity_of_selected": pairwise_diversity(selected, weights=weights),
        "num_selected": len(selected),
        "vendi_score": vendi_score(selected, weights=weights, seed=seed),
        "target_coverage": float((best >= coverage_threshold).mean()) if best.size else math.nan,
        "target_coverage_threshold": coverage_threshold,
        "latent_coverage": latent_coverage(targets, selected, frequency),
    }
    if score is not None and lengths is not None:
        found["length_bias"] = length_bias(score, lengths, np.asarray(indices, dtype=np.int64))
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

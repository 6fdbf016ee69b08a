"""Why a row was selected: each latent's exact share in its score, and words that hint at its meaning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.curation.blocks import resident_codes, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.curation.scoring.scorers import CorpusScorer

_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")


def score_contributions(
    prepared: CorpusScorer,
    targets: SparseCodes,
    rows: NDArray[np.int64],
    scorer: str,
    *,
    nearest: NDArray[np.int64] | None = None,
    m: int = 3,
) -> Any:
    """Split the scores of some rows into one addend per latent.

    Every scorer is, for a given row, an inner product ⟨u, ĉ⟩ of the row's weighted unit code ĉ with a
    direction u: the mean of the unit targets (``mean``), the same less the corpus mean (``contrast``), the
    normalised mean of the targets (``centroid``), the nearest unit target (``max``), or the mean of the m
    nearest (``top_m_mean``). The addends are u_f·ĉ_f, so they sum to the score (up to float64 rounding).

    Args:
        prepared: the corpus of N rows over F latents with the weights that scored it.
        targets: Q targets over the same F latents.
        rows: int64 [S] row numbers to explain.
        scorer: name of the scorer that gave the scores.
        nearest: int64 [S], nearest target of each row, for ``max``; computed when None.
        m: of ``top_m_mean``.

    Returns:
        scipy CSR float64 [S,F] of addends, latents ascending in a row.

    Raises:
        ValueError: unknown scorer.
    """
    from scipy import sparse

    weights = prepared.weights
    units = unit_rows(resident_codes(prepared.corpus)[rows], weights)
    unit_targets = unit_rows(targets, weights)
    usable = np.flatnonzero(np.diff(unit_targets.indptr) > 0)
    if scorer in ("mean", "contrast", "centroid"):
        if scorer == "centroid":
            raw = targets.to_scipy().astype(np.float64)
            direction = np.asarray(raw.mean(axis=0)).ravel()
            direction = direction if weights is None else direction * weights
            direction /= np.linalg.norm(direction)
        else:
            direction = np.asarray(unit_targets[usable].mean(axis=0)).ravel()
        if scorer == "contrast":
            direction = direction - prepared.corpus_mean()
        result = units.copy()
        result.data = result.data * direction[result.indices]
        return _sorted(result)
    if scorer not in ("max", "top_m_mean"):
        raise ValueError(f"unknown scorer {scorer!r}")
    cosines = (units @ unit_targets[usable].T).toarray()
    if scorer == "max":
        best = usable[cosines.argmax(axis=1)] if nearest is None else np.asarray(nearest)
        return _sorted(units.multiply(unit_targets[best]).tocsr())
    keep = min(m, len(usable))
    best_m = usable[np.argsort(-cosines, axis=1, kind="stable")[:, :keep]]
    picks = sparse.csr_matrix(
        (np.full(best_m.size, 1.0 / keep), best_m.ravel(), np.arange(len(rows) + 1) * keep),
        shape=(len(rows), len(targets)),
    )
    return _sorted(units.multiply(picks @ unit_targets).tocsr())


def strongest(contributions: Any, count: int = 6) -> list[list[tuple[int, float]]]:
    """Return for every row the latents with the largest absolute addends, largest first.

    Args:
        contributions: CSR [S,F] of ``score_contributions``.
        count: latents per row.
    """
    result: list[list[tuple[int, float]]] = []
    for row in range(contributions.shape[0]):
        low, high = contributions.indptr[row], contributions.indptr[row + 1]
        values, latents = contributions.data[low:high], contributions.indices[low:high]
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        result.append([(int(latents[i]), float(values[i])) for i in order if values[i] != 0.0])
    return result


def latent_examples(
    codes: SparseCodes, latents: Sequence[int], count: int = 12
) -> dict[int, NDArray[np.int64]]:
    """Return for every latent the rows in whose code it has the largest share, best first.

    Args:
        codes: N rows over F latents.
        latents: which ones.
        count: rows per latent.
    """
    from sklearn.preprocessing import normalize

    columns = sorted({int(latent) for latent in latents})
    if not columns:
        return {}
    by_column = normalize(codes.to_scipy().astype(np.float64))[:, columns].tocsc()
    found: dict[int, NDArray[np.int64]] = {}
    for at, latent in enumerate(columns):
        low, high = by_column.indptr[at], by_column.indptr[at + 1]
        order = np.argsort(-by_column.data[low:high], kind="stable")[:count]
        found[latent] = by_column.indices[low:high][order].astype(np.int64)
    return found


def latent_words(
    examples: Mapping[int, Sequence[int] | NDArray[np.int64]],
    text_of: Callable[[int], str],
    background: Sequence[str],
    count: int = 4,
) -> dict[int, str]:
    """Name every latent by words that are frequent in its strongest rows and rare elsewhere.

    A word's weight is (rows of the latent that hold it) · log(background rows / background rows that hold
    it); words that only one row holds are passed over when the latent has several rows. The words are a hint,
    not a proof.

    Args:
        examples: row numbers by latent, from ``latent_examples``.
        text_of: text of a row.
        background: a sample of the corpus.
        count: words per latent.
    """
    frequency = Counter(word for text in background for word in _words(text))
    total = len(background) + 1
    hints: dict[int, str] = {}
    for latent, rows in examples.items():
        counts = Counter(word for row in rows for word in _words(text_of(int(row))))
        enough = 2 if len(rows) > 2 else 1
        weighed = [
            (-held * float(np.log(total / (1 + frequency[word]))), word)
            for word, held in counts.items()
            if held >= enough
        ]
        hints[latent] = ", ".join(word for weight, word in sorted(weighed)[:count] if weight < 0)
    return hints


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _sorted(matrix: Any) -> Any:
    matrix.sort_indices()
    return matrix

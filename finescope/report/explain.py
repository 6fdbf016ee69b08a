"""Why a row was selected: each latent's exact share in its score, and words that hint at its meaning."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.curation.scoring.onepass import CorpusScorer

_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")


def score_contributions(
    prepared: CorpusScorer, targets: SparseCodes, rows: NDArray[np.int64], scorer: str, *, m: int = 3
) -> Any:
    """Split the scores of some rows into one addend per latent; see ``CorpusScorer.contributions``."""
    return prepared.contributions(targets, rows, scorer, m=m)


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

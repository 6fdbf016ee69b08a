"""Why rows were selected: each latent's exact share in the score, and what the latent stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.report.data import Latent, Passage, Share
from finescope.report.latents import LatentWords, latent_examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finescope.curation.scoring.fitted import Contributions, Scoring

DIGITS = 4
"""Places after the point with which scores and their parts are shown."""
LATENTS_PER_ROW = 5
WORDS_PER_ROW = 5
EXAMPLES_PER_LATENT = 12
"""Rows from whose texts a latent gets its words."""
EXAMPLES_SHOWN = 3
CONSTANT = "constant"
"""Stands beside the spaces for what none of them accounts for: the means that standardising takes off."""
EXAMPLE_CHARACTERS = 240
BACKGROUND_ROWS = 3000
"""Rows sampled to know which words are common in the corpus."""


@dataclass(frozen=True)
class Explanation:
    """Which latents carried the scores of some rows, and which rows make those latents legible.

    Attributes:
        rows: int64 [S], the rows that are explained.
        shares: the strongest latents of each, strongest first.
        said: the strongest words of each and their parts, where the scorer looks at words.
        parts: of each row by space, what all latents, words or dimensions of it add to the score; and
            ``CONSTANT``, what no space accounts for.
        means: the mean part of those latents in the scores of all S rows.
        examples: int64, the corpus rows in whose code each of them has the largest share, best first.
        background: int64, rows sampled from the corpus.
    """

    rows: NDArray[np.int64]
    shares: list[list[Share]]
    said: list[list[tuple[str, float]]]
    parts: list[dict[str, float]]
    means: dict[int, float]
    examples: dict[int, NDArray[np.int64]]
    background: NDArray[np.int64]

    def wanted(self) -> list[int]:
        """Return, in ascending order, the rows whose texts are needed."""
        rows = {int(row) for row in self.rows} | {int(row) for row in self.background}
        return sorted(rows.union(*(found.tolist() for found in self.examples.values())))

    def read(self, passages: Iterable[tuple[int, Passage]]) -> tuple[dict[int, Passage], dict[int, Latent]]:
        """Take in the texts of the rows that ``wanted`` names; only what is shown of them is kept.

        Returns:
            the passages of the explained rows by row number, and the latents by their number.
        """
        words = LatentWords(self.examples, self.background)
        explained = {int(row) for row in self.rows}
        shown = {row for rows in self.examples.values() for row in rows[:EXAMPLES_SHOWN].tolist()}
        kept: dict[int, Passage] = {}
        excerpts: dict[int, Passage] = {}
        for row, passage in passages:
            words.see(row, passage.text)
            if row in explained:
                kept[row] = passage
            if row in shown:
                excerpts[row] = passage.cut(EXAMPLE_CHARACTERS)
        ranks: dict[int, list[int]] = {latent: [] for latent in self.examples}
        for rank, shares in enumerate(self.shares, start=1):
            for share in shares:
                ranks[share.latent].append(rank)
        latents = {
            number: Latent(
                number,
                words.words(number),
                self.means[number],
                ranks[number],
                [excerpts[row] for row in rows[:EXAMPLES_SHOWN].tolist()],
            )
            for number, rows in self.examples.items()
        }
        return kept, latents


def background_rows(valid: Callable[[], Iterable[NDArray[np.bool_]]], *, seed: int = 42) -> NDArray[np.int64]:
    """Return up to ``BACKGROUND_ROWS`` rows drawn from those that are valid, int64, ascending.

    Args:
        valid: gives, as often as it is called, whether rows are valid, bool [n] of blocks of rows in order.
        seed: of the sample.
    """
    count = sum(int(np.count_nonzero(block)) for block in valid())
    chosen = np.arange(count)
    if count > BACKGROUND_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(count, BACKGROUND_ROWS, replace=False))
    found, first, seen = [np.zeros(0, np.int64)], 0, 0
    for block in valid():
        rows = np.flatnonzero(block)
        low, high = np.searchsorted(chosen, [seen, seen + rows.size])
        found.append(first + rows[chosen[low:high] - seen])
        first, seen = first + len(block), seen + rows.size
    return np.concatenate(found)


def explain(scoring: Scoring, background: NDArray[np.int64], rows: NDArray[np.int64]) -> Explanation:
    """Take the scores of some rows apart and pick the rows whose texts will name the latents.

    Args:
        scoring: what scored the corpus of N rows over F latents.
        background: int64, ascending, rows from whose texts one knows which words are common in the corpus.
        rows: int64 [S] row numbers to explain.
    """
    apart = take_apart(scoring, rows)
    return apart.explained(examples_of(scoring, [apart]), background)


@dataclass(frozen=True)
class Apart:
    """The scores of some rows, taken apart: an ``Explanation`` whose latents nothing names yet."""

    rows: NDArray[np.int64]
    shares: list[list[Share]]
    said: list[list[tuple[str, float]]]
    parts: list[dict[str, float]]
    means: dict[int, float]

    def explained(
        self, examples: Mapping[int, NDArray[np.int64]], background: NDArray[np.int64]
    ) -> Explanation:
        """Return the explanation, with the rows whose texts will name the latents.

        Args:
            examples: of ``examples_of``.
            background: as for ``explain``.
        """
        own = {latent: examples[latent] for latent in self.means}
        if not len(self.rows):
            background = np.zeros(0, np.int64)
        return Explanation(self.rows, self.shares, self.said, self.parts, self.means, own, background)


def examples_of(scoring: Scoring, several: Sequence[Apart]) -> dict[int, NDArray[np.int64]]:
    """Return by latent the corpus rows in whose code it has the largest share, in one pass for all of them.

    Args:
        scoring: what scored the corpus; of several target sets any.
        several: whose latents are to be named.
    """
    latents = sorted({latent for apart in several for latent in apart.means})
    return latent_examples(scoring.space.corpus, latents, EXAMPLES_PER_LATENT)


def take_apart(scoring: Scoring, rows: NDArray[np.int64]) -> Apart:
    """Take the scores of some rows apart; of the codes only theirs are read.

    Args:
        scoring, rows: as for ``explain``.
    """
    if len(rows) == 0:
        return Apart(rows, [], [], [], {})
    found = scoring.contributions(rows)
    parts = found.latents
    shares = strongest(parts, LATENTS_PER_ROW)
    said: list[list[tuple[str, float]]] = [[] for _ in rows]
    if "words" in found.parts:
        vocabulary = scoring.spaces.words.vocabulary
        for row, words in enumerate(strongest(found.parts["words"], WORDS_PER_ROW)):
            said[row] = [(vocabulary[word.latent], word.value) for word in words]
    latents = sorted({share.latent for found in shares for share in found})
    sums = np.bincount(parts.indices, weights=parts.data, minlength=parts.shape[1])
    means = {latent: float(sums[latent]) / len(rows) for latent in latents}
    return Apart(rows, shares, said, _by_space(found), means)


def _by_space(found: Contributions) -> list[dict[str, float]]:
    sums = {space: np.asarray(part.sum(axis=1)).ravel() for space, part in found.parts.items()}
    sums[CONSTANT] = found.constant
    return [{name: float(of_row[at]) for name, of_row in sums.items()} for at in range(len(found.constant))]


def remainder(total: float, parts: Iterable[float]) -> float:
    """Return what stands beside parts of a total so that the numbers, as they are shown, add up to it.

    It differs from the sum of what isn't among the parts by the rounding of what is.
    """
    return round(total, DIGITS) - sum(round(part, DIGITS) for part in parts)


def adding_up(parts: Sequence[float]) -> list[float]:
    """Return parts rounded for showing, so that their sum is the rounded sum.

    Those that lose most by rounding down are rounded up instead (largest remainders).
    """
    if not all(map(math.isfinite, parts)):
        return list(parts)
    scaled = [part * 10**DIGITS for part in parts]
    down = [math.floor(value) for value in scaled]
    order = sorted(range(len(parts)), key=lambda at: down[at] - scaled[at])
    for at in order[: round(math.fsum(scaled)) - sum(down)]:
        down[at] += 1
    return [value / 10**DIGITS for value in down]


def strongest(contributions: Any, count: int = 6) -> list[list[Share]]:
    """Return for every row the latents with the largest absolute addends, largest first.

    Args:
        contributions: scipy CSR [S,F] of addends.
        count: latents per row.
    """
    result: list[list[Share]] = []
    for row in range(contributions.shape[0]):
        low, high = contributions.indptr[row], contributions.indptr[row + 1]
        values, latents = contributions.data[low:high], contributions.indices[low:high]
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        result.append([Share(int(latents[at]), float(values[at])) for at in order if values[at] != 0.0])
    return result

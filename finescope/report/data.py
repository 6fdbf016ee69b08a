"""What a report is made of: gathered once from a run's files, read by the figures and by the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finescope.codes import SparseCodes
    from finescope.curation.blocks import Codes
    from finescope.report.histogram import ScoreHistogram


@dataclass(frozen=True)
class About:
    """What is said about the run as a whole.

    Attributes:
        title, subtitle: head of the page.
        asked: what was asked for: name and value.
        warnings: what the reader must know before anything else.
        method: name of the run's own method in the table of methods.
        seconds: how long the run took; None where it isn't known.
        settings: the full configuration, plain values.
    """

    title: str
    subtitle: str = ""
    asked: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    method: str = ""
    seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        metrics: as ``metrics.json`` has them.
        training: records of the SAE's training log.
        averaged: several target domains and the methods averaged over them.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    training: Sequence[Mapping[str, Any]] = ()
    averaged: tuple[Sequence[str], Sequence[Mapping[str, Any]]] | None = None


@dataclass(frozen=True)
class Passage:
    """The beginning of a text.

    Attributes:
        id: of the row that it is from.
        text: as much of it as is kept.
        length: characters of the whole text.
    """

    id: str
    text: str
    length: int

    def cut(self, characters: int) -> Passage:
        """Return the same with no more than so many characters of the text."""
        return self if len(self.text) <= characters else replace(self, text=self.text[:characters])


@dataclass(frozen=True)
class Share:
    """A latent's part in one row's score; those of all latents, and words, sum to the score exactly."""

    latent: int
    value: float


@dataclass(frozen=True)
class ShownRow:
    """One selected row as the page shows it.

    Attributes:
        rank: from 1.
        passage: its id and text.
        score: its score.
        nearest: the target with the largest cosine; None for a row without one.
        similarity: that cosine.
        shares: the latents with the largest parts in the score, largest first.
        label: None without labels.
        on_target: whether the label is one of the target domain's; None without labels.
        words: the words with the largest parts and those parts, where the scorer looks at words.
        parts: by space, what all of it adds to the score, and what none accounts for.
    """

    rank: int
    passage: Passage
    score: float
    nearest: Passage | None = None
    similarity: float = float("nan")
    shares: Sequence[Share] = ()
    label: str | None = None
    on_target: bool | None = None
    words: Sequence[tuple[str, float]] = ()
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Latent:
    """A latent that is among the strongest of some shown row.

    Attributes:
        number: its number.
        words: words that are typical for its strongest rows.
        mean: its part in the scores of all shown rows, on average.
        ranks: shown rows among whose strongest latents it is.
        examples: the corpus rows in whose code it has the largest share, best first.
    """

    number: int
    words: str
    mean: float
    ranks: Sequence[int]
    examples: Sequence[Passage]


@dataclass(frozen=True)
class RunData:
    """A finished run as the report sees it. N corpus rows, Q targets, R selected rows, F latents.

    Attributes:
        about: what is said about it.
        measured: what was measured.
        count: N.
        scores: how many of the rows that are no targets have which score.
        ids: by row number, ids of the best of the selected rows at least.
        target_ids: Q ids.
        selected: int64 [R], best first.
        corpus: codes of the N rows; figures take from them the rows that they show.
        targets: codes of the Q targets.
        weights: float64 [F] of the space that scores are taken in; None for none.
        rows: the selected rows that are shown, best first.
        latents: what the shown rows' shares refer to, by number.
    """

    about: About
    measured: Measured
    count: int
    scores: ScoreHistogram
    ids: Mapping[int, str]
    target_ids: Sequence[str]
    selected: NDArray[np.int64]
    corpus: Codes
    targets: SparseCodes
    weights: NDArray[np.float64] | None = None
    rows: Sequence[ShownRow] = ()
    latents: Mapping[int, Latent] = field(default_factory=dict)

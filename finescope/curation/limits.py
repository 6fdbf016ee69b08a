"""The limits of a selection, and what they say of rows by themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from finescope.curation.blocks import BoolArray, IntArray
from finescope.curation.scoring.table import ScoreTable
from finescope.curation.shares import is_share, named_twice, split, written_shares
from finescope.errors import InputError
from finescope.fields import Allowed, Configuration, Cosine, Count, Metavar, Seed, Share, Size, Text, one_of

Quotas = list[Annotated[Text, Allowed(is_share, written_shares("LABEL")), Metavar("LABEL=X")]]

STRATEGIES = ("rank", "per_target", "round_robin", "coverage", "clusters")
"""How rows queue up before the limits are applied."""

REASONS = (
    "selected",
    "beyond_limit",  # ranked too low for k, fraction or the token budget
    "target",  # is one of the targets
    "invalid",  # no latents (empty text) or a non-finite value
    "below_score",
    "below_similarity",
    "near_duplicate",
    "not_diverse",
    "over_budget",  # alone longer than the whole token budget
    "other_set",  # belongs to another target set
    "no_quota",  # has a label without a share
)
"""What became of each row; ``Selection.reason`` holds positions in this tuple."""
CODE = {name: code for code, name in enumerate(REASONS)}


@dataclass
class SelectionConfig(Configuration):
    """Limits of a selection. Whatever is None does not limit; all limits hold at once.

    Raises:
        InputError: a value of a wrong type or out of range; all of them are named.
    """

    k: Count | None = None
    """Rows to select, at most."""
    fraction: Share | None = None
    """Share of all N rows to select, at most, rounded up."""
    min_score: float | None = None
    """Leave out rows with a lower score."""
    min_similarity: Cosine | None = None
    """Leave out rows whose cosine to the nearest target is lower."""
    token_budget: Count | None = None
    """Tokens to select, at most.

    Rows are taken in order until the next one does not fit, so a larger budget always selects a superset;
    skipping ahead to shorter rows would favour short texts.
    """
    strategy: Annotated[str, one_of(STRATEGIES)] = "rank"
    """Order in which rows are taken.

    ``rank``: by score. ``per_target``: first the union of each target's ``per_target`` nearest rows, then the
    others. ``round_robin``: the targets take turns, each with its nearest row that none has taken, and when
    their lists end come the others, by score. ``coverage``: each time the row that adds most to what is held
    of the targets' latents, the n-th out of the 10n best by score (1000 at least); what other limits then
    leave out is replaced by score. ``clusters``: first the rows from each target's best k-means clusters (the
    supplement's variant), then the others. In ``per_target`` and ``clusters`` the order inside both groups is
    that of the scores, so ``k`` trims or fills the union to its exact size.
    """
    per_target: Size | None = None
    """Rows per target, for per_target, round_robin and clusters.

    For ``clusters`` rows per target and cluster. None takes k, or max(1, k // num_clusters) for clusters, as
    the supplement does.
    """
    num_clusters: Size = 5
    """k-means clusters, for clusters."""
    clusters_per_target: Size = 2
    """Clusters that each target looks into, for clusters."""
    near_duplicate: Cosine | None = None
    """Leave out rows with at least this cosine to a better row, as copies (try 0.98)."""
    diversity: Cosine | None = None
    """Leave out rows with at least this cosine to a better row, for variety (try 0.8)."""
    quotas: Quotas = field(default_factory=list)
    """Share of k or the token budget for rows with a label of the label column.

    Rows with a label that has no share are left out. Each label is selected by itself, so near_duplicate and
    diversity compare rows of one label, and what a label can't fill no other gets.
    """
    seed: Seed = 42
    """Seed of the clustering."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterable[str]:
        """Return what is wrong with values that are right each for itself. Fields may be absent."""
        twice = named_twice(values.get("quotas", []))
        if twice is not None:
            yield f"quotas give two shares to the label {twice!r}"

    @property
    def look_at_codes(self) -> bool:
        """Whether codes are needed beside the scores."""
        return self.strategy != "rank" or self.look_at_others

    @property
    def look_at_others(self) -> bool:
        """Whether a row may be left out because it is near to one that was taken."""
        return self.near_duplicate is not None or self.diversity is not None

    def plain(self) -> dict[str, Any]:
        """Return the limits as a dictionary."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "quotas" or value}


def shared(limits: SelectionConfig, shares: Mapping[str, float], rows: int) -> dict[str, SelectionConfig]:
    """Return the limits of every name that has a share of the rows or tokens; a fraction is of ``rows``.

    Raises:
        InputError: there is no whole to be shared.
    """
    if limits.k is None and limits.token_budget is None and limits.fraction is None:
        raise InputError("shares are of a whole: say how many rows (k, fraction) or tokens (token_budget)")
    count = None if limits.k is None and limits.fraction is None else limit_of(limits, rows)
    parts = {
        name: split(whole, shares)
        for name, whole in (("k", count), ("token_budget", limits.token_budget))
        if whole is not None
    }
    found = {}
    for name in shares:
        found[name] = dataclasses.replace(limits, fraction=None)
        for limit, part in parts.items():
            setattr(found[name], limit, part[name])
    return found


def limit_of(cfg: SelectionConfig, n: int) -> int:
    limit = n if cfg.k is None else min(n, cfg.k)
    if cfg.fraction is None:
        return limit
    # Of the decimal number that was written: in binary 0.07 · 100 is a little more than 7.
    return min(limit, math.ceil(Fraction(str(float(cfg.fraction))) * n))


@dataclass(frozen=True)
class RowBlock:
    """Rows that stand one after the other, with what limits look at.

    Attributes:
        first: number of the first among all N.
        scores: of the n rows.
        tokens: int64 [n], token counts; None where nobody knows them.
        exclude: bool [n], rows never selected because they are targets; None for none.
    """

    first: int
    scores: ScoreTable
    tokens: IntArray | None = None
    exclude: BoolArray | None = None

    def split(self, rows: int) -> Iterator[RowBlock]:
        """Yield the same rows, so many at a time."""
        for low in range(0, len(self.scores), rows):
            part = slice(low, low + rows)
            yield RowBlock(
                self.first + low,
                self.scores[part],
                None if self.tokens is None else self.tokens[part],
                None if self.exclude is None else self.exclude[part],
            )


def judged(block: RowBlock, cfg: SelectionConfig) -> NDArray[np.uint8]:
    """Return what becomes of rows whatever the others are, uint8 [n]: the first limit that leaves them out.

    It is "beyond_limit" of those that may be selected.
    """
    reason = np.full(len(block.scores), CODE["beyond_limit"], np.uint8)
    allowed = np.ones(len(block.scores), np.bool_)

    def leave_out(rows: BoolArray, name: str) -> None:
        reason[allowed & rows] = CODE[name]
        allowed[rows] = False

    if block.exclude is not None:
        leave_out(block.exclude, "target")
    leave_out(~block.scores.valid | np.isnan(block.scores.score), "invalid")
    if cfg.min_score is not None:
        leave_out(block.scores.score < cfg.min_score, "below_score")
    if cfg.min_similarity is not None:
        leave_out(block.scores.nearest_similarity < cfg.min_similarity, "below_similarity")
    if cfg.token_budget is not None and block.tokens is not None:
        leave_out(block.tokens > cfg.token_budget, "over_budget")
    return reason

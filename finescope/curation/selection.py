"""Selecting rows from scores. Scoring is done once; selecting again with other limits costs seconds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from finescope.codes import SparseCodes
from finescope.curation.blocks import BoolArray, Codes, FloatArray, IntArray, rows_of
from finescope.curation.clusters import cluster_candidates, kmeans_labels
from finescope.curation.coverage import covering
from finescope.curation.redundancy import greedy_filter
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.table import ScoreTable, rank_rows
from finescope.curation.shares import parse_shares, split
from finescope.errors import InputError
from finescope.fields import Configuration, Cosine, Count, Metavar, Seed, Share, Size, Text, one_of

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
_CODE = {name: code for code, name in enumerate(REASONS)}


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
    quotas: list[Annotated[Text, Metavar("LABEL=X")]] = field(default_factory=list)
    """Share of k or the token budget for rows with a label of the label column.

    Rows with a label that has no share are left out. Each label is selected by itself, so near_duplicate and
    diversity compare rows of one label, and what a label can't fill no other gets.
    """
    seed: Seed = 42
    """Seed of the clustering."""

    @property
    def look_at_codes(self) -> bool:
        """Whether codes are needed beside the scores."""
        return self.strategy != "rank" or self.near_duplicate is not None or self.diversity is not None


@dataclass
class Selection:
    """Selected rows and what became of the others.

    Attributes:
        indices: int64 [R], selected rows, best first.
        reason: uint8 [N], position in ``REASONS`` for every row.
        resembles: for rows left out as near-duplicate or not diverse, the selected row they resemble.
        tokens: tokens of the selected rows, when token counts were given.
        config: the limits as a dictionary.
        unfilled: which labels had too few rows for their quotas, in words.
    """

    indices: IntArray
    reason: NDArray[np.uint8]
    resembles: dict[int, int] = field(default_factory=dict)
    tokens: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    unfilled: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.indices.size)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are for each reason; every reason is listed."""
        found = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(found[code]) for name, code in _CODE.items()}


def select(
    scores: ScoreTable,
    cfg: SelectionConfig,
    *,
    corpus: Codes | None = None,
    targets: SparseCodes | None = None,
    weights: Any = None,
    tokens: Any = None,
    exclude: Any = None,
    scorer: CorpusScorer | None = None,
    labels: Sequence[str] | None = None,
) -> Selection:
    """Select rows by their scores, within the limits of ``cfg``.

    Ties are settled by the lower row number everywhere, so a selection never depends on the machine, and the
    first rows of a larger one are the smaller one (unless clusters or per-target lists change with k).

    Args:
        scores: scores of the N rows.
        cfg: the limits.
        corpus: codes of the N rows; needed by ``near_duplicate``, ``diversity`` and every strategy but
            ``rank``.
        targets: codes of the targets; needed by every strategy but ``rank``.
        weights: weighting of the space in which they compare (see ``score_corpus``).
        tokens: integers [N], token counts; needed by ``token_budget``.
        exclude: bool [N], rows never selected because they are targets (see ``is_target``).
        scorer: the prepared corpus, when there is one already; ``corpus`` and ``weights`` are then taken from
            it.
        labels: N labels, "" for none; needed by ``quotas``.

    Raises:
        ValueError: an array of the wrong length, or a missing argument that ``cfg`` needs.
        InputError: fewer codes than scores, or the other way round.
    """
    n = len(scores)
    if cfg.quotas:
        more = {"corpus": corpus, "targets": targets, "weights": weights, "tokens": tokens, "scorer": scorer}
        return _by_label(scores, cfg, labels, exclude=exclude, **more)
    if scorer is not None:
        corpus = scorer.corpus if corpus is None else corpus
    lengths = _per_row(tokens, n, "tokens", np.int64)
    if cfg.token_budget is not None and lengths is None:
        raise ValueError("token_budget needs the token counts of the rows (tokens)")
    reason = np.full(n, _CODE["beyond_limit"], np.uint8)
    allowed = _allowed(scores, cfg, reason, lengths, _per_row(exclude, n, "exclude", np.bool_))
    limit = _limit(cfg, n)
    walk = (
        _walk(cfg, _order(scores, cfg, allowed, corpus, targets, weights, scorer), corpus, n)
        if cfg.look_at_codes
        else _best_first(scores.score, allowed, limit)
    )
    budget = math.inf if cfg.token_budget is None else cfg.token_budget
    selected: list[int] = []
    resembles: dict[int, int] = {}
    spent = 0
    for row, other, cosine in walk:
        if len(selected) >= limit:
            break
        if other >= 0:
            copy = cfg.near_duplicate is not None and cosine >= cfg.near_duplicate
            reason[row] = _CODE["near_duplicate" if copy else "not_diverse"]
            resembles[row] = other
            continue
        length = 0 if lengths is None else int(lengths[row])
        if spent + length > budget:
            break
        spent += length
        selected.append(row)
        reason[row] = _CODE["selected"]
    return Selection(
        np.asarray(selected, dtype=np.int64),
        reason,
        resembles,
        None if lengths is None else spent,
        _plain(cfg),
    )


def _plain(cfg: SelectionConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(cfg).items() if name != "quotas" or value}


def _by_label(
    scores: ScoreTable, cfg: SelectionConfig, labels: Sequence[str] | None, *, exclude: Any, **more: Any
) -> Selection:
    """Select rows of every label that has a share, the best by score first."""
    n = len(scores)
    if labels is None or len(labels) != n:
        raise ValueError(f"quotas need the labels of the {n} rows (labels)")
    names = np.asarray(labels, dtype=object)
    shares = parse_shares(cfg.quotas)
    left_out = np.zeros(n, np.bool_) if exclude is None else _per_row(exclude, n, "exclude", np.bool_)
    found = Selection(np.zeros(0, np.int64), np.full(n, _CODE["no_quota"], np.uint8), config=_plain(cfg))
    found.reason[~scores.valid] = _CODE["invalid"]
    found.reason[left_out] = _CODE["target"]
    spent = []
    for name, part in shared(dataclasses.replace(cfg, quotas=[]), shares, n).items():
        own = names == name
        of_label = select(scores, part, exclude=left_out | ~own, **more)
        seen = own & ~left_out
        found.reason[seen] = of_label.reason[seen]
        found.indices = np.concatenate([found.indices, of_label.indices])
        found.resembles |= of_label.resembles
        if not (of_label.reason[seen] == _CODE["beyond_limit"]).any():
            found.unfilled += _unfilled(name, of_label, part)
        spent.append(of_label.tokens)
    found.indices = found.indices[np.lexsort((found.indices, -scores.score[found.indices]))]
    found.tokens = None if None in spent else sum(filter(None, spent))
    return found


def _unfilled(label: str, found: Selection, wanted: SelectionConfig) -> list[str]:
    """Say how much of its quota a label without any more rows fills, unless it fills it."""
    if wanted.k is not None and len(found) < wanted.k:
        return [f"label {label!r} has no more rows: {len(found):,} of its {wanted.k:,}"]
    if wanted.k is None and wanted.token_budget and (found.tokens or 0) < wanted.token_budget:
        return [f"label {label!r} has no more rows: {found.tokens:,} of its {wanted.token_budget:,} tokens"]
    return []


def shared(limits: SelectionConfig, shares: Mapping[str, float], rows: int) -> dict[str, SelectionConfig]:
    """Return the limits of every name that has a share of the rows or tokens; a fraction is of ``rows``.

    Raises:
        InputError: there is no whole to be shared.
    """
    if limits.k is None and limits.token_budget is None and limits.fraction is None:
        raise InputError("shares are of a whole: say how many rows (k, fraction) or tokens (token_budget)")
    count = None if limits.k is None and limits.fraction is None else _limit(limits, rows)
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


def _limit(cfg: SelectionConfig, n: int) -> int:
    limit = n if cfg.k is None else min(n, cfg.k)
    if cfg.fraction is None:
        return limit
    # Of the decimal number that was written: in binary 0.07 · 100 is a little more than 7.
    return min(limit, math.ceil(Fraction(str(float(cfg.fraction))) * n))


def _per_row(values: Any, n: int, name: str, dtype: Any) -> Any:
    if values is None:
        return None
    array = np.asarray(values, dtype=dtype)
    if array.shape != (n,):
        raise ValueError(
            f"{name} must have one entry for each of the {n} rows, got shape {list(array.shape)}"
        )
    return array


def _allowed(
    scores: ScoreTable,
    cfg: SelectionConfig,
    reason: NDArray[np.uint8],
    lengths: IntArray | None,
    exclude: BoolArray | None,
) -> BoolArray:
    """Rows that may be selected; the reason of the others is noted, the first that applies."""
    allowed = np.ones(len(scores), np.bool_)

    def leave_out(rows: Any, name: str) -> None:
        reason[allowed & rows] = _CODE[name]
        allowed[rows] = False

    if exclude is not None:
        leave_out(exclude, "target")
    leave_out(~scores.valid | np.isnan(scores.score), "invalid")
    if cfg.min_score is not None:
        leave_out(scores.score < cfg.min_score, "below_score")
    if cfg.min_similarity is not None:
        leave_out(scores.nearest_similarity < cfg.min_similarity, "below_similarity")
    if cfg.token_budget is not None and lengths is not None:
        leave_out(lengths > cfg.token_budget, "over_budget")
    return allowed


def _order(
    scores: ScoreTable,
    cfg: SelectionConfig,
    allowed: BoolArray,
    corpus: Codes | None,
    targets: SparseCodes | None,
    weights: Any,
    scorer: CorpusScorer | None,
) -> IntArray:
    """The allowed rows in the order in which they are taken."""
    ranking = rank_rows(scores.score, allowed)
    if cfg.strategy == "rank":
        return ranking
    if scorer is None and corpus is not None:
        scorer = CorpusScorer(corpus, weights=weights)
    if targets is None or scorer is None:
        raise ValueError(f"strategy {cfg.strategy!r} needs the codes of corpus and targets")
    if len(scorer) != len(scores):
        raise InputError(
            f"there are scores of {len(scores)} rows but codes of {len(scorer)}; score the corpus again"
        )
    k = len(scores) if cfg.k is None else cfg.k
    if cfg.strategy == "round_robin":
        most = max(1, min(cfg.per_target or _limit(cfg, len(scores)), len(scores)))
        first = _in_turns(scorer.nearest_rows(targets, most, mask=allowed)[0])
        return _followed(first, ranking)
    if cfg.strategy == "coverage":
        limit = _limit(cfg, len(scores))
        return _followed(covering(scorer, scorer.targets(targets), ranking, limit), ranking)
    if cfg.strategy == "per_target":
        ids, _ = scorer.nearest_rows(targets, max(1, min(cfg.per_target or k, len(scores))), mask=allowed)
        first = ids[ids >= 0]
    else:
        labels = kmeans_labels(scorer.corpus, cfg.num_clusters, seed=cfg.seed, weights=scorer.weights)
        quota = cfg.per_target or max(1, min(k, len(scores)) // cfg.num_clusters)
        first = cluster_candidates(
            scorer, targets, labels, quota, clusters_per_target=cfg.clusters_per_target, mask=allowed
        )
    preferred = np.zeros(len(scores), np.bool_)
    preferred[first] = True
    return np.concatenate([ranking[preferred[ranking]], ranking[~preferred[ranking]]])


def _followed(first: IntArray, ranking: IntArray) -> IntArray:
    """Return some rows, and behind them the others of a ranking in its order."""
    others = ranking[~np.isin(ranking, first)]
    return np.concatenate([first, others])


def _in_turns(lists: IntArray) -> IntArray:
    """Return the rows that targets take in turns, each the next of its list that none has taken, int64.

    Args:
        lists: int64 [T,k], each target's rows, best first; -1 where there are no more.
    """
    taken: dict[int, None] = {}
    places = [iter(rows[rows >= 0].tolist()) for rows in lists]
    while places:
        left = []
        for rows in places:
            row = next((row for row in rows if row not in taken), None)
            if row is not None:
                taken[row] = None
                left.append(rows)
        places = left
    return np.array(list(taken), np.int64)


def _best_first(score: FloatArray, allowed: BoolArray, likely: int) -> Iterator[tuple[int, int, float]]:
    """Yield as ``_walk`` the allowed rows by score, of which so many are likely to be asked for."""
    rows = np.flatnonzero(allowed)
    at = rows.size - likely - 1
    if at > rows.size // 2:  # sorting all takes ten times as long as finding the best
        edge = np.partition(score[rows], at)[at]
        best = score[rows] >= edge
        yield from ((row, -1, 0.0) for row in rows[best][rank_rows(score[rows[best]])].tolist())
        rows = rows[~best]
    yield from ((row, -1, 0.0) for row in rows[rank_rows(score[rows])].tolist())


def _walk(cfg: SelectionConfig, order: IntArray, corpus: Codes | None, n: int) -> Any:
    """Yield (row, resembled row or -1, cosine) in order."""
    limits = [limit for limit in (cfg.near_duplicate, cfg.diversity) if limit is not None]
    if not limits:
        return ((row, -1, 0.0) for row in order.tolist())
    if corpus is None:
        raise ValueError("near_duplicate and diversity need the codes of the corpus")
    rows = rows_of(corpus)
    if rows != n:
        raise InputError(f"there are scores of {n} rows but codes of {rows}; score the corpus again")
    return greedy_filter(corpus, order, min(limits))

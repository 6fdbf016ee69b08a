"""Selecting rows from scores. Scoring is done once; selecting again with other limits costs seconds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from finescope.codes import SparseCodes
from finescope.curation.blocks import BoolArray, Codes, IntArray, rows_of
from finescope.curation.clusters import cluster_candidates, kmeans_labels
from finescope.curation.coverage import covering
from finescope.curation.limits import CODE, RowBlock, SelectionConfig, judged, limit_of, shared
from finescope.curation.lists import among_nearest, in_turns
from finescope.curation.quotas import select_by_score, unfilled
from finescope.curation.redundancy import greedy_filter
from finescope.curation.scoring.onepass import CorpusScorer
from finescope.curation.scoring.table import ScoreTable, rank_rows
from finescope.curation.selected import Selection
from finescope.curation.shares import parse_shares
from finescope.errors import InputError
from finescope.storage.coded import CodedStrings

_BLOCK = 1 << 20
"""Rows looked at together."""


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
    if cfg.quotas and cfg.look_at_codes:
        more = {"corpus": corpus, "targets": targets, "weights": weights, "tokens": tokens, "scorer": scorer}
        return _by_label(scores, cfg, labels, exclude=exclude, **more)
    if scorer is not None:
        corpus = scorer.corpus if corpus is None else corpus
    lengths = _per_row(tokens, n, "tokens", np.int64)
    if cfg.token_budget is not None and lengths is None:
        raise ValueError("token_budget needs the token counts of the rows (tokens)")
    rows = RowBlock(0, scores, lengths, _per_row(exclude, n, "exclude", np.bool_))
    if not cfg.look_at_codes:
        found = select_by_score(n, partial(rows.split, _BLOCK), cfg, labels)
        found.reason = np.asarray(found.reason)
        return found
    reason = judged(rows, cfg)
    allowed = reason == CODE["beyond_limit"]
    order = _order(scores, cfg, allowed, _about(cfg, lengths, allowed), corpus, targets, weights, scorer)
    walk = _walk(cfg, order, corpus, n)
    limit = limit_of(cfg, n)
    budget = math.inf if cfg.token_budget is None else cfg.token_budget
    selected: list[int] = []
    resembles: dict[int, int] = {}
    spent = 0
    for row, other, cosine in walk:
        if len(selected) >= limit:
            break
        if other >= 0:
            copy = cfg.near_duplicate is not None and cosine >= cfg.near_duplicate
            reason[row] = CODE["near_duplicate" if copy else "not_diverse"]
            resembles[row] = other
            continue
        length = 0 if lengths is None else int(lengths[row])
        if spent + length > budget:
            break
        spent += length
        selected.append(row)
        reason[row] = CODE["selected"]
    return Selection(
        np.asarray(selected, dtype=np.int64),
        reason,
        resembles,
        None if lengths is None else spent,
        cfg.plain(),
    )


def _by_label(
    scores: ScoreTable, cfg: SelectionConfig, labels: Sequence[str] | None, *, exclude: Any, **more: Any
) -> Selection:
    """Select rows of every label that has a share, the best by score first."""
    n = len(scores)
    if labels is None or len(labels) != n:
        raise ValueError(f"quotas need the labels of the {n} rows (labels)")
    names = CodedStrings.of(labels)
    shares = parse_shares(cfg.quotas)
    left_out = np.zeros(n, np.bool_) if exclude is None else _per_row(exclude, n, "exclude", np.bool_)
    reason = np.full(n, CODE["no_quota"], np.uint8)
    reason[~scores.valid] = CODE["invalid"]
    reason[left_out] = CODE["target"]
    found = Selection(np.zeros(0, np.int64), reason, config=cfg.plain())
    spent = []
    for name, part in shared(dataclasses.replace(cfg, quotas=[]), shares, n).items():
        own = names.are([name])
        of_label = select(scores, part, exclude=left_out | ~own, **more)
        seen = own & ~left_out
        reason[seen] = np.asarray(of_label.reason)[seen]
        found.indices = np.concatenate([found.indices, of_label.indices])
        found.resembles |= of_label.resembles
        if not (reason[seen] == CODE["beyond_limit"]).any():
            found.unfilled += unfilled(name, of_label, part)
        spent.append(of_label.tokens)
    found.indices = found.indices[np.lexsort((found.indices, -scores.score[found.indices]))]
    found.tokens = None if None in spent else sum(filter(None, spent))
    return found


def _per_row(values: Any, n: int, name: str, dtype: Any) -> Any:
    if values is None:
        return None
    array = np.asarray(values, dtype=dtype)
    if array.shape != (n,):
        raise ValueError(
            f"{name} must have one entry for each of the {n} rows, got shape {list(array.shape)}"
        )
    return array


def _about(cfg: SelectionConfig, lengths: IntArray | None, allowed: BoolArray) -> int:
    """Return how many of the allowed rows fit into the limits, at most."""
    most = min(limit_of(cfg, allowed.size), int(np.count_nonzero(allowed)))
    if cfg.token_budget is None or lengths is None:
        return most
    spent = np.cumsum(np.sort(lengths[allowed]))
    return min(most, int(np.searchsorted(spent, cfg.token_budget, side="right")))


def _order(
    scores: ScoreTable,
    cfg: SelectionConfig,
    allowed: BoolArray,
    about: int,
    corpus: Codes | None,
    targets: SparseCodes | None,
    weights: Any,
    scorer: CorpusScorer | None,
) -> Iterable[int]:
    """The allowed rows in the order in which they are taken, of which ``about`` so many will be."""
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
        most = cfg.per_target
        if most is None and cfg.look_at_others and limit_of(cfg, len(scores)) < len(scores):
            most = max(1, limit_of(cfg, len(scores)))
        return _followed(in_turns(scorer, targets, allowed, about=about, most=most), ranking)
    if cfg.strategy == "coverage":
        limit = limit_of(cfg, len(scores))
        return _followed(covering(scorer, scorer.targets(targets), ranking, limit).tolist(), ranking)
    if cfg.strategy == "per_target":
        most = max(1, min(cfg.per_target or k, len(scores)))
        preferred = among_nearest(scorer, targets, most, allowed)
    else:
        labels = kmeans_labels(scorer.corpus, cfg.num_clusters, seed=cfg.seed, weights=scorer.weights)
        quota = cfg.per_target or max(1, min(k, len(scores)) // cfg.num_clusters)
        preferred = np.zeros(len(scores), np.bool_)
        preferred[
            cluster_candidates(
                scorer, targets, labels, quota, clusters_per_target=cfg.clusters_per_target, mask=allowed
            )
        ] = True
    return np.concatenate([ranking[preferred[ranking]], ranking[~preferred[ranking]]])


def _followed(first: Iterable[int], ranking: IntArray) -> Iterator[int]:
    """Yield some rows, and behind them the others of a ranking in its order."""
    seen = set()
    for row in first:
        seen.add(row)
        yield row
    yield from (row for row in ranking.tolist() if row not in seen)


def _walk(cfg: SelectionConfig, order: Iterable[int], corpus: Codes | None, n: int) -> Any:
    """Yield (row, resembled row or -1, cosine) in order."""
    limits = [limit for limit in (cfg.near_duplicate, cfg.diversity) if limit is not None]
    if not limits:
        return ((int(row), -1, 0.0) for row in order)
    if corpus is None:
        raise ValueError("near_duplicate and diversity need the codes of the corpus")
    rows = rows_of(corpus)
    if rows != n:
        raise InputError(f"there are scores of {n} rows but codes of {rows}; score the corpus again")
    return greedy_filter(corpus, order, min(limits))

"""The best rows by score alone, a block of rows at a time: of all, or of every label that has a share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from finescope.curation.best import select_best
from finescope.curation.blocks import BoolArray
from finescope.curation.limits import CODE, REASONS, RowBlock, SelectionConfig, shared
from finescope.curation.selected import Reasons, Selection
from finescope.curation.shares import parse_shares
from finescope.storage.coded import CodedStrings, picked

_Blocks = Callable[[], Iterable[RowBlock]]


def select_by_score(
    rows: int, blocks: _Blocks, cfg: SelectionConfig, labels: Sequence[str] | None = None
) -> Selection:
    """Select rows within limits that don't look at codes, of all or by label; see ``select_best``.

    Args:
        rows: N.
        blocks: gives the N rows in order, as often as it is called.
        cfg: the limits.
        labels: N labels, "" for none; needed by ``quotas``.

    Raises:
        InputError, ValueError: as ``select_quotas``.
    """
    if cfg.quotas:
        return select_quotas(rows, blocks, cfg, () if labels is None else labels)
    return select_best(rows, blocks, cfg)


def select_quotas(rows: int, blocks: _Blocks, cfg: SelectionConfig, labels: Sequence[str]) -> Selection:
    """Select rows by label, within limits that don't look at codes, as ``select`` does with all rows at hand.

    Args:
        rows: N.
        blocks: gives the N rows in order, as often as it is called.
        cfg: the limits.
        labels: N labels, "" for none.

    Raises:
        InputError: there is no whole to be shared.
        ValueError: labels of another number of rows.
    """
    if len(labels) != rows:
        raise ValueError(f"quotas need the labels of the {rows} rows (labels)")
    names = CodedStrings.of(labels)
    parts = shared(dataclasses.replace(cfg, quotas=[]), parse_shares(cfg.quotas), rows)
    of_label = {
        name: select_best(rows, partial(_only, name, names, blocks), part) for name, part in parts.items()
    }
    reason = partial(_reasons, names, blocks, of_label)
    counts = np.zeros(len(REASONS), np.int64)
    for block in reason():
        counts += np.bincount(block, minlength=len(REASONS))
    chosen = np.concatenate([np.zeros(0, np.int64), *(found.indices for found in of_label.values())])
    scores = picked(chosen, ((block.first, block.scores.score) for block in blocks()), np.float64)
    chosen = chosen[np.lexsort((chosen, -scores))]
    spent = [found.tokens for found in of_label.values()]
    selection = Selection(chosen, Reasons(counts, reason), config=cfg.plain())
    selection.tokens = None if None in spent else sum(filter(None, spent))
    for name, found in of_label.items():
        if not found.counts["beyond_limit"]:
            selection.unfilled += unfilled(name, found, parts[name])
    return selection


def unfilled(label: str, found: Selection, wanted: SelectionConfig) -> list[str]:
    """Say how much of its quota a label without any more rows fills, unless it fills it."""
    if wanted.k is not None and len(found) < wanted.k:
        return [f"label {label!r} has no more rows: {len(found):,} of its {wanted.k:,}"]
    if wanted.k is None and wanted.token_budget and (found.tokens or 0) < wanted.token_budget:
        return [f"label {label!r} has no more rows: {found.tokens:,} of its {wanted.token_budget:,} tokens"]
    return []


def _only(name: str, labels: CodedStrings, blocks: _Blocks) -> Iterator[RowBlock]:
    """Yield the blocks with the rows of all other labels excluded."""
    for block in blocks():
        own = labels.are([name], block.first, len(block.scores))
        yield dataclasses.replace(block, exclude=_excluded(block) | ~own)


def _excluded(block: RowBlock) -> BoolArray:
    return np.zeros(len(block.scores), np.bool_) if block.exclude is None else block.exclude


def _reasons(
    labels: CodedStrings, blocks: _Blocks, of_label: dict[str, Selection]
) -> Iterator[NDArray[np.uint8]]:
    """Yield what became of the rows of every block: what their label's selection says of them."""
    said = {name: found.reasons(0) for name, found in of_label.items()}
    for block in blocks():
        reason = np.full(len(block.scores), CODE["no_quota"], np.uint8)
        reason[~block.scores.valid] = CODE["invalid"]
        left_out = _excluded(block)
        reason[left_out] = CODE["target"]
        for name, reasons in said.items():
            seen = labels.are([name], block.first, len(reason)) & ~left_out
            reason[seen] = next(reasons)[seen]
        yield reason

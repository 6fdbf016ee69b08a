"""Several target sets over one corpus: which set a row belongs to, and how many rows each set gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from finescope.curation.blocks import BoolArray, IntArray
from finescope.curation.limits import REASONS, SelectionConfig, shared
from finescope.curation.scoring.table import ScoreTable
from finescope.curation.selected import Selection
from finescope.curation.selection import select
from finescope.curation.shares import unequal_shares
from finescope.errors import InputError


def assign(tables: Mapping[str, ScoreTable]) -> IntArray:
    """Return for every row the set that it belongs to, by position, int64 [N]; -1 where it is not valid.

    Scores of different sets are compared by how far above their own mean they lie: each is brought to mean 0
    and variance 1 over the valid rows, and a row belongs to the set of its largest (the first of equals).

    Args:
        tables: by set, the scores of the same N rows.

    Raises:
        ValueError: no table, or tables of different lengths.
    """
    if len({len(table) for table in tables.values()}) != 1:
        raise ValueError(
            f"need the scores of the same rows for every set, got {[len(table) for table in tables.values()]}"
        )
    valid = np.logical_and.reduce([table.valid for table in tables.values()])
    own = np.where(valid, 0, -1)
    highest: Any = None
    for place, table in enumerate(tables.values()):
        score = _standard(table.score, valid)
        if highest is None:
            highest = score
            continue
        own[valid & (score > highest)] = place
        highest = np.maximum(highest, score)
    return own


def _standard(score: Any, valid: BoolArray) -> Any:
    held = score[valid]
    if held.size == 0:
        return score
    spread = float(held.std())
    return (score - float(held.mean())) / (spread if spread > 0 else 1.0)


def select_sets(
    tables: Mapping[str, ScoreTable],
    limits: SelectionConfig,
    *,
    exclusive: bool = False,
    shares: Mapping[str, float] | None = None,
    tokens: Any = None,
    exclude: Any = None,
    **arguments: Any,
) -> dict[str, Selection]:
    """Select rows for every target set.

    Args:
        tables: by set, the scores of the same N rows.
        limits: of every set; with shares, ``k`` and ``token_budget`` are those of all sets together.
        exclusive: a row goes to no set but its own (``assign``); in the others its reason is "other_set".
        shares: by set, its part of the whole; sets are exclusive then.
        tokens, exclude: as ``select``.
        arguments: further ones of ``select``; by set where they are a dictionary.

    Raises:
        ValueError: as ``select`` and ``assign``.
        InputError: shares of other sets than there are, or without a whole to be shared.
    """
    own = None
    if exclusive or shares is not None:
        own = assign(tables)
    of_set = dict.fromkeys(tables, limits)
    if shares is not None:
        if set(shares) != set(tables):
            raise InputError(unequal_shares(shares, tables))
        rows = len(next(iter(tables.values())))
        of_set = shared(limits, {name: shares[name] for name in tables}, rows)
    found = {}
    for place, (name, table) in enumerate(tables.items()):
        given = {key: value[name] if isinstance(value, dict) else value for key, value in arguments.items()}
        taken = table if own is None else dataclasses.replace(table, valid=table.valid & (own == place))
        found[name] = select(taken, of_set[name], tokens=tokens, exclude=exclude, **given)
        if own is not None:
            reason = found[name].reason = np.array(found[name].reason)
            left_out = (reason == REASONS.index("invalid")) & table.valid & (own >= 0)
            reason[left_out] = REASONS.index("other_set")
    return found

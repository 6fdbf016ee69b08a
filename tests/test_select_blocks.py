"""Rows are selected in one pass over blocks of their scores: where blocks end may decide nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finescope.curation import ScoreTable
from finescope.curation.best import select_best
from finescope.curation.limits import REASONS, RowBlock, SelectionConfig, shared
from finescope.curation.quotas import select_quotas
from finescope.curation.scoring.table import NOBODY
from finescope.curation.selection import select
from finescope.errors import StoreError
from finescope.storage.files import write_bytes
from finescope.workflow import scored as blocks_of
from finescope.workflow.scored import ScoredRows
from finescope.workflow.tables import (
    read_rows,
    read_scores,
    read_selection,
    write_rows,
    write_scores,
    write_selection,
)

N = 61


def made_up(rows: int = N, seed: int = 0, checksums: bool = True) -> ScoredRows:
    """Scores with many ties, some that are no numbers, some rows that are not valid or are targets."""
    rng = np.random.default_rng(seed)
    score = rng.integers(-3, 4, rows) / 4
    score[rng.random(rows) < 0.1] = np.nan
    valid = rng.random(rows) < 0.9
    nearest = np.where(valid, rng.integers(0, 3, rows), -1)
    table = ScoreTable(score, nearest, rng.random(rows), valid, "contrast")
    return ScoredRows(
        table,
        [f"row {row}" for row in range(rows)],
        ["a", "b", "c"],
        rng.integers(0, 9, rows),
        rng.random(rows) < 0.1,
        {"targets": {"same_text": 3}},
        rng.integers(0, 1 << 32, rows, np.uint32) if checksums else None,
    )


def by_hand(scored: ScoredRows, cfg: SelectionConfig) -> tuple[list[int], list[str]]:
    """The definition: rows one after the other, best first, until one doesn't fit."""
    table, reason = scored.table, list[str]()
    for row in range(len(scored)):
        left_out = {
            "target": scored.is_target[row],
            "invalid": not table.valid[row] or math.isnan(table.score[row]),
            "below_score": cfg.min_score is not None and table.score[row] < cfg.min_score,
            "below_similarity": cfg.min_similarity is not None
            and table.nearest_similarity[row] < cfg.min_similarity,
            "over_budget": cfg.token_budget is not None and scored.tokens[row] > cfg.token_budget,
        }
        reason.append(next((name for name, left in left_out.items() if left), "beyond_limit"))
    queue = [row for row in range(len(scored)) if reason[row] == "beyond_limit"]
    limit = len(scored) if cfg.k is None else cfg.k
    if cfg.fraction is not None:
        limit = min(limit, math.ceil(round(cfg.fraction * len(scored), 9)))
    taken, spent = list[int](), 0
    for row in sorted(queue, key=lambda row: (-table.score[row], row)):
        spent += int(scored.tokens[row])
        if len(taken) == limit or (cfg.token_budget is not None and spent > cfg.token_budget):
            break
        taken.append(row)
        reason[row] = "selected"
    return taken, reason


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "k": st.integers(0, N + 3),
        "fraction": st.sampled_from([0.05, 0.5, 1.0]),
        "min_score": st.sampled_from([-0.5, 0.0, 0.25]),
        "min_similarity": st.sampled_from([0.2, 0.7]),
        "token_budget": st.integers(1, 120),
    },
)


@given(limits=LIMITS, size=st.integers(1, N), fewest=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=400, deadline=None)
def test_blocks_and_what_is_let_go_of_change_nothing(
    limits: dict[str, Any], size: int, fewest: int, seed: int
) -> None:
    rows, cfg = made_up(seed=seed), SelectionConfig(**limits)
    whole = RowBlock(0, rows.table, rows.tokens, rows.is_target)
    found = select_best(N, lambda: whole.split(size), cfg, fewest=fewest)
    taken, reason = by_hand(rows, cfg)
    assert found.indices.tolist() == taken
    assert [REASONS[code] for code in np.asarray(found.reason)] == reason
    assert found.counts == {name: reason.count(name) for name in REASONS}
    assert found.tokens == rows.tokens[taken].sum()
    assert len(found.reason) == N


SHARES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "nowhere"]), st.sampled_from(["1", "2.5"])),
    min_size=1,
    unique_by=lambda share: share[0],
)


@given(limits=LIMITS, shares=SHARES, size=st.integers(1, N), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_each_label_is_selected_from_blocks_as_if_it_were_alone(
    limits: dict[str, Any], shares: list[tuple[str, str]], size: int, seed: int
) -> None:
    assume(limits.keys() & {"k", "fraction", "token_budget"})
    rows = made_up(seed=seed)
    names = np.random.default_rng(seed).choice(["a", "b", "c", ""], N)
    cfg = SelectionConfig(quotas=["=".join(share) for share in shares], **limits)
    whole = RowBlock(0, rows.table, rows.tokens, rows.is_target)
    found = select_quotas(N, partial(whole.split, size), cfg, names.tolist())
    expected = np.where(rows.table.valid, "no_quota", "invalid").astype(object)
    expected[rows.is_target] = "target"
    taken = list[int]()
    parts = shared(dataclasses.replace(cfg, quotas=[]), {name: float(share) for name, share in shares}, N)
    for name, part in parts.items():
        own = names == name
        of_label, reason = by_hand(dataclasses.replace(rows, is_target=rows.is_target | ~own), part)
        taken += of_label
        seen = own & ~rows.is_target
        expected[seen] = np.array(reason, object)[seen]
    assert found.indices.tolist() == sorted(taken, key=lambda row: (-rows.table.score[row], row))
    assert [REASONS[code] for code in np.asarray(found.reason)] == expected.tolist()
    assert found.counts == {name: expected.tolist().count(name) for name in REASONS}
    assert found.tokens == rows.tokens[taken].sum()
    arrays = {"tokens": rows.tokens, "exclude": rows.is_target, "labels": names.tolist()}
    at_once = select(rows.table, cfg, **arrays)
    assert (found.indices.tolist(), found.unfilled) == (at_once.indices.tolist(), at_once.unfilled)
    assert np.array_equal(found.reason, at_once.reason)


def test_no_more_rows_are_held_than_were_asked_for() -> None:
    """What is gathered is let go of: of a hundred times as many rows no more are held."""
    held = list[int]()

    def blocks(rows: int) -> Iterator[RowBlock]:
        rng = np.random.default_rng(0)
        for first in range(0, rows, 1000):
            score = rng.random(1000) + first / rows  # later rows are better: nothing is left out at once
            table = ScoreTable(score, np.empty(0, np.int64), score, np.ones(1000, np.bool_), "max")
            yield RowBlock(first, table)

    import tracemalloc

    for rows in (20_000, 2_000_000):
        tracemalloc.start()
        cfg = SelectionConfig(k=500)
        found = select_best(rows, lambda rows=rows: blocks(rows), cfg, fewest=2000)
        assert found.counts["beyond_limit"] == rows - 500
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] < 1.2 * held[0]


@pytest.fixture(params=[1 << 20, 7, 60, 61])
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a block and of a group in a file."""
    for name in ("finescope.workflow.scored.ROWS", "finescope.workflow.tables.ROWS"):
        monkeypatch.setattr(name, request.param)
    assert request.param == blocks_of.ROWS
    return request.param


@pytest.mark.parametrize("checksums", [True, False])
def test_a_table_of_scores_is_the_one_that_is_written_at_once(
    tmp_path: Path, group: int, checksums: bool
) -> None:
    rows, path = made_up(checksums=checksums), tmp_path / "scores.parquet"
    write_scores(path, rows)
    table = pq.read_table(path)
    ids = [None if target < 0 else "abc"[target] for target in rows.table.nearest_target]
    assert table.column("nearest_target").to_pylist() == ids
    assert table.column("index").to_pylist() == list(range(N))
    assert pq.ParquetFile(path).num_row_groups == -(-N // group)
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=group)
    assert (tmp_path / "whole.parquet").read_bytes() == path.read_bytes()
    saved = read_scores(path)
    assert_same(saved, rows)
    write_scores(tmp_path / "again.parquet", saved)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_a_table_and_what_its_rows_share_in_another_file(tmp_path: Path, group: int) -> None:
    rows = made_up()
    write_scores(tmp_path / "set.parquet", rows, rows=False)
    write_rows(tmp_path / "rows.parquet", rows)
    saved = read_scores(tmp_path / "set.parquet", read_rows(tmp_path / "rows.parquet"))
    assert_same(saved, rows)
    others = made_up(N - 1)
    write_rows(tmp_path / "rows.parquet", others)
    with pytest.raises(StoreError, match="has the scores of 61 rows, not of 60"):
        read_scores(tmp_path / "set.parquet", read_rows(tmp_path / "rows.parquet"))


def test_nearest_targets_that_are_not_kept_are_found_when_they_are_asked_for(
    tmp_path: Path, group: int
) -> None:
    rows = made_up()
    bare = dataclasses.replace(rows, table=dataclasses.replace(rows.table, nearest_target=NOBODY[0]))
    write_scores(tmp_path / "set.parquet", bare, rows=False)
    write_rows(tmp_path / "rows.parquet", rows)
    assert pq.read_schema(tmp_path / "set.parquet").names == ["score"]
    shared = read_rows(tmp_path / "rows.parquet")
    assert_same(read_scores(tmp_path / "set.parquet", shared, lambda: rows), rows)  # type: ignore[arg-type, return-value]
    with pytest.raises(StoreError, match="keeps no nearest targets: ask the run"):
        read_scores(tmp_path / "set.parquet", shared).at(PICKED[1])


def assert_same(found: Any, rows: ScoredRows) -> None:
    """Columns of all rows, of some, and a selection."""
    assert len(found) == N
    for picked, at in ((found, np.arange(N)), *((found.at(some), some) for some in PICKED)):
        for name, values in rows.table.columns().items():
            np.testing.assert_array_equal(picked.table.columns()[name], values[at])
        assert list(picked.ids) == [rows.ids[row] for row in at]
        np.testing.assert_array_equal(picked.tokens, rows.tokens[at])
        np.testing.assert_array_equal(picked.is_target, rows.is_target[at])
        if rows.crc32 is None:
            assert picked.crc32 is None
        else:
            np.testing.assert_array_equal(picked.crc32, np.asarray(rows.crc32)[at])
        assert (picked.target_ids, picked.settings) == (rows.target_ids, rows.settings)
    np.testing.assert_array_equal(found.nearest(np.array([3, 0]))[0], rows.table.nearest_target[[3, 0]])
    for similar in (None, 0.2):
        cfg = SelectionConfig(k=9, min_score=-0.5, token_budget=30, min_similarity=similar)
        np.testing.assert_array_equal(found.table_for(cfg).score, rows.table.score)
        assert select_best(N, partial(found.row_blocks, cfg), cfg).indices.tolist() == by_hand(rows, cfg)[0]


PICKED = [np.array(rows, np.int64) for rows in ([], [60, 0, 7, 6, 59], [3], range(N))]


@pytest.mark.parametrize("held", [True, False])
def test_a_selection_is_the_one_that_is_written_at_once(tmp_path: Path, group: int, held: bool) -> None:
    rows, path = made_up(), tmp_path / "selection.parquet"
    write_scores(tmp_path / "scores.parquet", rows)
    saved = read_scores(tmp_path / "scores.parquet")
    cfg = SelectionConfig(k=11, min_score=-0.5)
    found = select_best(N, partial(saved.row_blocks, cfg), cfg)
    if held:
        found.reason = np.asarray(found.reason)
        found.reason[[40, 2]] = REASONS.index("not_diverse")
        found.resembles = {40: int(found.indices[3]), 2: int(found.indices[0])}
    write_selection(path, saved, found)
    table = pq.read_table(path)
    expected = dict.fromkeys(range(N)) | {row: f"row {other}" for row, other in found.resembles.items()}
    assert table.column("resembles").to_pylist() == list(expected.values())
    ranks = {int(row): rank for rank, row in enumerate(found.indices, start=1)}
    assert table.column("rank").to_pylist() == [ranks.get(row) for row in range(N)]
    assert table.column("id").to_pylist() == list(rows.ids)
    assert table.column("reason").to_pylist() == [REASONS[code] for code in np.asarray(found.reason)]
    again = read_selection(path)
    assert again.indices.tolist() == found.indices.tolist()
    assert np.asarray(again.reason).tolist() == np.asarray(found.reason).tolist()
    assert (again.counts, again.config, again.tokens) == (found.counts, found.config, found.tokens)


def test_damage_behind_the_footer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(path, made_up())
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    write_bytes(path, bytes(content))
    saved = read_scores(path)
    with pytest.raises(StoreError, match=r"scores\.parquet is truncated or not a Parquet file"):
        saved.at(np.arange(3))

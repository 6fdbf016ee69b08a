"""A report reads the rows it shows, and the corpus once: its memory may not grow with a store of codes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finescope.codes import SparseCodes
from finescope.curation import Evidence, Scoring
from finescope.curation.scoring.table import ScoreTable
from finescope.report.data import Measured, Passage, ShownRow
from finescope.report.explain import BACKGROUND_ROWS, background_rows, explain
from finescope.report.figures import BEST_ROWS, draw
from finescope.report.histogram import ScoreHistogram
from finescope.report.page import render
from finescope.report.projection import MOST_POINTS
from support.runs import a_run

LATENTS, PER_ROW, SHARD = 512, 24, 1000


def made_up(number: int, rows: int = SHARD) -> SparseCodes:
    generator = torch.Generator().manual_seed(number)
    latents = torch.rand(rows, LATENTS, generator=generator).topk(PER_ROW, dim=1).indices.sort(dim=1).values
    return SparseCodes(
        torch.arange(0, rows * PER_ROW + 1, PER_ROW),
        latents.flatten().to(torch.uint16),
        torch.rand(rows * PER_ROW, generator=generator).half() + 0.01,
        LATENTS,
    )


class Store:
    """Codes that are made when they are asked for, as those of a store are read, and that keep count.

    Like a ``CodeStore`` it hands out all rows in order, or some; asked for everything at once, it refuses.
    """

    num_latents = LATENTS

    def __init__(self, shards: int):
        self.shards, self.passes, self.taken = shards, 0, 0

    def __len__(self) -> int:
        return self.shards * SHARD

    def iter_shards(self) -> Iterator[SparseCodes]:
        self.passes += 1
        return map(made_up, range(self.shards))

    def take(self, rows: Any) -> SparseCodes:
        rows = np.asarray(rows)
        self.taken += rows.size
        order = np.argsort(rows, kind="stable")
        parts = [made_up(0)[:0]]
        for number in np.unique(rows // SHARD):
            parts.append(made_up(int(number))[rows[order][rows[order] // SHARD == number] % SHARD])
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return SparseCodes.cat(parts)[place]

    def codes(self) -> SparseCodes:
        raise AssertionError("everything was asked for at once")


class Names(Sequence[str]):
    def __getitem__(self, row: Any) -> Any:
        return f"row {row}"

    def __len__(self) -> int:
        raise AssertionError("all ids were asked for")


@cache
def learned() -> dict[str, torch.Tensor]:
    scoring = Scoring(Evidence(Store(3), "sqrt_mean"), Evidence(made_up(10_000, 5), "sqrt_mean"))
    scoring.score()
    return scoring.state()


def scored(shards: int) -> tuple[Store, Scoring, ScoreTable]:
    """A store, what a run has kept of its recipe, and made-up scores."""
    store, targets = Store(shards), Evidence(made_up(10_000, 5), "sqrt_mean")
    rng, rows = np.random.default_rng(1), len(store)
    table = ScoreTable(
        rng.normal(size=rows), np.zeros(rows, np.int64), rng.random(rows), np.ones(rows, np.bool_), "contrast"
    )
    return store, Scoring(Evidence(store, "sqrt_mean"), targets, state=learned()), table


def report(scoring: Scoring, table: ScoreTable, folder: Path) -> str:
    """What the report does from saved scores on, with made-up texts."""
    selected = table.ranking()[:200]
    explanation = explain(scoring, background_rows(lambda: [table.valid]), selected[:50])
    texts = ((row, Passage(f"row {row}", f"words of row {row} " * 20, 400)) for row in explanation.wanted())
    passages, latents = explanation.read(texts)
    data = replace(
        a_run(),
        measured=Measured(),
        count=len(table),
        scores=ScoreHistogram.of(
            lambda: [(table.score, None)], float(table.score[selected].min()), labelled=False
        ),
        ids=Names(),
        target_ids=[f"target {number}" for number in range(5)],
        selected=selected,
        corpus=scoring.space.corpus,
        targets=scoring.targets,
        weights=scoring.space.weights,
        rows=[
            ShownRow(rank, passages[row], float(table.score[row]), shares=shares)
            for rank, (row, shares) in enumerate(
                zip(explanation.rows.tolist(), explanation.shares, strict=True), start=1
            )
        ],
        latents=latents,
    )
    return render(data, draw(data, folder))


def test_rows_that_are_shown_are_read_and_the_corpus_once(tmp_path: Path) -> None:
    store, scoring, table = scored(30)
    page = report(scoring, table, tmp_path)
    assert page.count("<article ") == 50
    assert store.passes == 1  # for the rows in which the latents are strongest
    assert store.taken <= 3 * 50 + 200 + MOST_POINTS + BEST_ROWS


@pytest.mark.parametrize("part", ["explanation", "report"])
def test_memory_grows_by_a_few_numbers_a_row(tmp_path: Path, part: str) -> None:
    def peak(shards: int) -> int:
        _, scoring, table = scored(shards)
        tracemalloc.start()
        if part == "explanation":
            background = background_rows(lambda: [table.valid])
            assert explain(scoring, background, table.ranking()[:50]).background.size == BACKGROUND_ROWS
        else:
            report(scoring, table, tmp_path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    report(*scored(6)[1:], tmp_path)  # modules and fonts are loaded
    per_row = (peak(110) - peak(80)) / (30 * SHARD)
    # Masks and copies of the scores; a row's codes alone are 96 bytes, 288 as numbers to reckon with.
    assert per_row < {"explanation": 40, "report": 70}[part]

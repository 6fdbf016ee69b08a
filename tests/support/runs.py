"""A finished run to make a report of, made up: no model, no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.curation import score_corpus
from finescope.report.data import About, Latent, Measured, Passage, RunData, Share, ShownRow
from finescope.report.histogram import ScoreHistogram

LATENTS = 40


def codes(rows: int, seed: int) -> SparseCodes:
    dense = torch.rand(rows, LATENTS, generator=torch.Generator().manual_seed(seed))
    return SparseCodes.from_dense(dense * (dense > 0.8))


def interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def methods(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "summary": name,
            "intervals": "jackknife over targets",
            "metrics": {
                "average_precision": interval(0.7, 0.6, 0.8),
                "precision@10": interval(0.9, 0.9, 0.9),
                "recall@10": interval(0.1, 0.1, 0.1),
                "lift@10": interval(6.0, 6.0, 6.0),
            },
        }
        for name in names
    ]


def a_run(
    shown: int = 4, selected: int = 6, corpus: int = 60, name: Any = lambda text: text, text: str = "A row."
) -> RunData:
    """Return a labelled run.

    Args:
        shown: rows that the page shows.
        selected: rows that were selected.
        corpus: rows that were scored.
        name: wraps every text that comes from data; it is handed a word that says what the text is.
        text: of every shown row.
    """
    rows, targets = codes(corpus, 1), codes(3, 2)
    table = score_corpus(targets, rows)
    chosen = table.ranking()[:selected]
    labels = {name("label"): 0.7, name("other label"): 0.3}
    metrics = {
        "labels": {
            "column": name("column"),
            "target_labels": [name("label")],
            "relevant_rows": 7,
            "selected_precision": 0.5,
            "distribution": {
                label: {"count": place + 1, "corpus_share": share}
                for place, (label, share) in enumerate(labels.items())
            },
            "methods": methods(name("method"), "random"),
        },
        "quality": {
            "avg_similarity_to_target": 0.5,
            "target_coverage": 1.0,
            "target_coverage_threshold": 0.5,
            "latent_coverage": {"latents": 12, "of_targets": None},
        },
    }
    return RunData(
        about=About(
            name("title"),
            name("subtitle"),
            [(name("asked"), name("answer"))],
            [name("warning")],
            name("method"),
            12.0,
            {name("setting"): name("value")},
        ),
        measured=Measured(
            metrics,
            [{"event": "step", "step": step, "fvu": 1 / step, "dead_fraction": 0.1} for step in (1, 2, 3)],
            ([name("domain"), "another"], methods(name("averaged method"))),
        ),
        count=corpus,
        scores=ScoreHistogram.of(
            lambda: [(table.score, np.arange(corpus) < corpus // 3)],
            float(table.score[chosen].min()) if selected else None,
            labelled=True,
        ),
        ids={row: name(f"id {row}") for row in range(corpus)},
        target_ids=[name(f"target id {row}") for row in range(3)],
        selected=chosen,
        corpus=rows,
        targets=targets,
        rows=[
            ShownRow(
                rank,
                Passage(name(f"id {row}"), text, len(text)),
                float(table.score[row]),
                Passage(name("target id"), name("target text"), 20),
                0.75,
                [Share(rank % LATENTS, 0.3), Share((rank + 1) % LATENTS, -0.1)],
                list(labels)[rank % 2],
                rank % 2 == 0,
            )
            for rank, row in enumerate(chosen[:shown].tolist(), start=1)
        ],
        latents={
            number: Latent(
                number,
                name("words"),
                0.01 * (number + 1),
                [rank for rank in range(1, shown + 1) if number in (rank % LATENTS, (rank + 1) % LATENTS)],
                [Passage(name("example id"), name("example text"), 30)],
            )
            for number in sorted({at % LATENTS for rank in range(1, shown + 1) for at in (rank, rank + 1)})
        },
    )

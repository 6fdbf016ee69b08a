"""A result of each kind that Python hands out, as a notebook shows it, made up around texts of a stranger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finescope.codes import SparseCodes
from finescope.config import CurationConfig, SaeConfig
from finescope.curation import (
    MethodResult,
    ScoreTable,
    Selection,
    SelectionConfig,
    run_curation_pipeline,
    select,
)
from finescope.curation.compare import Comparison
from finescope.curation.intervals import Interval
from finescope.curation.selected import Reasons
from finescope.sae import SparseAutoencoder
from finescope.workflow.rowscorer import RowScores

PROOF = Path(__file__).resolve().parent.parent.parent / "benchmarks/proof/proof.json"


def scores(rows: int, scorer: str = "contrast") -> ScoreTable:
    """Return rows that fall from 1 to 0, of which every seventh can't be scored."""
    score = np.linspace(1, 0, rows)
    valid = np.arange(rows) % 7 != 6
    return ScoreTable(score, np.where(valid, 2, -1), np.where(valid, score, np.nan), valid, scorer)


def row_scores(name: str) -> RowScores:
    """Return three rows, the last without a code."""
    return RowScores(
        np.array([0.5, -0.25, 0.0]),
        [name, "target-1", None],
        np.array([0.75, 0.5, np.nan]),
        np.array([12, 9, 0]),
        np.array([True, True, False]),
    )


def comparison(name: str) -> Comparison:
    """Return two methods."""
    metrics = {
        "average_precision": Interval(0.689, 0.58, 0.798),
        "precision@10": Interval(0.9, 0.9, 0.9),
        "lift@10": Interval(float("nan"), float("nan"), float("nan")),
    }
    return Comparison(
        MethodResult(method, f"what {method} does", metrics, "jackknife over targets")
        for method in (name, "random")
    )


def selection(rows: int) -> Selection:
    """Return a selection of 25 rows that leaves out a near-duplicate."""
    found = select(scores(rows), SelectionConfig(k=25))
    found.resembles = {30: int(found.indices[1])}
    found.tokens = 4321
    return found


def results(name: str) -> dict[str, str]:
    """Return by kind what a notebook shows; the texts that strangers can choose begin with ``name``."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(8, SaeConfig(num_latents=32, k=4, multi_topk=False))
    sae.origin = type(sae.origin)(model=f"{name} model", notes=(f"{name} note",))
    targets, pool = torch.randn(3, 4, 8, generator=generator), torch.randn(40, 4, 8, generator=generator)
    found = run_curation_pipeline(
        targets, pool, sae, CurationConfig(top_k_selection=15, use_clustering=False, similarity_threshold=0.0)
    )
    empty = Selection(np.zeros(0, np.int64), Reasons(np.zeros(12, np.int64), lambda: iter(())))
    shown = {
        "ScoreTable": scores(60, f"{name} scorer"),
        "Selection": selection(60),
        "empty Selection": empty,
        "RowScores": row_scores(f"{name} target"),
        "Comparison": comparison(f"{name} method"),
        "MethodResult": comparison(f"{name} alone")[0],
        "CurationResults": found,
        "SparseCodes": SparseCodes.from_dense(torch.rand(12, 30, generator=generator)),
        "empty SparseCodes": SparseCodes.from_dense(torch.zeros(0, 30)),
        "SparseAutoencoder": sae,
    }
    return {kind: result._repr_html_() for kind, result in shown.items()}

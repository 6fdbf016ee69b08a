"""The facts of a planned run that its cost follows from: counted, or measured on its first rows."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from finescope.activations.batches import DTYPES
from finescope.activations.identity import model_bytes
from finescope.codes import SparseCodes
from finescope.corpus.source import record_as_line
from finescope.curation.limits import REASONS, SelectionConfig
from finescope.curation.scoring.table import NOBODY, ScoreTable
from finescope.curation.selected import Selection
from finescope.embeddings.extract import extract_embeddings
from finescope.embeddings.store import KIND
from finescope.embeddings.writer import Documents, shard_of_codes
from finescope.sae.architectures import architecture_class
from finescope.sae.architectures.threshold import ThresholdAutoencoder
from finescope.storage.remote import is_url
from finescope.storage.shardfiles import ShardFiles
from finescope.workflow.cost import Throughput, Workload
from finescope.workflow.layout import PLAN
from finescope.workflow.probe import Sample
from finescope.workflow.scored import ScoredRows
from finescope.workflow.setcontext import SetsContext
from finescope.workflow.stages.activations import sample_limit
from finescope.workflow.stages.train import plan_for
from finescope.workflow.tables import SCORE_COLUMNS, write_rows, write_scores, write_selection

if TYPE_CHECKING:
    from finescope.config import SaeConfig
    from finescope.sae import Autoencoder
    from finescope.workflow.context import Context

_WIDE = ("sum", "count")
"""Poolings whose codes are stored as float32."""
_OF_A_LINE = 24
"""Numbers beside a document's activations: its row, its tokens, and an empty list of windows."""


def of_run(context: Context) -> Workload:
    """Return what a planned run is about.

    Tokens are those of the plan: the characters of all rows by those of a token in the first. Latents are
    counted on some of these, where there is an autoencoder; where none is trained yet, the most that there
    may be are taken. What stands beside codes and scores is written, of the first rows, and measured.
    """
    job, tap, sample = context.job, context.tap, context.sample
    stats, targets, shards = context.stats("corpus"), context.stats("targets"), context.plan("corpus")
    tokens = sum(round(shard.characters / sample.per_token) for shard in shards)
    limit = sample_limit(context) if job.sae_path is None else 0
    sampled = tokens if limit is None else min(tokens, limit)
    training = plan_for(job, sampled or tokens, tap.width)
    sae = _autoencoder(context)
    latents = training.sae.latents(tap.width) if sae is None else sae.num_latents
    most = _most(sample, job.top_k_activations, training.sae, latents)
    kept = most if sae is None else _counted(context, sae)
    cost = tap.cost()
    files = [file for source in context.corpus.sources for file in source.files]
    plan = context.folder / PLAN
    return Workload(
        documents=stats.rows,
        tokens=tokens,
        model_flops=cost.of(sample.windows) / max(1, sum(sample.tokens)),
        parameters=cost.parameters,
        model_bytes=model_bytes(job.model),
        width=tap.width,
        latents=latents,
        kept=kept,
        bounded=sae is None,
        value_bytes=4 if job.recipe().pooling in _WIDE else 2,
        beside_bytes=_beside(sample, job.label_column, len(shards) / stats.rows),
        score_bytes=_tables(context),
        targets=targets.rows,
        target_tokens=round(targets.characters / Sample.of(tap, context.targets).per_token),
        sample_tokens=sampled,
        sample_documents=round(stats.rows * sampled / max(1, tokens)),
        sample_bytes=_OF_A_LINE + _mean([len(row.id) + len(row.place) for row in sample.rows]),
        activation_bytes=DTYPES[job.activation_dtype].itemsize,
        trained_tokens=0 if job.sae_path is not None else sampled * training.training.num_epochs,
        sae_bytes=0 if job.sae_path is None else _size(context.sae_place),
        selected=selected_at_most(job.selection_config(), stats.rows, tokens) * _sets(context),
        row_bytes=sum(file.size for file in files) / stats.rows + _columns(context),
        plan_bytes=plan.stat().st_size if plan.exists() else 0,
        remote_bytes=sum(file.size for file in files if file.system is not None),
        passes=_passes(context),
        sent=is_url(job.out),
    )


def measured(context: Context, load: Workload, workers: int) -> Throughput:
    """Return how fast workers like this process are, by what it needs for some of the first rows."""
    speed = context.speed
    model = load.model_flops / max(speed.seconds_per_token, 1e-12)
    said = f"measured here: {1 / max(speed.seconds_per_token, 1e-12):,.0f} tokens/s through the model"
    return Throughput(model, speed.product_flops, workers, said)


def selected_at_most(limits: SelectionConfig, rows: int, tokens: float) -> int:
    """Return how many of so many rows, with so many tokens, a selection takes at most."""
    most = [rows]
    if limits.k is not None:
        most.append(limits.k)
    if limits.fraction is not None:
        most.append(math.ceil(limits.fraction * rows))
    if limits.token_budget is not None and tokens:
        most.append(math.ceil(limits.token_budget * rows / tokens))
    return min(most)


def _passes(context: Context) -> int:
    """How often the rows of the corpus are gone through.

    By the first pass and by embedding; the sample is drawn in one pass, unless all rows are it, and read in
    another; and the selected rows are looked up, and those that the report shows, which of lines of JSON is a
    pass each, and of tables a few groups of rows.
    """
    passes = 2
    if context.job.sae_path is None:
        passes += 1 if sample_limit(context) is None else 2
    lines = any(source.schema() is None for source in context.corpus.sources)
    return passes + (2 if lines else 0)


def _autoencoder(context: Context) -> Autoencoder | None:
    """The autoencoder that is given or trained already."""
    if context.job.sae_path is None and not context.ledger.facts("train"):
        return None
    return context.sae


def _most(sample: Sample, top_k: int, sae: SaeConfig, latents: int) -> float:
    """The most latents that the documents of the sample may keep, in the mean."""
    most = min(top_k, latents)
    if issubclass(architecture_class(sae.architecture), ThresholdAutoencoder):
        return _mean([most if tokens else 0 for tokens in sample.tokens])
    return _mean([min(most, sae.k * tokens) for tokens in sample.tokens])


def _counted(context: Context, sae: Autoencoder) -> float:
    """The latents that documents of the sample keep, in the mean."""
    job, rounded = context.job, DTYPES[context.job.activation_dtype]
    documents = [found.to(rounded) for found in context.speed.activations]
    if not documents:
        return 0.0
    codes = extract_embeddings(sae, documents, job.top_k_activations, pooling=job.recipe().pooling)
    with_text = sum(not row.empty for row in context.sample.rows) / len(context.sample.rows)
    return codes.nnz / len(documents) * with_text


def _beside(sample: Sample, label_column: str | None, shards_a_row: float) -> float:
    """Bytes beside the code of a document: of a shard of the first rows without codes, what a row adds."""

    def written(count: int) -> int:
        rows = sample.rows[:count]
        labels = None
        if label_column is not None:
            labels = [str(row.record.get(label_column) or "") for row in rows]
        documents = Documents(
            [row.id for row in rows],
            n_tokens=sample.tokens[:count],
            places=[row.place for row in rows],
            texts=[row.content for row in rows],
            labels=labels,
        )
        empty = SparseCodes.from_dense(torch.zeros(count, 1))
        made = shard_of_codes(empty, documents, dtype=torch.float16, first=0)
        with tempfile.TemporaryDirectory() as folder:
            entry = ShardFiles(Path(folder), KIND, {}, {}).write(0, made.tensors, made.table, {})
        return entry.bytes + entry.table_bytes

    empty = written(0)
    return (written(len(sample.rows)) - empty) / len(sample.rows) + empty * shards_a_row


def _tables(context: Context) -> float:
    """Bytes a row of the tables of scores and selection: of those of the first rows, what a row adds."""
    sample, sets = context.sample, _sets(context)
    random = np.random.default_rng(context.job.seed)
    names = [str(number) for number in range(context.stats("targets").rows)]

    def written(count: int) -> int:
        scored = ScoredRows(
            ScoreTable(
                random.standard_normal(count),
                *(NOBODY if sets > 1 else (random.integers(0, len(names), count), random.random(count))),
                np.ones(count, np.bool_),
                "",
            ),
            [row.id for row in sample.rows[:count]],
            names,
            np.asarray(sample.tokens[:count], np.int64),
            np.zeros(count, np.bool_),
            {},
            random.integers(0, 1 << 32, count, np.uint32),
        )
        others = np.full(count, REASONS.index("beyond_limit"), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            scores, selection, rows = (Path(folder, name) for name in ("scores", "selection", "rows"))
            write_scores(scores, scored, rows=sets == 1)
            write_selection(selection, scored, Selection(np.zeros(0, np.int64), others), rows=sets == 1)
            write_rows(rows, scored)
            each = scores.stat().st_size + selection.stat().st_size
            return sets * each + (rows.stat().st_size if sets > 1 else 0)

    empty = written(0)
    return (written(len(sample.rows)) - empty) / len(sample.rows) + empty / context.stats("corpus").rows


def _columns(context: Context) -> int:
    """Bytes of what a selected row has beyond its own, as JSON."""
    row, third = context.sample.rows[0], 1 / 3
    values = (context.stats("corpus").rows, third, row.id, third)
    return len(record_as_line(dict(zip(SCORE_COLUMNS, values, strict=True))))


def _sets(context: Context) -> int:
    return len(context.sets) if isinstance(context, SetsContext) else 1


def _size(place: Path) -> int:
    """Size of a file, or of the files below a folder."""
    files = [place] if place.is_file() else place.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / max(1, len(numbers))

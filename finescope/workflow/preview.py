"""What a run is going to do and how long that will take, measured on a few rows before it starts."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from finescope.progress import duration
from finescope.workflow.plan import CHARACTERS_PER_TOKEN, matmul_flops, plan_training, training_seconds

if TYPE_CHECKING:
    from finescope.corpus.row import Row
    from finescope.workflow.run import Run

PROBE_ROWS, PROBE_COPIES = 24, 3
"""Rows that the model is timed on. Copies fill batches about as well as the many rows of a run do."""
COUNTED_ROWS, COUNTED_CHARACTERS = 2048, 1 << 21
"""Rows whose tokens are counted, at most, to tell tokens from characters."""


def preview(run: Run) -> str:
    """Return one paragraph about the coming work: sizes of the SAE's training and an estimate of the time.

    The model is timed on the first rows; the SAE is estimated from a matrix product.
    """
    job, corpus = run.job, run.corpus
    stats = corpus.scan() if corpus.stats is None else corpus.stats
    rows: list[Row] = []
    characters = tokens = 0
    for row in itertools.islice(corpus.rows(records=False), COUNTED_ROWS):
        rows.append(row)
        characters += len(row.content)
        tokens += run.tap.windower.count([row])[0]
        if characters >= COUNTED_CHARACTERS:
            break
    per_token = characters / tokens if tokens else CHARACTERS_PER_TOKEN
    total = stats.characters / max(per_token, 1e-6)
    probe = [row for row in rows if not row.empty][:PROBE_ROWS]
    start = time.monotonic()
    timed = sum(document.activations.shape[0] for document in run.tap.run(probe * PROBE_COPIES))
    seconds_per_token = (time.monotonic() - start) / max(1, timed)
    model = total * seconds_per_token
    parts = [f"about {total:,.0f} tokens through layer {run.tap.layer}"]
    training = 0.0
    flops = matmul_flops(job.device)
    plan = plan_training(
        int(min(total, job.train_tokens)),
        run.tap.width,
        device=job.device,
        seed=job.seed,
        sae=job.sae,
        training=job.training,
    )
    if job.sae_path is None:
        training = training_seconds(plan, run.tap.width, flops)
        model += min(total, job.train_tokens) * seconds_per_token
        parts.append(
            f"an SAE of about {plan.sae.latents(run.tap.width):,} latents trained for {plan.steps:,} steps"
        )
    encoding = 4 * total * run.tap.width * plan.sae.latents(run.tap.width) / flops
    return f"to do: {', '.join(parts)}; roughly {duration(model + training + encoding)} in all"

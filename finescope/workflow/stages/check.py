"""Reading all inputs once before anything expensive, and saying what the run is going to do."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finescope.progress import counted, duration
from finescope.workflow.opening import find_sae
from finescope.workflow.plan import CHARACTERS_PER_TOKEN, matmul_flops, plan_training, training_seconds
from finescope.workflow.stage import Stage

if TYPE_CHECKING:
    from finescope.corpus.row import Row
    from finescope.workflow.context import Context

PROBE_ROWS, PROBE_COPIES = 24, 3
"""Rows that the model is timed on. Copies fill batches about as well as the many rows of a run do."""
COUNTED_ROWS, COUNTED_CHARACTERS = 2048, 1 << 21
"""Rows whose tokens are counted, at most, to tell tokens from characters."""


@dataclass(frozen=True)
class Check(Stage):
    """Reads corpus and targets, so that a broken row is found before the model has run for hours."""

    name = "check"
    reads = ("corpus", "targets", "model")
    writes = ()

    def work(self, context: Context) -> None:
        """Read all rows and their labels, and say what will be done.

        Raises:
            InputError: anything wrong with the rows, named with file and line.
        """
        say = context.reporter.say
        if context.job.sae_path is not None:  # a name that is wrong, or a hub out of reach, is found now
            find_sae(context.job.sae_path, context.job.layer or None)
        with context.reporter.task("reading", context.corpus.len_hint, "rows") as task:
            shards = context.plan("corpus", task.update)
            task.update(sum(shard.rows for shard in shards))
        context.plan("targets")
        found, wanted = context.stats("corpus"), context.stats("targets")
        formats = context.corpus.formats
        if len(formats) > 1:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in formats.items())
            say(f"{context.corpus.name} are files of several formats, all of which are read: {kinds}")
        if context.corpus.left_out:
            say(f"left out of {context.corpus.name}: {_few(context.corpus.left_out)}")
        for column, zones in context.corpus.output(context.output_ending).moved.items():
            say(
                f"times in column {column!r} are in {', '.join(zones)}, and a column has one zone: they are "
                "written in UTC, the same instants"
            )
        if found.empty:
            say(
                f"without text, so not scored: {counted(found.empty, 'row')}, "
                f"the first at {found.first_empty}"
            )
        for refused in context.refused.values():
            if refused.rows:
                say(refused.words)
        context.check_labels()
        say(
            f"{found.rows:,} rows of {context.corpus.name} against {wanted.rows} targets of "
            f"{context.targets.name}, everything into {context.folder}"
        )
        if not context.ledger.facts("embed-corpus") and not context.reporter.quiet:
            say(preview(context))


def _few(names: list[str]) -> str:
    names = sorted(names, key=lambda name: not name.endswith(")"))  # first those left out for a reason
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def first_rows(context: Context) -> tuple[list[Row], float]:
    """Return some rows from the corpus' beginning, and how many characters they have a token."""
    rows: list[Row] = []
    characters = tokens = 0
    for row in itertools.islice(context.corpus.rows(records=False), COUNTED_ROWS):
        rows.append(row)
        characters += len(row.content)
        tokens += context.tap.windower.count([row])[0]
        if characters >= COUNTED_CHARACTERS:
            break
    return rows, max(characters / tokens if tokens else CHARACTERS_PER_TOKEN, 1e-6)


def preview(context: Context) -> str:
    """Return one paragraph about the coming work: sizes of the SAE's training and an estimate of the time.

    The model is timed on the first rows; the SAE is estimated from a matrix product.
    """
    job, tap = context.job, context.tap
    rows, per_token = first_rows(context)
    total = context.stats("corpus").characters / per_token
    probe = [row for row in rows if not row.empty][:PROBE_ROWS]
    start = time.monotonic()
    timed = sum(document.activations.shape[0] for document in tap.run(probe * PROBE_COPIES))
    seconds_per_token = (time.monotonic() - start) / max(1, timed)
    model = total * seconds_per_token
    parts = [f"about {total:,.0f} tokens through layer {tap.layer}"]
    training = 0.0
    flops = matmul_flops(job.device)
    plan = plan_training(
        round(min(total, job.train_tokens)),
        tap.width,
        device=job.device,
        seed=job.seed,
        sae=job.sae,
        training=job.training,
    )
    if job.sae_path is None:
        training = training_seconds(plan, tap.width, flops)
        model += min(total, job.train_tokens) * seconds_per_token
        parts.append(
            f"an SAE of about {plan.sae.latents(tap.width):,} latents trained for about {plan.steps:,} steps"
        )
    encoding = 4 * total * tap.width * plan.sae.latents(tap.width) / flops
    return f"to do: {', '.join(parts)}; roughly {duration(model + training + encoding)} in all"

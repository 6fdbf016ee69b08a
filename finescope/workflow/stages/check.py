"""Reading all inputs once before anything expensive, and saying what the run is going to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finescope.progress import counted, duration
from finescope.workflow.opening import chat_template, find_sae
from finescope.workflow.plan import training_seconds
from finescope.workflow.stage import Stage
from finescope.workflow.stages.train import plan_for

if TYPE_CHECKING:
    from finescope.workflow.context import Context


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
        chat_template(context.job)  # a file that isn't there is missed before the rows are read
        if context.job.sae_path is not None:  # a name that is wrong, or a hub out of reach, is found now
            find_sae(context.job.sae_path, context.job.layer or None)
        context.plan("targets")
        context.check_sets()
        with context.reporter.task("reading", context.corpus.len_hint, "rows") as task:
            shards = context.plan("corpus", task.update)
            task.update(sum(shard.rows for shard in shards))
        found, wanted = context.stats("corpus"), context.stats("targets")
        formats = context.corpus.formats
        if len(formats) > 1:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in formats.items())
            say(f"{context.corpus.name} are files of several formats, all of which are read: {kinds}")
        for remark in context.corpus.remarks:
            say(remark)
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
        for name in ("corpus", "targets"):
            words = context.refused[name].words if name in context.refused else ""
            if words:
                say(words)
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


def preview(context: Context) -> str:
    """Return one paragraph about the coming work: sizes of the SAE's training and an estimate of the time.

    The SAE is estimated from a matrix product. For the model's part it reads some rows in advance, at most
    ``PROBE_ROWS`` of the first and each ``PROBE_COPIES`` times, of which nothing is kept. Of the run itself
    it is true that the model reads no row twice: those that the SAE is trained on are embedded from what is
    stored of them.
    """
    job, tap, speed = context.job, context.tap, context.speed
    total = context.stats("corpus").characters / context.sample.per_token
    parts = [f"about {total:,.0f} tokens through layer {tap.layer}"]
    training = 0.0
    plan = plan_for(job, round(min(total, job.train_tokens)), tap.width)
    if job.sae_path is None:
        training = training_seconds(plan, tap.width, speed.product_flops)
        parts.append(
            f"an SAE of about {plan.sae.latents(tap.width):,} latents trained for about {plan.steps:,} steps"
        )
    encoding = 4 * total * tap.width * plan.sae.latents(tap.width) / speed.product_flops
    model = total * speed.seconds_per_token
    return (
        f"to do: {', '.join(parts)}; roughly {duration(model + training + encoding)} in all, by the model's "
        f"time on {counted(len(context.sample.probe), 'row')}"
    )

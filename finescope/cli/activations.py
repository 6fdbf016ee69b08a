"""``finescope activations``: the first stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finescope.cli import options
from finescope.cli.common import config_options
from finescope.errors import InputError

if TYPE_CHECKING:
    from finescope.activations import ActivationStore
    from finescope.progress import Reporter
    from finescope.workflow.job import Job

OUT = "activations"


@click.command("activations", short_help="Read a model's activations at one layer into files.")
@options.model_options
@options.option("corpus", help="Rows to read")
@options.option("out", help="Folder of the activation store", default=OUT)
@options.column_options
@options.chat_options
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Stop at so many tokens, from a random sample of rows."
)
@options.option("seed", help="Seed of the sample")
@click.option(
    "--from-vllm",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read the hidden states that vLLM has written into a folder instead of running the model.",
)
@click.option(
    "--vllm-layers",
    metavar="N,N,...",
    help="With --from-vllm: its eagle_aux_hidden_state_layer_ids, in their order. [default: files hold one "
    "layer, that of --layer]",
)
@config_options
@click.option("--restart", is_flag=True, help="Overwrite what --out holds of other inputs.")
@options.quiet_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    max_tokens: int | None,
    from_vllm: Path | None,
    vllm_layers: str | None,
    restart: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Run a model up to one layer and keep that layer's output for every token.

    The store is a folder of memory-mapped shards for `finescope train`. Special tokens are left out. A run
    that was stopped goes on at its last finished shard. At width 4096, a million tokens take 8 GB.

    With --from-vllm the model isn't run: --layer says of which block the output is taken, --model gives the
    tokenizer, and with --corpus documents get the ids of the rows that were sent to vLLM.

    \b
    Examples:
      finescope activations --model MODEL --layer layers.10 --corpus corpus.jsonl \\
          --max-tokens 2000000 --out activations/
      finescope activations --model MODEL --layer layers.10 --from-vllm states/ \\
          --vllm-layers 11,20 --out activations/
    """
    from finescope.progress import Reporter
    from finescope.workflow.opening import open_tap
    from finescope.workflow.rows import open_job_corpus
    from finescope.workflow.sending import sending
    from finescope.workflow.stages.activations import collect_activations

    job = options.job_from(config_path, overrides, given | {"out": given["out"] or OUT})
    if from_vllm is not None:
        options.need(job, "model", "layer")
        if max_tokens is not None:
            raise InputError(
                "--max-tokens draws rows for the model to read; files of vLLM's are taken as they are"
            )
        store = _from_vllm(job, from_vllm, _numbers(vllm_layers), Reporter(quiet=quiet), restart)
        click.echo(
            f"{store.num_tokens:,} tokens of width {store.width} from {len(store):,} rows in {job.out}"
        )
        return
    if vllm_layers is not None:
        raise InputError(
            "--vllm-layers is said of files that vLLM has written; name their folder with --from-vllm"
        )
    options.need(job, "model", "corpus")
    corpus = open_job_corpus(job)
    reporter = Reporter(quiet=quiet)
    corpus.scan()
    with sending(job.out, reporter):
        store = collect_activations(
            open_tap(job, reporter),
            corpus,
            job.folder,
            dtype=job.activation_dtype,
            max_tokens=max_tokens,
            seed=job.seed,
            reporter=reporter,
            overwrite=restart,
        )
    click.echo(f"{store.num_tokens:,} tokens of width {store.width} from {len(store):,} rows in {job.out}")


def _numbers(given: str | None) -> list[int]:
    """The numbers in a list with commas.

    Raises:
        InputError: there is something else in it.
    """
    try:
        return [int(number) for number in given.split(",")] if given else []
    except ValueError:
        raise InputError(
            f"--vllm-layers {given} isn't a list of numbers; write them as 2,18,33, with commas between"
        ) from None


def _from_vllm(
    job: Job, folder: Path, numbers: list[int], reporter: Reporter, restart: bool
) -> ActivationStore:
    """Read what vLLM has written into a store."""
    from finescope.activations import load_tokenizer
    from finescope.activations.batches import DTYPES
    from finescope.activations.vllm import find_hidden_states, store_hidden_states
    from finescope.workflow.opening import chat_template
    from finescope.workflow.rows import open_job_corpus
    from finescope.workflow.sending import sending

    found = find_hidden_states(folder, job.layer, numbers)
    rows = open_job_corpus(job) if job.corpus else None
    if rows is not None:
        rows.scan()
    with sending(job.out, reporter), reporter.task("activations", len(found.paths), "rows") as task:
        return store_hidden_states(
            found,
            job.folder,
            load_tokenizer(job.model),
            rows=rows,
            dtype=DTYPES[job.activation_dtype],
            mode="overwrite" if restart else "resume",
            source={"model": job.model, "layer": job.layer, "activation_dtype": job.activation_dtype},
            chat_template=chat_template(job),
            refused_chats=job.refused_chats,
            progress=lambda documents, tokens: task.update(documents, f"{tokens:,} tokens"),
            say=reporter.say,
        )

"""``finescope train``: the SAE alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from finescope.cli import options
from finescope.cli.common import Fetched, config_options
from finescope.config import SaeConfig
from finescope.sae.architectures import TRAINED


@click.command("train", short_help="Train a sparse autoencoder on saved activations.")
@click.argument("activations", type=Fetched(file_okay=False))
@click.option("--out", default="sae", show_default=True, metavar="DIR|URL", help="Folder of the SAE.")
@options.option("sae.architecture", help=f"How latents are chosen: {', '.join(TRAINED)}")
@options.option("sae.num_latents", help="F, latents in all", default="from the tokens there are")
@options.option("sae.k", help="K, latents per token", default=f"{SaeConfig().k}, fewer for a small SAE")
@options.option("training.num_epochs", default="about 400 steps")
@options.option("sinks")
@options.option("device", help="Where to train")
@options.option("seed", help="Seed of initialisation and shuffling")
@config_options
@options.quiet_option
def command(
    activations: Path,
    out: str,
    config_path: Path | None,
    overrides: tuple[str, ...],
    quiet: bool,
    **given: Any,
) -> None:
    """Train a sparse autoencoder on ACTIVATIONS, a folder written by `finescope activations`.

    Writes cfg.json and sae.safetensors (the layout of sparsify), metrics.jsonl, and a state to resume from:
    give the same command again after an interruption. All fields of the SAE and of the training can be set:
    --set sae.matryoshka_loss=sum --set sae.sparsity=tanh --set training.learning_rate=1e-4.

    Started by torchrun, the processes share every batch, whose size is that of all of them together: the
    losses are those of one process. On GPUs each process takes one.

    \b
    Examples:
      finescope train activations/ --out sae/
      finescope train activations/ --out sae/ --num-latents 16384 -k 64 --epochs 2
      torchrun --nproc-per-node=8 -m finescope train activations/ --out sae/ --device cuda
    """
    from finescope.activations import ActivationStore
    from finescope.progress import Reporter
    from finescope.sae.metrics import training_log
    from finescope.sae.parallel import launched
    from finescope.workflow.sending import sending
    from finescope.workflow.stages.sinks import find_in, note_beside, tokens_of
    from finescope.workflow.stages.train import plan_for, train

    job = options.job_from(config_path, overrides, {"out": out, **given})
    store = ActivationStore(activations)
    with launched(job.training.get("device", job.device)) as (ranks, device):
        job.training["device"] = device
        reporter = Reporter(quiet=quiet or not ranks.first)
        looks = ranks.first and job.sinks == "drop"
        found = ranks.take(asdict(find_in(store, reporter)) if looks else {})
        tokens = tokens_of(store, found)
        plan = plan_for(job, tokens.num_tokens, tokens.width)
        with sending(job.out, reporter) if ranks.first else nullcontext():
            seen = store.facts.get("source")
            sae = train(tokens, plan, job.folder, reporter=reporter, ranks=ranks, seen=seen)
            if ranks.first:
                note_beside(job.folder, found.get("max_norm"))
    if not ranks.first:
        return
    log = training_log(job.folder)
    quality = f", FVU {log[-1]['fvu']:.4f}, {log[-1]['dead_fraction']:.1%} dead latents" if log else ""
    click.echo(f"SAE with {sae.num_latents:,} latents of width {sae.d_in} in {job.out}{quality}")

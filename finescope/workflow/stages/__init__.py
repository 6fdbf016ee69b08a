"""The expensive stages: reading activations, training the SAE, embedding. Each can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.corpus import Corpus, open_corpus
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.workflow.job import Job
from finescope.workflow.plan import TrainingPlan, plan_training

if TYPE_CHECKING:
    from finescope.activations import ActivationStore, ActivationTap
    from finescope.embeddings.store import CodeStore
    from finescope.sae import SparseAutoencoder


def open_job_corpus(job: Job) -> Corpus:
    """Open the corpus of a job."""
    source: Any = job.corpus[0] if len(job.corpus) == 1 else list(job.corpus)
    return open_corpus(source, text_column=job.text_column, id_column=job.id_column, limit=job.limit)


def open_job_targets(job: Job) -> Corpus:
    """Open the targets of a job. A target without text is refused: there are few, and each was meant.

    The targets may lack the corpus' id column: ids are then generated.
    """
    return open_corpus(job.targets, text_column=job.text_column, id_column=job.id_column, empty="error")


def open_tap(job: Job) -> ActivationTap:
    """Load the model of a job and find its layer, quietly: this package reports its own progress."""
    import torch

    from finescope.activations import ActivationTap, load_model

    _quiet_transformers()
    layer = job.layer
    model: Any = job.model
    if not layer:
        model = load_model(job.model, device=job.device, dtype=getattr(torch, job.dtype))
        layer = last_block(model)
    return ActivationTap(
        model,
        layer,
        tokenizer=job.model,
        max_length=job.max_length,
        stride=job.stride,
        batch_tokens=job.batch_tokens,
        device=job.device,
        dtype=job.dtype if isinstance(model, str) else None,
    )


def last_block(model: Any) -> str:
    """Return the name of the last block of a model's longest list of modules.

    Raises:
        InputError: the model has no list of modules.
    """
    from torch import nn

    stacks = [
        (len(module), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    if not stacks:
        names = ", ".join(name for name, _ in list(model.named_modules())[1:8])
        raise InputError(
            f"the model has no stack of blocks to choose a layer from; name one with --layer: {names}, …"
        )
    length, name = max(stacks, key=lambda item: (item[0], -len(item[1])))
    return f"{name}.{length - 1}"


def collect_activations(
    tap: ActivationTap,
    corpus: Corpus,
    folder: Path,
    *,
    max_tokens: int | None,
    seed: int,
    reporter: Reporter,
    overwrite: bool = False,
) -> ActivationStore:
    """Read the activations of (a random sample of) the corpus into a store; finished shards are kept."""
    from finescope.activations import store_activations

    with reporter.task("activations", corpus.len_hint, "rows") as task:
        return store_activations(
            tap,
            corpus,
            folder,
            max_tokens=max_tokens,
            seed=seed,
            mode="overwrite" if overwrite else "resume",
            progress=lambda rows, tokens: task.update(rows, f"{tokens:,} tokens"),
        )


def train(
    store: ActivationStore, plan: TrainingPlan, folder: Path, *, reporter: Reporter
) -> SparseAutoencoder:
    """Train an SAE on a store, resuming from the last checkpoint in ``folder``."""
    from finescope.sae import train_sae
    from finescope.sae.state import STATE_NAME, finished_epochs

    latents = plan.sae.latents(store.width)
    reporter.say(
        f"training: {latents:,} latents on {store.num_tokens:,} tokens of width {store.width}, "
        f"{plan.training.num_epochs} epochs, {plan.steps:,} steps of {plan.training.batch_tokens} tokens"
    )
    if finished_epochs(folder / STATE_NAME) == plan.training.num_epochs:
        sae = train_sae(store, plan.sae, plan.training, out_dir=folder, progress=False)
        reporter.say("training: done before")
        return sae
    with reporter.task("training", plan.steps, "steps") as task:

        def show(record: dict[str, Any]) -> None:
            note = (
                f"FVU {record['fvu']:.3f}, L0 {record['l0']:.1f}, dead {record['dead_fraction']:.1%}, "
                f"{record['tokens_per_second']:,.0f} tokens/s"
            )
            task.update(record["step"], note)

        sae = train_sae(store, plan.sae, plan.training, out_dir=folder, progress=show)
        task.update(plan.steps)
        return sae


def plan_for(job: Job, tokens: int, width: int) -> TrainingPlan:
    """Return the training plan of a job."""
    return plan_training(tokens, width, device=job.device, seed=job.seed, sae=job.sae, training=job.training)


def training_log(folder: Path) -> list[dict[str, Any]]:
    """Read the training log beside an SAE; [] where there is none (an SAE from elsewhere)."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that a killed run was writing
    return records


def load_sae(path: str | Path, layer: str | None, device: str, width: int | None) -> SparseAutoencoder:
    """Load an SAE and check that it reads activations of the width there is.

    Raises:
        InputError: no SAE there, or one of another width.
    """
    from finescope.sae import SparseAutoencoder

    try:
        sae = SparseAutoencoder.load(path, device=device)
    except InputError:
        if layer is None:
            raise
        sae = SparseAutoencoder.load(path, hookpoint=layer, device=device)
    if width is not None and sae.d_in != width:
        raise InputError(
            f"the SAE in {path} reads activations of width {sae.d_in}, but the layer gives width {width}; "
            "use the "
            "model and layer that the SAE was trained on"
        )
    return sae


def embed(
    sae: SparseAutoencoder,
    tap: ActivationTap,
    rows: Corpus,
    folder: Path,
    *,
    name: str,
    top_k: int,
    pooling: str,
    reporter: Reporter,
    overwrite: bool = False,
) -> CodeStore:
    """Embed all rows into a store of document codes; finished shards are kept."""
    from finescope.embeddings.rows import embed_rows

    with reporter.task(name, rows.len_hint, "rows") as task:
        return embed_rows(
            sae,
            tap,
            rows,
            folder,
            top_k=top_k,
            pooling=pooling,
            mode="overwrite" if overwrite else "resume",
            progress=lambda count, tokens: task.update(count, f"{tokens:,} tokens"),
        )


def _quiet_transformers() -> None:
    """Keep the library's own bars and notices off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

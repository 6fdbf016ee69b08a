"""Training the SAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finescope.device import usable_device
from finescope.storage.files import make_folder, read_json, write_json
from finescope.workflow.layout import ACTIVATIONS, COORDINATES, SAE
from finescope.workflow.plan import TrainingPlan, plan_training
from finescope.workflow.stage import Stage
from finescope.workflow.stages.sinks import note_beside, tokens_of

if TYPE_CHECKING:
    from finescope.progress import Reporter
    from finescope.sae import Autoencoder
    from finescope.sae.parallel import Ranks
    from finescope.sae.sources import TokenStore
    from finescope.workflow.context import Context
    from finescope.workflow.job import Job


@dataclass(frozen=True)
class Train(Stage):
    """Trains an SAE on the stored activations, resuming from its last checkpoint."""

    name = "train"
    reads = (ACTIVATIONS,)
    writes = (SAE,)
    expensive = True

    def decisive(self, context: Context) -> Mapping[str, Any]:
        """Return the activations and what of the plan the user set."""
        job = context.job
        return {
            "activations": context.ledger.key("activations"),
            "seed": job.seed,
            "sae": job.sae,
            "training": job.training,
            "sinks": job.sinks,
            **({"coordinates": job.recipe().coordinates} if job.recipe().coordinates else {}),
        }

    def work(self, context: Context) -> Mapping[str, Any]:
        """Train; return sizes and the last metrics."""
        from finescope.activations import ActivationStore
        from finescope.activations.coordinates import OnCoordinates
        from finescope.embeddings.embedder import sae_fingerprint
        from finescope.sae.metrics import training_log
        from finescope.sae.spread import spread

        store = ActivationStore(context.folder / ACTIVATIONS)
        found = context.ledger.facts("sinks")
        tokens, folder, seen = tokens_of(store, found), context.folder / SAE, store.facts.get("source")
        chosen = self._coordinates(context)
        if chosen:
            tokens, folder = OnCoordinates(tokens, chosen), folder / COORDINATES
        plan = plan_for(context.job, tokens.num_tokens, tokens.width)
        sae = train(tokens, plan, folder, reporter=context.reporter, seen=seen)
        log = training_log(folder)
        if chosen:
            sae = spread(sae, chosen, store.width)
            sae.save(context.folder / SAE)
        note_beside(context.folder / SAE, found.get("max_norm"))
        last = log[-1] if log else {}
        return {
            **({"coordinates": chosen} if chosen else {}),
            "tokens": tokens.num_tokens,
            "latents": sae.num_latents,
            "k": sae.cfg.k,
            "steps": plan.steps,
            "training": plan.training.to_dict(),
            "identity": sae_fingerprint(sae),
            **{name: last.get(name) for name in ("fvu", "l0", "dead_fraction")},
        }

    def _coordinates(self, context: Context) -> list[int]:
        """Return the coordinates that are trained on; [] for all. They are chosen once."""
        count, place = context.job.recipe().coordinates, context.folder / SAE / COORDINATES / "chosen.json"
        if not count:
            return []
        if not place.is_file():
            context.reporter.say(f"choosing {count} of {context.tap.width} coordinates by Jacobian row norms")
            from finescope.activations.coordinates import choose_coordinates

            rows = context.corpus.rows(records=False)
            make_folder(place.parent)
            limit = context.ledger.facts("sinks").get("max_norm")
            chosen = choose_coordinates(
                context.corpus_tap, rows, count, seed=context.job.seed, max_norm=limit
            )
            write_json(place, chosen)
        return list(read_json(place))


def train(
    store: TokenStore,
    plan: TrainingPlan,
    folder: Path,
    *,
    reporter: Reporter,
    ranks: Ranks | None = None,
    seen: Mapping[str, Any] | None = None,
) -> Autoencoder:
    """Train an SAE on a store, with all ``ranks``, resuming from the last checkpoint in ``folder``.

    What the store was ``seen`` in, ``model`` and ``layer``, is written beside the weights.
    """
    from finescope.sae import train_sae
    from finescope.sae.parallel import ALONE
    from finescope.sae.state import STATE_NAME, finished_epochs

    ranks = ranks or ALONE
    latents = plan.sae.latents(store.width)
    reporter.say(
        f"training: {latents:,} latents on {store.num_tokens:,} tokens of width {store.width}, "
        f"{plan.training.num_epochs} epochs, {plan.steps:,} steps of {plan.training.batch_tokens} tokens"
    )
    if finished_epochs(folder / STATE_NAME) == plan.training.num_epochs:
        sae = train_sae(store, plan.sae, plan.training, out_dir=folder, progress=False, ranks=ranks)
        reporter.say("training: done before")
    else:
        sae = train_sae(store, plan.sae, plan.training, out_dir=folder, progress=reporter, ranks=ranks)
    if seen and ranks.first:
        sae.origin = dataclasses.replace(sae.origin, model=_name_of(seen), hook=seen.get("layer"))
        sae.save(folder)
    return sae


def _name_of(seen: Mapping[str, Any]) -> str | None:
    """Return the name of a model; of a folder, its last part: where it lies is nobody's business."""
    name = seen.get("model")
    return Path(name).name if name and Path(name).expanduser().exists() else name


def check_training(context: Context) -> None:
    """Refuse what training would, before the model reads what it is to be trained on.

    Raises:
        InputError: sizes that don't go together, or not with the layer's width; a device that isn't there; or
            a model whose coordinates can't be chosen.
    """
    from finescope.activations.coordinates import input_embeddings
    from finescope.sae.architectures import architecture_class

    tap, wanted = context.tap, context.job.recipe().coordinates
    if 0 < wanted < tap.width:
        input_embeddings(tap)
    width = min(wanted or tap.width, tap.width)
    plan = plan_for(context.job, context.job.train_tokens, width)
    usable_device(plan.training.device)
    architecture_class(plan.sae.architecture)(width, plan.sae, device="meta")


def plan_for(job: Job, tokens: int, width: int) -> TrainingPlan:
    """Return the training plan of a job."""
    return plan_training(tokens, width, device=job.device, seed=job.seed, sae=job.sae, training=job.training)

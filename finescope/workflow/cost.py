"""What a run will take, on paper: tokens, operations, hours, disk and network, each from a formula.

Nothing here is measured, and nothing of a run is needed: the same function tells the cost of a plan at hand,
whose facts ``workload.of_run`` finds, and that of a corpus that nobody has yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from finescope.progress import counted, duration
from finescope.workflow.plan import TRAINING_PRODUCTS

_STATE = 4
"""An autoencoder as it is kept: its weights, and in the state of its training weights and two moments."""


@dataclass(frozen=True)
class Workload:
    """What a run is about: the numbers that its cost follows from.

    Attributes:
        documents: N.
        tokens: of all documents, special ones left out.
        model_flops: operations of the model a token, up to the layer that is read: see ``ForwardCost``.
        parameters: of the model up to that layer.
        model_bytes: size of the model's files.
        width: D.
        latents: F.
        kept: latents kept of a document, in the mean.
        bounded: whether ``kept`` is what they are at most, for want of an autoencoder to count them with.
        value_bytes: of a stored value of a code.
        means: whether the mean activations of each document are kept too.
        beside_bytes: a document's words, id, place and hash beside its code, and where that begins.
        score_bytes: a document's lines in the tables of scores and selection.
        targets, target_tokens: documents and tokens of the targets.
        sample_tokens, sample_documents: of the corpus, whose activations are stored.
        sample_bytes: a document's line beside its activations.
        activation_bytes: of a stored activation.
        trained_tokens: tokens that training sees, over all epochs; 0 if an autoencoder is given.
        sae_bytes: size of an autoencoder that is given.
        selected: documents selected, at most.
        row_bytes: of a selected row.
        plan_bytes: of the plan.
        remote_bytes: of the corpus, behind URLs.
        passes: how often its rows are gone through.
        sent: whether the results are copied to a URL.
    """

    documents: int
    tokens: float = 0.0
    model_flops: float = 0.0
    parameters: int = 0
    model_bytes: int = 0
    width: int = 0
    latents: int = 0
    kept: float = 0.0
    bounded: bool = False
    value_bytes: int = 2
    means: bool = True
    beside_bytes: float = 0.0
    score_bytes: float = 0.0
    targets: int = 0
    target_tokens: float = 0.0
    sample_tokens: float = 0.0
    sample_documents: float = 0.0
    sample_bytes: float = 0.0
    activation_bytes: int = 2
    trained_tokens: float = 0.0
    sae_bytes: int = 0
    selected: int = 0
    row_bytes: float = 0.0
    plan_bytes: int = 0
    remote_bytes: int = 0
    passes: int = 0
    sent: bool = False

    @property
    def index_bytes(self) -> int:
        """Bytes of the number of a latent in a stored code."""
        return 2 if self.latents <= 1 << 16 else 4

    @property
    def weight_bytes(self) -> int:
        """Size of an autoencoder's weights: encoder and decoder [F,D] and their biases, in float32."""
        return 4 * (2 * self.latents * self.width + self.latents + self.width)


@dataclass(frozen=True)
class Throughput:
    """How fast the workers are.

    Attributes:
        model: operations a second of the model, of one worker, sustained.
        products: those of the autoencoder.
        workers: how many embed at a time.
        said: where the two are from, in words.
    """

    model: float
    products: float
    workers: int = 1
    said: str = "given"

    @classmethod
    def given(
        cls,
        load: Workload,
        workers: int,
        *,
        flops: float | None = None,
        tokens_per_second: float | None = None,
    ) -> Throughput:
        """Return what a user says of one worker: sustained operations or tokens a second."""
        if flops is None:
            if tokens_per_second is None:
                raise ValueError("give flops or tokens_per_second")
            flops = tokens_per_second * (load.model_flops + encoding_flops(load))
            return cls(flops, flops, workers, f"given: {tokens_per_second:,.0f} tokens/s a worker")
        return cls(flops, flops, workers, f"given: {flops:.3g} FLOP/s a worker")


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        load: what it is about.
        rates: how fast the workers are taken to be.
        flops: operations, by stage.
        hours: device hours, by stage.
        disk: bytes, by what is kept.
        network: bytes, by what travels.
    """

    load: Workload
    rates: Throughput
    flops: dict[str, float] = field(default_factory=dict)
    hours: dict[str, float] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    network: dict[str, int] = field(default_factory=dict)

    @property
    def serial_hours(self) -> float:
        """Hours of what one process does, however many workers embed."""
        return sum(value for name, value in self.hours.items() if name != "embedding")

    @property
    def elapsed_hours(self) -> float:
        """Hours until the last row is embedded: only embedding is divided among the workers."""
        return self.serial_hours + self.hours["embedding"] / self.rates.workers

    def plain(self) -> dict[str, Any]:
        """Return plain values."""
        load, rates = self.load, self.rates
        return {
            "documents": load.documents,
            "tokens": round(load.tokens),
            "parameters": load.parameters,
            "latents_per_document": round(load.kept, 2),
            "bytes_per_document": {name: round(value, 2) for name, value in of_a_document(load).items()},
            "latents_are_a_bound": load.bounded,
            "flops": {name: float(f"{value:.6g}") for name, value in self.flops.items()},
            "throughput": {
                "said": rates.said,
                "model_flops_per_second": float(f"{rates.model:.6g}"),
                "autoencoder_flops_per_second": float(f"{rates.products:.6g}"),
                "workers": rates.workers,
            },
            "device_hours": {name: float(f"{value:.6g}") for name, value in self.hours.items()},
            "serial_hours": float(f"{self.serial_hours:.6g}"),
            "elapsed_hours": float(f"{self.elapsed_hours:.6g}"),
            "disk_bytes": self.disk,
            "network_bytes": self.network,
        }

    def lines(self) -> list[str]:
        """Return what is to be printed."""
        load, rates, encoding = self.load, self.rates, encoding_flops(self.load)
        stages = "; ".join(f"{name} {span(value)}" for name, value in self.hours.items() if value)
        undivided = f", of which {span(self.serial_hours)} by one process" if rates.workers > 1 else ""
        bound = "at most " if load.bounded else ""
        return [
            f"documents: {load.documents:,}, tokens: {load.tokens:,.0f}",
            f"operations: {sum(self.flops.values()):.3g} FLOP",
            f"  a token: {load.model_flops:.3g} of the model, {encoding:.3g} of the autoencoder",
            f"  parameters of the model up to the layer: {load.parameters:,}",
            f"throughput, {rates.said}",
            f"  FLOP/s of a worker: {rates.model:.3g} in the model, {rates.products:.3g} in the autoencoder",
            f"device time: {span(sum(self.hours.values()))} ({stages})",
            f"  with {counted(rates.workers, 'worker')}: {span(self.elapsed_hours)}{undivided}",
            "  reading, scoring and selecting come on top",
            f"disk: {size(sum(self.disk.values()))}, and some MB of plots",
            f"  latents of a document: {bound}{load.kept:,.3g}",
            *(f"  {name}: {size(value)}" for name, value in self.disk.items() if value),
            f"network: {size(sum(self.network.values()))}",
            *(f"  {name}: {size(value)}" for name, value in self.network.items() if value),
        ]


def encoding_flops(load: Workload) -> float:
    """Return the operations of encoding a token: the product of D and F, 2DF."""
    return 2.0 * load.width * load.latents


def of_a_document(load: Workload) -> dict[str, float]:
    """Return the bytes that a document takes: its code, its mean, what stands beside them, its scores."""
    return {
        "codes": load.kept * (load.index_bytes + load.value_bytes),
        "means": 2.0 * load.width if load.means else 0.0,
        "beside the codes": load.beside_bytes,
        "scores": load.score_bytes,
    }


def training_flops(load: Workload) -> float:
    """Return the operations of training: five products of D and F a token."""
    return TRAINING_PRODUCTS * encoding_flops(load) * load.trained_tokens


def estimate(load: Workload, rates: Throughput) -> Estimate:
    """Return the cost of a run.

    With B tokens, b of them in the sample, N documents of m kept latents each, n of them in the sample, and
    p = 2 or 4 bytes for a latent's number (F up to 65 536, or more):

    ==================  =====================================================================
    operations
    sample              b × model
    training            5 × 2DF × trained tokens
    embedding           (B − b) × model + B × 2DF: the sample isn't read by the model again
    targets             their tokens × (model + 2DF)
    hours               operations / sustained operations a second / 3600
    disk
    plan                as it is
    activations         b × (D × their bytes + 4) + n × (line + 8)
    autoencoder         4 × (8DF + 4F + 4D) + 8F with its training's state, or as it was given
    codes               N × m × (p + bytes of a value)
    means               N × 2D
    beside the codes    N × (words, id, place, hash, where the code begins)
    codes of targets    the three before, of the targets
    scores              N × a line in the tables of scores and selection
    selected rows       their number × bytes of a row
    network
    corpus              bytes behind URLs × passes over them
    model               workers × (the model's files + the autoencoder)
    results             all of the disk but the activations, where they are copied to a URL
    ==================  =====================================================================

    Args:
        load: what the run is about.
        rates: how fast the workers are.
    """
    encoding, unread = encoding_flops(load), load.tokens - load.sample_tokens
    flops = {
        "sample": load.sample_tokens * load.model_flops,
        "training": training_flops(load),
        "embedding": (load.tokens - load.sample_tokens) * load.model_flops
        + load.tokens * encoding_flops(load),
        "targets": load.target_tokens * (load.model_flops + encoding_flops(load)),
    }
    seconds = {
        "sample": flops["sample"] / rates.model,
        "training": flops["training"] / rates.products,
        "embedding": unread * load.model_flops / rates.model + load.tokens * encoding / rates.products,
        "targets": load.target_tokens * (load.model_flops / rates.model + encoding / rates.products),
    }
    autoencoder = load.sae_bytes or _STATE * load.weight_bytes + 8 * load.latents
    each = of_a_document(load)
    disk = {
        "plan": load.plan_bytes,
        "activations": load.sample_tokens * (load.width * load.activation_bytes + 4)
        + load.sample_documents * (load.sample_bytes + 8),
        "autoencoder": 0 if load.sae_bytes else autoencoder,
        "codes": load.documents * each["codes"],
        "means": load.documents * each["means"],
        "beside the codes": load.documents * each["beside the codes"],
        "codes of the targets": load.targets * (sum(each.values()) - each["scores"]),
        "scores": load.documents * each["scores"],
        "selected rows": load.selected * load.row_bytes,
    }
    weights = load.sae_bytes or load.weight_bytes
    network = {
        "corpus": load.remote_bytes * load.passes,
        "model": rates.workers * (load.model_bytes + weights),
        "results": sum(disk.values()) - disk["activations"] if load.sent else 0,
    }
    return Estimate(
        load,
        rates,
        flops,
        {name: value / 3600 for name, value in seconds.items()},
        {name: math.ceil(value) for name, value in disk.items()},
        {name: math.ceil(value) for name, value in network.items()},
    )


def size(number: float) -> str:
    """Return a number of bytes in words, in powers of a thousand."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if number >= 10**power:
            return f"{number / 10**power:,.4g} {unit}"
    return f"{number:,.0f} bytes"


def span(hours: float) -> str:
    """Return hours in words."""
    return f"{hours:,.0f} h" if hours >= 100 else duration(3600 * hours)

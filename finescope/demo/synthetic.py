"""The document's demonstration: synthetic activations, an SAE, curation, evaluation, plots."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finescope.config import CurationConfig, SaeConfig, TrainingConfig
from finescope.storage.files import map_tensors, read_json, write_json, write_tensors

if TYPE_CHECKING:
    from finescope.sae import Autoencoder

Say = Callable[[str], None]
DATA = "dummy_data"
SAE = "trained_sae"


def synthetic_demo(
    out: Path,
    say: Say,
    *,
    target_domain: str = "stem",
    target_samples: int = 50,
    samples: int = 1000,
    seq_len: int = 128,
    hidden_dim: int = 512,
    sae_cfg: SaeConfig | None = None,
    train_cfg: TrainingConfig | None = None,
    curation_cfg: CurationConfig | None = None,
    fresh: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Run the demonstration into ``out`` and return its metrics.

    Writes ``dummy_data/``, ``trained_sae/``, ``metrics.json`` and PNG plots. Data and SAE of an earlier run
    with the same settings are used again unless ``fresh``.

    Args:
        out: folder.
        say: called with every line of output.
        target_domain, target_samples, samples, seq_len, hidden_dim: see ``create_activation_dataset``.
        sae_cfg, train_cfg, curation_cfg: configurations; None takes this demonstration's defaults.
        fresh: make new data and train anew.
        progress: as for ``train_sae``.
    """
    from finescope.sae import train_sae

    sae_cfg = sae_cfg or SaeConfig(expansion_factor=4, k=16, multi_topk=False)
    train_cfg = train_cfg or TrainingConfig(num_epochs=5, learning_rate=1e-3, l1_weight=0.0, log_every=1000)
    curation_cfg = curation_cfg or CurationConfig(
        preset="default", use_clustering=False, similarity_threshold=0.0
    )
    say("=== FineScope Experiment Setup ===")
    shape = {
        "target_domain": target_domain,
        "target_samples": target_samples,
        "large_dataset_samples": samples,
        "seq_len": seq_len,
        "hidden_dim": hidden_dim,
    }
    targets, pool, labels = _dataset(out / DATA, shape, say, fresh)
    say(f"Target activations: {targets.shape}")
    say(f"Large dataset activations: {pool.shape}")

    say("\n=== SAE Training ===")
    say(f"Training on {len(pool)} samples with shape {pool.shape}")
    sae = train_sae(pool, sae_cfg, train_cfg, out_dir=out / SAE, resume=not fresh, progress=progress)
    say(f"SAE with {sae.num_latents} latents, {sae_cfg.k} per token, saved to {out / SAE}")

    results = _curate(targets, pool, sae, curation_cfg, say)

    say("\n=== Detailed Analysis ===")
    metrics = _analyse(results, targets, pool, labels, target_domain, curation_cfg, say)
    metrics["settings"] = {
        **shape,
        "sae": sae_cfg.to_dict(),
        "training": train_cfg.to_dict(),
        "curation": curation_cfg.to_dict(),
    }
    write_json(out / "metrics.json", metrics)
    _plots(out, results, labels, target_domain)
    say(f"\nPlots, metrics, data and SAE are in {out}")
    return metrics


def _dataset(folder: Path, shape: dict[str, Any], say: Say, fresh: bool) -> tuple[Any, Any, list[str]]:
    """Make the data set, or read the one that an earlier run with the same settings made."""
    from finescope.data_generator import create_activation_dataset

    note = folder / "dataset.json"
    if note.is_file() and not fresh:
        kept = read_json(note)
        if kept.get("shape") == shape:
            say("Loading existing dummy dataset...")
            tensors, _ = map_tensors(folder / "activations.safetensors")
            return tensors["targets"], tensors["pool"], list(kept["labels"])
    say("Creating new dummy dataset...")
    targets, pool, labels = create_activation_dataset(**shape)
    with contextlib.suppress(FileNotFoundError):
        note.unlink()  # so that the note never speaks of other tensors than those beside it
    write_tensors(folder / "activations.safetensors", {"targets": targets, "pool": pool}, {})
    write_json(note, {"shape": shape, "labels": labels})
    return targets, pool, labels


def _curate(targets: Any, pool: Any, sae: Autoencoder, cfg: CurationConfig, say: Say) -> dict[str, Any]:
    """Run the pipeline and print what it selected."""
    from finescope.curation import run_curation_pipeline

    say("\n=== Dataset Curation Experiment ===")
    say("Extracting embeddings from target domain...")
    say("Extracting embeddings from large dataset...")
    say(f"Curating dataset using cosine similarity (preset {cfg.preset})...")
    results = run_curation_pipeline(targets, pool, sae, cfg)
    quality = results["metrics"]
    say("\n=== Curation Results ===")
    say(f"Selected {quality['num_selected']} samples")
    say(f"Average similarity to target: {_four(quality['avg_similarity_to_target'])}")
    say(f"Diversity of selected samples: {_four(quality['diversity_of_selected'])}")
    return results


def _analyse(
    results: dict[str, Any],
    targets: Any,
    pool: Any,
    labels: list[str],
    domain: str,
    cfg: CurationConfig,
    say: Say,
) -> dict[str, Any]:
    """Print and return the label distribution, the accuracy, and the baselines."""
    from finescope.curation.compare import compare_methods
    from finescope.curation.scoring.evidence import Evidence
    from finescope.curation.scoring.presets import PRESETS

    chosen = results["selected_indices"].tolist()
    counts = Counter(labels[row] for row in chosen)
    say("Domain distribution in selected samples:")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        say(f"  {name}: {count} samples ({count / max(1, len(chosen)):.1%})")
    accuracy = counts[domain] / max(1, len(chosen))
    say(f"\nTarget domain accuracy: {accuracy:.1%}")
    relevant = np.array([label == domain for label in labels])
    at, pooling = max(1, cfg.top_k_selection), PRESETS[results["preset"]].pooling
    lines = compare_methods(
        relevant,
        Evidence(results["large_embeddings"], pooling, dense=pool.mean(dim=1)),
        Evidence(results["target_embeddings"], pooling, dense=targets.mean(dim=1)),
        at=(at,),
        draws=20,
        seed=cfg.seed,
    )
    say(f"\nThe same question to other methods (accuracy among the first {at}, average precision):")
    for line in lines:
        precision, average = line.metrics[f"precision@{at}"], line.metrics["average_precision"]
        say(
            f"  {line.name:<22} {precision.value:6.1%}   {average.value:.3f} [{average.low:.3f}, "
            f"{average.high:.3f}]"
        )
    return {
        "quality": results["metrics"],
        "target_domain": domain,
        "target_accuracy": accuracy,
        "distribution": dict(counts),
        "selected": chosen,
        "methods": [line.to_dict() for line in lines],
        "dropped": results["dropped"],
    }


def _plots(out: Path, results: dict[str, Any], labels: list[str], domain: str) -> None:
    from finescope.curation.scoring.presets import PRESETS
    from finescope.curation.scoring.weighting import resolve_weights
    from finescope.report import plots
    from finescope.report.figures import target_similarity
    from finescope.report.histogram import ScoreHistogram
    from finescope.report.look import write_png
    from finescope.report.projection import project

    pool, targets = results["large_embeddings"], results["target_embeddings"]
    chosen = results["selected_indices"]
    scores = results["scores"]
    weights = resolve_weights(PRESETS[results["preset"]].weights, pool, pool.num_latents)
    points = project(pool, targets, chosen, weights=weights)
    best = chosen[:60]
    cut = float(scores.score[chosen].min()) if len(chosen) else None
    relevant = np.array([label == domain for label in labels])
    drawings = {
        "pca": plots.scatter(points.corpus, points.selected, points.targets),
        "similarity_heatmap": plots.similarity_heatmap(
            target_similarity(pool, targets, best, weights),
            [f"target {row}" for row in range(len(targets))],
            [f"{labels[row]} {row}" for row in best],
        ),
        "score_histogram": plots.score_histogram(
            ScoreHistogram.of(
                lambda: [(np.where(scores.valid, scores.score, np.nan), relevant)], cut, labelled=True
            )
        ),
        "domain_distribution": plots.domain_bars(
            Counter(labels[row] for row in chosen), Counter(labels), target=[domain]
        ),
    }
    for name, drawing in drawings.items():
        write_png(drawing, out / f"{name}.png")


def _four(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

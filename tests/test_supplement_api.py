"""Code written for the supplement runs with only its import lines changed, and gets what was promised."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from finescope import CurationConfig, InputError, SparseCodes
from finescope.curation import kmeans_labels, run_curation_pipeline
from finescope.curation.scoring.presets import PRESETS, get_preset

BASIC = """
from config import SaeConfig, TrainingConfig, CurationConfig
from sae import train_sae, extract_embeddings
from curation import run_curation_pipeline
from data_generator import create_activation_dataset

# Create dummy data
target_acts, large_acts, labels = create_activation_dataset(
    target_domain="stem",
    target_samples=50,
    large_dataset_samples=1000
)

# Train SAE
sae_cfg = SaeConfig(expansion_factor=32, k=32)
train_cfg = TrainingConfig(num_epochs=10, device="cpu")
sae = train_sae(large_acts, sae_cfg, train_cfg)

# Run curation
curation_cfg = CurationConfig(top_k_selection=100, use_clustering=True)
results = run_curation_pipeline(target_acts, large_acts, sae, curation_cfg)
"""

ADVANCED = """
# Custom SAE configuration
sae_cfg = SaeConfig(
    expansion_factor=64,      # Larger SAE
    k=64,                    # More active features
    multi_topk=True,         # Use Multi-TopK loss
    normalize_decoder=True    # Normalize decoder weights
)

# Custom training configuration
train_cfg = TrainingConfig(
    batch_size=64,
    num_epochs=20,
    learning_rate=5e-5,
    l1_weight=2e-3,         # Stronger sparsity
    device="cuda"            # Use GPU if available
)

# Custom curation configuration
curation_cfg = CurationConfig(
    top_k_activations=200,   # More activations
    top_k_selection=200,     # More selected samples
    use_clustering=True,      # Enable clustering
    num_clusters=10,         # More clusters
    similarity_threshold=0.6  # Higher threshold
)
"""
MODULES = ("config", "sae", "curation", "data_generator")


def with_our_imports(code: str) -> str:
    """The only change that a user makes."""
    pattern = rf"^from ({'|'.join(MODULES)}) import"
    return re.sub(pattern, r"from finescope.\1 import", code, flags=re.MULTILINE)


@pytest.fixture
def small_defaults(monkeypatch):
    """Shrink what the examples leave at its default: S and D of the data. Everything they pass is kept."""
    from finescope.data_generator import create_activation_dataset

    defaults = list(create_activation_dataset.__defaults__)
    assert defaults[4:6] == [128, 512]
    defaults[4:6] = [4, 8]
    monkeypatch.setattr(create_activation_dataset, "__defaults__", tuple(defaults))


class Directions:
    """An autoencoder in miniature: latent i is direction i. Enough of an SAE for the pipeline, and needs no
    training."""

    d_in = num_latents = 24
    device = torch.device("cpu")

    def encode(self, x):
        values, indices = torch.relu(x).topk(6, dim=-1)
        return type("Output", (), {"top_acts": values, "top_indices": indices})()


def activations(rows, own, seed, tokens=9):
    """Rows of tokens; ``own`` says which block of four directions a row prefers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, tokens, 24, generator=generator) * 0.4
    x[..., 20:] += 1.0  # four directions that everyone uses
    for row, block in enumerate(own):
        x[row, :, 4 * block : 4 * block + 4] += torch.rand(tokens, 4, generator=generator)
    return x


@pytest.fixture(scope="module")
def problem():
    labels = np.arange(150) % 5
    return activations(8, [2] * 8, 0), activations(150, labels, 1), labels


def run(problem, **cfg):
    exclude = cfg.pop("exclude", None)
    return run_curation_pipeline(problem[0], problem[1], Directions(), CurationConfig(**cfg), exclude=exclude)


def test_basic_example_runs_with_only_the_imports_changed(small_defaults):
    space: dict = {}
    exec(with_our_imports(BASIC), space)
    results = space["results"]
    assert tuple(space["target_acts"].shape) == (50, 4, 8)
    assert len(space["labels"]) == len(space["large_acts"]) == 1000
    assert space["sae"].num_latents == 8 * 32
    assert len(results["selected_indices"]) == 100
    assert len(set(results["selected_indices"].tolist())) == 100
    assert results["metrics"]["num_selected"] == 100
    embeddings = space["extract_embeddings"](space["sae"], space["target_acts"], 100)
    assert isinstance(embeddings, SparseCodes)
    assert embeddings.shape == (50, 256)


def test_advanced_example_runs_after_the_basic_imports(small_defaults):
    space: dict = {}
    imports = with_our_imports("\n".join(BASIC.strip().splitlines()[:4]))
    exec(imports + ADVANCED, space)
    assert space["sae_cfg"].latents(8) == 8 * 64
    assert space["train_cfg"].device == "cuda"
    # What the example configures is then used as in the basic one; a machine without a GPU takes the CPU and
    # one epoch is enough to see that all three configurations are accepted.
    space["train_cfg"].device, space["train_cfg"].num_epochs = "cpu", 1
    exec(
        "target_acts, large_acts, labels = create_activation_dataset(large_dataset_samples=300)\n"
        "sae = train_sae(large_acts, sae_cfg, train_cfg)\n"
        "results = run_curation_pipeline(target_acts, large_acts, sae, curation_cfg)\n",
        space,
    )
    results = space["results"]
    reaching = int((results["similarities"] >= 0.6).sum())
    assert len(results["selected_indices"]) == min(200, reaching)
    assert (results["selected_similarities"] >= 0.6).all()


def test_results_hold_the_supplements_metrics_and_ours(problem):
    results = run(problem, top_k_selection=20)
    assert {
        "selected_indices",
        "selected_similarities",
        "similarities",
        "metrics",
        "target_embeddings",
        "large_embeddings",
        "scores",
        "selection",
        "dropped",
        "preset",
        "config",
    } == set(results)
    assert {
        "avg_similarity_to_target",
        "min_similarity_to_target",
        "max_similarity_to_target",
        "diversity_of_selected",
        "num_selected",
    } <= set(results["metrics"])
    assert results["large_embeddings"].shape == (150, 24)
    assert results["similarities"].shape == (150,)


@pytest.mark.parametrize("clustering", [True, False])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_exactly_as_many_rows_as_asked_for(problem, preset, clustering):
    for size in (1, 7, 30):
        results = run(
            problem, preset=preset, use_clustering=clustering, top_k_selection=size, similarity_threshold=-1.0
        )
        assert len(results["selected_indices"]) == len(set(results["selected_indices"].tolist())) == size
    assert (
        len(run(problem, preset=preset, top_k_selection=999, similarity_threshold=-1.0)["selected_indices"])
        == 150
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_threshold_acts_on_the_plain_cosine(problem, preset, caplog):
    similarities = run(problem, preset=preset)["similarities"]
    targets = run(problem, preset=preset)["target_embeddings"].to_dense().double()
    pool = run(problem, preset=preset)["large_embeddings"].to_dense().double()
    cosines = torch.nn.functional.normalize(pool) @ torch.nn.functional.normalize(targets).T
    np.testing.assert_allclose(similarities, cosines.max(dim=1).values, atol=1e-12)
    threshold = float(np.sort(similarities)[-12]) - 1e-9
    results = run(problem, preset=preset, similarity_threshold=threshold, top_k_selection=50)
    assert sorted(results["selected_indices"].tolist()) == np.flatnonzero(similarities >= threshold).tolist()
    assert results["dropped"]["below_similarity"] == 138
    assert "12 rows selected instead of 50" in caplog.text


def test_targets_in_the_pool_are_not_selected(problem):
    first = run(problem, top_k_selection=10)["selected_indices"]
    exclude = np.zeros(150, bool)
    exclude[first[:4]] = True
    second = run(problem, top_k_selection=10, exclude=exclude)
    assert not exclude[second["selected_indices"]].any()
    assert len(second["selected_indices"]) == 10
    assert second["dropped"]["target"] == 4


def test_the_selected_rows_are_of_the_targets_domain(problem):
    accuracy = {
        preset: (problem[2][run(problem, preset=preset, top_k_selection=25)["selected_indices"]] == 2).mean()
        for preset in PRESETS
    }
    assert accuracy["default"] >= 0.9
    assert min(accuracy.values()) > 0.45  # the document's own example


def test_clustering_looks_only_into_each_targets_best_clusters(problem):
    results = run(problem, preset="supplement", top_k_selection=10, num_clusters=5)
    pool = results["large_embeddings"]
    labels = kmeans_labels(pool, 5, seed=42)
    unit = torch.nn.functional.normalize(pool.to_dense().double()).numpy()
    targets = torch.nn.functional.normalize(results["target_embeddings"].to_dense().double()).numpy()
    allowed = set()
    for target in targets:
        cosines = unit @ target
        best = sorted(range(5), key=lambda c: -cosines[labels == c].mean())[:2]
        for cluster in best:
            members = np.flatnonzero(labels == cluster)
            allowed |= set(members[np.argsort(-cosines[members], kind="stable")][:2].tolist())
    assert len(allowed) >= 10
    assert set(results["selected_indices"].tolist()) <= allowed


def test_embeddings_keep_the_identity_of_latents(problem):
    # The supplement kept sorted values without indices: rows of different latents then looked the same.
    x = torch.zeros(2, 3, 24)
    x[0, :, 1] = 2.0
    x[1, :, 5] = 2.0
    results = run_curation_pipeline(x[:1], x, Directions(), CurationConfig(similarity_threshold=-1.0))
    np.testing.assert_allclose(results["similarities"], [1.0, 0.0], atol=1e-12)


def test_paper_takes_the_best_by_maximum_whatever_clustering_says(problem):
    one = run(problem, preset="paper", use_clustering=True)["selected_indices"]
    two = run(problem, preset="paper", use_clustering=False)["selected_indices"]
    assert (
        one.tolist() == two.tolist() == run(problem, preset="paper")["scores"].ranking()[: len(one)].tolist()
    )


def test_misuse_is_refused(problem):
    with pytest.raises(ValueError, match="known are default, contrast, paper, paper-v3, supplement"):
        get_preset("best")
    with pytest.raises(InputError, match="target activations hold no samples"):
        run_curation_pipeline(problem[0][:0], problem[1], Directions())
    with pytest.raises(InputError, match="pool activations hold no samples"):
        run_curation_pipeline(problem[0], problem[1][:0], Directions())


def test_similarities_are_the_cosines_of_the_codes_as_they_are(problem):
    """Whatever a preset weighs; ``default`` ranks by something else."""
    supplement, default = run(problem, preset="supplement"), run(problem, preset="default")
    np.testing.assert_array_equal(supplement["similarities"], supplement["scores"].nearest_similarity)
    unit = [
        torch.nn.functional.normalize(default[name].to_dense().double()).numpy()
        for name in ("large_embeddings", "target_embeddings")
    ]
    np.testing.assert_allclose(default["similarities"], (unit[0] @ unit[1].T).max(axis=1), atol=1e-12)
    assert np.abs(default["similarities"] - default["scores"].nearest_similarity).max() > 0.01

"""A demonstration without an answer shows nothing: domains must be there, fixed, hidden and hard."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from finescope import create_activation_dataset
from finescope.curation import DenseBaseline, precision_at_k, rank_rows
from finescope.data_generator import DOMAINS, build_world

SMALL = {"target_samples": 20, "large_dataset_samples": 203, "seq_len": 24, "hidden_dim": 96}


@pytest.fixture(scope="module")
def default_pooled():
    """Token means of the default data set; the tokens themselves take 262 MB."""
    targets, pool, labels = create_activation_dataset()
    assert targets.shape == (50, 128, 512)
    assert pool.shape == (1000, 128, 512)
    assert targets.dtype == pool.dtype == torch.float32
    return targets.mean(dim=1), pool.mean(dim=1), labels


def test_call_shape_is_the_supplements():
    parameters = inspect.signature(create_activation_dataset).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "target_domain": "stem",
        "large_dataset_domains": None,
        "target_samples": 50,
        "large_dataset_samples": 1000,
        "seq_len": 128,
        "hidden_dim": 512,
        "device": "cpu",
        "mixing": 0.4,
        "noise": 0.1,
        "seed": 42,
    }


def test_labels_are_balanced_and_in_random_order(default_pooled):
    _, _, labels = default_pooled
    assert sorted(set(labels)) == sorted(DOMAINS)
    assert all(labels.count(name) == 200 for name in DOMAINS)  # a random order finds 20 %
    assert labels[:5] != list(DOMAINS)
    assert 5 <= labels[:50].count("stem") <= 16
    _, pool, few = create_activation_dataset(**SMALL)
    assert len(few) == len(pool) == 203
    assert {few.count(name) for name in DOMAINS} == {40, 41}


def test_same_seed_same_bytes_other_seed_other_data():
    first, second = create_activation_dataset(**SMALL), create_activation_dataset(**SMALL)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
    other = create_activation_dataset(**SMALL, seed=7)
    assert not torch.equal(first[1], other[1])


def test_data_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = create_activation_dataset(**SMALL)[1]
        torch.set_num_threads(2)
        assert torch.equal(one, create_activation_dataset(**SMALL)[1])
    finally:
        torch.set_num_threads(before)


def test_directions_belong_to_the_domain_and_not_to_the_call():
    world = build_world(96)
    again = build_world(96)
    for name in DOMAINS:
        assert np.array_equal(world.domains[name], again.domains[name])
        np.testing.assert_allclose(np.linalg.norm(world.domains[name], axis=1), 1, atol=1e-6)
    assert not np.allclose(world.domains["stem"], world.domains["arts"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_targets_and_pool_share_the_domains_directions(domain):
    # Two calls with different seeds: what links them can only be the fixed directions.
    targets, _, _ = create_activation_dataset(domain, **SMALL, mixing=0.0)
    _, pool, labels = create_activation_dataset(domain, **SMALL, mixing=0.0, seed=99)
    world = build_world(96)
    own = world.domains[domain]
    inside = (pool.mean(dim=1).numpy() - world.offset) @ own.T
    truth = np.array([label == domain for label in labels])
    assert inside[truth].mean() > inside[~truth].mean() + 0.02
    seeds = (targets.mean(dim=1).numpy() - world.offset) @ own.T
    assert seeds.mean() > inside[~truth].mean() + 0.02


def test_mixing_hides_the_domain_and_noise_adds_noise():
    world = build_world(96)

    def signal(mixing):
        targets, _, _ = create_activation_dataset(**SMALL, mixing=mixing, noise=0.0)
        return float(((targets.mean(dim=1).numpy() - world.offset) @ world.domains["stem"].T).mean())

    assert signal(0.0) > signal(0.5) > signal(1.0)
    quiet = create_activation_dataset(**SMALL, noise=0.0)[0]
    loud = create_activation_dataset(**SMALL, noise=1.0)[0]
    assert float((loud - quiet).norm(dim=-1).mean()) == pytest.approx(1.0, rel=0.05)


def test_dense_activations_find_the_domain_but_far_from_perfectly(default_pooled):
    targets, pool, labels = default_pooled
    truth = np.array([label == "stem" for label in labels])
    baseline = DenseBaseline(pool, targets)
    everyone = np.arange(50)
    best = precision_at_k(rank_rows(baseline.max_cosine(everyone)), truth, 100)
    centred = precision_at_k(rank_rows(baseline.centred_mean(everyone)), truth, 100)
    assert 0.3 < best < 0.9
    assert 0.3 < centred < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_domain": "maths"}, "unknown domain 'maths'"),
        ({"large_dataset_domains": ["arts", "law"]}, "unknown domain 'law'"),
        ({"large_dataset_domains": []}, "empty"),
        ({"target_samples": -1}, "negative"),
        ({"seq_len": 0}, "at least 1"),
        ({"mixing": 1.5}, "mixing"),
        ({"noise": -0.1}, "noise"),
    ],
)
def test_misuse_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        create_activation_dataset(**{**SMALL, **change})


def test_a_pool_of_chosen_domains_and_of_nothing():
    _, _, labels = create_activation_dataset("arts", ["arts", "business"], 3, 10, 4, 16)
    assert sorted(labels) == ["arts"] * 5 + ["business"] * 5
    targets, pool, labels = create_activation_dataset("arts", None, 0, 0, 4, 16)
    assert (tuple(targets.shape), tuple(pool.shape), labels) == ((0, 4, 16), (0, 4, 16), [])

"""The configurations are the supplement's public API: names, defaults and round trips must hold."""

from __future__ import annotations

import dataclasses

import pytest

from finescope import CurationConfig, SaeConfig, TrainingConfig

SUPPLEMENT = {
    SaeConfig: {
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 32,
        "multi_topk": True,
    },
    TrainingConfig: {
        "batch_size": 32,
        "num_epochs": 10,
        "learning_rate": 1e-4,
        "l1_weight": 1e-3,
        "device": "cpu",
        "save_every": 5,
        "log_every": 100,
    },
    CurationConfig: {
        "top_k_activations": 100,
        "top_k_selection": 100,
        "similarity_threshold": 0.5,
        "use_clustering": True,
        "num_clusters": 5,
    },
}


@pytest.mark.parametrize("cls", SUPPLEMENT)
def test_defaults_are_the_supplements(cls: type) -> None:
    config = cls()
    for name, value in SUPPLEMENT[cls].items():
        assert getattr(config, name) == value
    # Their order too: positional construction must mean the same.
    assert [field.name for field in dataclasses.fields(cls)][: len(SUPPLEMENT[cls])] == list(SUPPLEMENT[cls])


@pytest.mark.parametrize("cls", SUPPLEMENT)
def test_dict_round_trip(cls: type) -> None:
    config = cls()
    assert cls.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="has no field zeal"):
        cls.from_dict({"zeal": 1})
    assert cls.from_dict({"zeal": 1}, drop_extra_fields=True) == config


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (SaeConfig, "k", 0),
        (SaeConfig, "expansion_factor", 0),
        (SaeConfig, "num_latents", -1),
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "learning_rate", 0.0),
        (TrainingConfig, "l1_weight", -1e-3),
        (CurationConfig, "similarity_threshold", 1.5),
        (CurationConfig, "num_clusters", 0),
        (CurationConfig, "top_k_selection", 0),
    ],
)
def test_out_of_range_values_are_named(cls: type, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{cls.__name__}: {name}"):
        cls(**{name: value})


def test_latents() -> None:
    assert SaeConfig().latents(512) == 16384
    assert SaeConfig(num_latents=100).latents(512) == 100


@pytest.mark.parametrize("value", [2.5, 2.0, "2", None, True])
def test_counts_are_whole_numbers(value: object) -> None:
    for build in (
        lambda: SaeConfig(k=value),  # type: ignore[arg-type]
        lambda: TrainingConfig(batch_size=value),  # type: ignore[arg-type]
        lambda: CurationConfig(top_k_selection=value),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="must be a whole number"):
            build()

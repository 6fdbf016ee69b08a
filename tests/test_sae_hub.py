"""Autoencoders by their names on the hub: from the cache without a network, else only the files needed.

The hub itself is played by a table of files; what the library does with its cache is the library's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from finescope.errors import InputError
from finescope.sae import load_sae
from finescope.sae.formats import public

DATA = Path(__file__).parent / "data" / "sae"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A cache of the hub, into which files of tests/data are put as snapshots of repositories."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(case: str, repository: str) -> Path:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
        place = folder / "snapshots/0123456789abcdef0123456789abcdef01234567"
        shutil.copytree(DATA / case, place)
        return place

    return put


def test_the_cache_is_enough(cache: Callable[[str, str], Path]) -> None:
    cache("sparsify/topk", "EleutherAI/sae-pythia-70m-32k")
    for name in (
        "EleutherAI/sae-pythia-70m-32k",
        "EleutherAI/sae-pythia-70m-32k/layers.0",
        "EleutherAI/sae-pythia-70m-32k#layers.0",
    ):
        assert load_sae(name).origin.hook == "layers.0"
    assert load_sae("EleutherAI/sae-pythia-70m-32k", "layers.0").num_latents == 64
    with pytest.raises(InputError, match=r"'layers\.1'; it has layers\.0"):
        load_sae("EleutherAI/sae-pythia-70m-32k#layers.1")


def test_neither_here_nor_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"no autoencoder EleutherAI/x: .* cache .* switched off by HF_HUB_OFFLINE"
    ):
        load_sae("EleutherAI/x")
    with pytest.raises(InputError, match="is not a directory"):
        load_sae(tmp_path / "some/folder")


class Hub:
    """Repositories by name, with the paths of their files; and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.files: dict[str, Any] = {}
        self.asked: list[list[str]] = []
        monkeypatch.setattr("finescope.hub.reachable", lambda: True)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda _, name: self.list(name))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def list(self, name: str) -> list[str]:
        found = self.files[name]
        if isinstance(found, Exception):
            raise found
        return list(found)

    def download(self, name: str, allow_patterns: list[str]) -> str:
        self.asked.append(allow_patterns)
        return str(self.root)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch, tmp_path)


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    hub.files["google/gemma-scope-2b-pt-res"] = [
        "README.md",
        "layer_5/width_16k/average_l0_10/params.npz",
        "layer_5/width_16k/average_l0_70/params.npz",
        "layer_6/width_16k/average_l0_10/params.npz",
    ]
    shutil.copytree(DATA / "gemma_scope/residual", hub.root, dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"gemma-scope-2b-pt-res on the hub has several .*average_l0_10"):
        load_sae("google/gemma-scope-2b-pt-res")
    with pytest.raises(
        InputError, match=r"layer_5/width_16k/average_l0_10, layer_5/width_16k/average_l0_70$"
    ):
        load_sae("google/gemma-scope-2b-pt-res/layer_5")
    assert hub.asked == []
    sae = load_sae("google/gemma-scope-2b-pt-res/layer_5", "width_16k/average_l0_10")
    assert sae.architecture == "jumprelu"
    assert hub.asked == [["layer_5/width_16k/average_l0_10/params.npz"]]


STEPS = ["a/ae.pt", "a/config.json", "a/checkpoints/ae_1.pt", "b/ae.pt"]
LLAMA = ["L15R/hyperparams.json", "L15R/checkpoints/final.safetensors", "L15R/checkpoints/old.safetensors"]


@pytest.mark.parametrize(
    ("files", "hookpoint", "wanted"),
    [
        (
            ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "trainer_state.pt"],
            None,
            [0, 1, 2],
        ),
        (STEPS, "a", [0, 1]),
        (LLAMA, "L15R", [1, 0]),
        (["config.yaml", "layer_0.safetensors", "layer_1.safetensors"], "layer_1.safetensors", [0, 2]),
        (["layer0.sae.pt", "layer1.sae.pt"], "layer1.sae.pt", [1]),
        (["run[1]/cfg.json", "run[1]/sae.safetensors"], None, [0, 1]),
    ],
)
def test_the_files_of_a_format(hub: Hub, files: list[str], hookpoint: str | None, wanted: list[int]) -> None:
    hub.files["some/one"] = files
    with pytest.raises(InputError):
        load_sae("some/one", hookpoint)  # nothing was really downloaded
    assert hub.asked == [[files[number].replace("[", "[[]") for number in wanted]]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (errors.GatedRepoError, "is gated: accept its conditions .*hf auth login"),
        (errors.RepositoryNotFoundError, "the hub has no repository of that name"),
        (errors.HfHubHTTPError, "can't be downloaded from the hub"),
    ],
)
def test_answers_in_words(hub: Hub, kind: type, words: str) -> None:
    answer = kind.__new__(kind)  # made without the response of a server
    Exception.__init__(answer, "no")
    hub.files["some/one"] = answer
    with pytest.raises(InputError, match=words):
        load_sae("some/one")


def test_what_is_known_of_public_ones(cache: Callable[[str, str], Path]) -> None:
    run, factor = "800M-Slimpajama-0-OpenR1-Math-220k", 53.52995401997436
    assert public.facts_of("fnlp/Llama-Scope-R1-Distill", f"{run}/L0R") == {"norm_scaling_factor": factor}
    assert public.facts_of("fnlp/Llama-Scope-R1-Distill", f"{run}/L32R") == {}
    place = cache("saelens/standard", "jbloom/GPT2-Small-SAEs-Reformatted")
    assert load_sae("jbloom/GPT2-Small-SAEs-Reformatted").frame.remove_mean
    assert load_sae(place).frame.remove_mean
    assert not load_sae(place, center_writing_weights=False).frame.remove_mean
    cache("saelens/topk", "JoshEngels/Mistral-7B-Residual-Stream-SAEs")
    assert load_sae("JoshEngels/Mistral-7B-Residual-Stream-SAEs").frame.normalise == "constant_norm"


def test_the_k_of_a_repositorys_name(cache: Callable[[str, str], Path], tmp_path: Path) -> None:
    name = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_6"
    place = cache("goodfire/l19", name)
    weights = {
        "W_enc": torch.randn(24, 8),
        "b_enc": torch.zeros(24),
        "W_dec": torch.randn(8, 24),
        "b_dec": torch.zeros(8),
    }
    torch.save(weights, place / "layer3.sae.pt")
    sae = load_sae(f"{name}#layer3.sae.pt")
    assert (sae.cfg.k, sae.origin.model) == (6, "Qwen/Qwen3-1.7B-Base")

"""Which of the autoencoders below a path is meant: found by files, named by folders, never guessed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finescope.errors import InputError
from finescope.sae import load_sae

DATA = Path(__file__).parent / "data" / "sae"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two hookpoints of sparsify, one of them with two seeds."""
    one = DATA / "sparsify/topk/layers.0"
    shutil.copytree(one, tmp_path / "run/layers.2")
    for seed in (0, 1):
        shutil.copytree(one, tmp_path / f"run/layers.10/seed{seed}")
    return tmp_path / "run"


def test_several_are_listed_in_the_order_of_their_numbers(root: Path) -> None:
    with pytest.raises(InputError, match=r"several.*: layers\.2, layers\.10/seed0, layers\.10/seed1"):
        load_sae(root)
    with pytest.raises(InputError, match=r"several.*: layers\.10/seed0, layers\.10/seed1"):
        load_sae(root, "layers.10")
    with pytest.raises(InputError, match=r"'layers\.1'; it has layers\.2, layers\.10/seed0"):
        load_sae(root, "layers.1")


@pytest.mark.parametrize("hookpoint", ["layers.10/seed1", "layers.10/seed1/"])
def test_a_hookpoint_may_be_a_path(root: Path, hookpoint: str) -> None:
    assert load_sae(root, hookpoint).origin.hook == "layers.10"
    assert load_sae(root / "layers.10", "seed1").origin.hook == "layers.10"
    assert load_sae(root, "layers.2").origin.hook == "layers.2"


def test_the_one_seed_there_is_needs_no_name(root: Path) -> None:
    shutil.rmtree(root / "layers.10/seed0")
    assert load_sae(root, "layers.10").origin.hook == "layers.10"
    assert load_sae(root / "layers.10").origin.hook == "layers.10"


def test_the_folder_of_the_hookpoint_itself(root: Path) -> None:
    assert load_sae(root / "layers.2", "layers.2").num_latents == 64
    assert load_sae(root / "layers.10/seed0", "layers.10/seed0").num_latents == 64
    with pytest.raises(InputError, match=r"'layers\.3'"):
        load_sae(root / "layers.2", "layers.3")


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("sparsify/topk/layers.0", "sae.safetensors"),
        ("saelens/topk", "sae_weights.safetensors"),
        ("dictionary_learning/topk_norm/trainer_0", "ae.pt"),
        ("gemma_scope/residual/layer_5/width_16k/average_l0_10", "params.npz"),
        ("llama_scope/residual/Llama3_1-8B-Base-L15R-8x", "checkpoints/final.safetensors"),
    ],
)
def test_the_file_of_the_weights_stands_for_its_folder(place: str, file: str) -> None:
    assert load_sae(DATA / place / file).origin == load_sae(DATA / place).origin


def test_files_of_a_trainer_are_no_autoencoders(tmp_path: Path) -> None:
    shutil.copytree(DATA / "saelens/topk", tmp_path / "checkpoints/7936")
    shutil.copytree(DATA / "saelens/topk", tmp_path / "checkpoints/final_15360")
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "trainer_state.pt").write_bytes(b"state of an optimiser")
        (folder / "io.safetensors").unlink()
    with pytest.raises(InputError, match=r"several.*: checkpoints/final_15360, checkpoints/7936$"):
        load_sae(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="no autoencoder in"):
        load_sae(tmp_path)
    with pytest.raises(InputError, match="it has none"):
        load_sae(tmp_path, "layers.1")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="of no format that is known"):
        load_sae(tmp_path)

"""Checkpoints are sparsify's: hand-coded keys must load, saved files must have just those keys, and a file
that means something else must be refused instead of misread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finescope.config import SaeConfig
from finescope.errors import InputError, StoreError
from finescope.sae import SparseAutoencoder, load_sae

D, F = 6, 12


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def write(directory: Path, weights: dict[str, torch.Tensor], **config: Any) -> Path:
    """Write a checkpoint as sparsify 1.3 does: its keys, its defaults, its file names."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "sae.safetensors")
    cfg = {
        "activation": "topk",
        "expansion_factor": 2,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 3,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **config,
    }
    (directory / "cfg.json").write_text(json.dumps(cfg))
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loads_what_sparsify_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    golden = tensors(dtype)
    sae = SparseAutoencoder.load(write(tmp_path, golden))
    assert (sae.d_in, sae.num_latents, sae.cfg.k, sae.cfg.multi_topk) == (D, F, 3, False)
    assert dict(sae.state_dict()).keys() == golden.keys()
    for name, value in sae.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, golden[name])
    assert all(parameter.requires_grad for parameter in sae.parameters())
    x = torch.randn(4, D)
    w = {name: value.float() for name, value in golden.items()}
    values, indices = torch.relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).topk(3)
    acts, latents = sae.encode(x)
    assert torch.equal(latents, indices)
    torch.testing.assert_close(acts, values)
    expected = torch.einsum("bk,bkd->bd", values, w["W_dec"][indices]) + w["b_dec"]
    torch.testing.assert_close(sae.decode(acts, latents).float(), expected, rtol=0.02, atol=0.02)
    assert SparseAutoencoder.load(tmp_path, dtype=torch.float64).dtype == torch.float64


def test_writes_what_sparsify_reads(tmp_path: Path) -> None:
    sae = SparseAutoencoder(D, SaeConfig(expansion_factor=2, k=3))
    sae.save(tmp_path / "layers.3")
    saved = load_file(tmp_path / "layers.3" / "sae.safetensors")
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        "encoder.weight": (F, D),
        "encoder.bias": (F,),
        "W_dec": (F, D),
        "b_dec": (D,),
    }
    config = json.loads((tmp_path / "layers.3" / "cfg.json").read_text())
    # sparsify pops d_in and passes on the fields that its SparseCoderConfig has.
    assert config == {
        "activation": "topk",
        "expansion_factor": 2,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 3,
        # There it would make codes of 4K latents; here it is a term of the loss.
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
    }
    assert sorted(path.name for path in (tmp_path / "layers.3").iterdir()) == ["cfg.json", "sae.safetensors"]
    again = SparseAutoencoder.load(tmp_path / "layers.3")
    assert again.cfg == replace(sae.cfg, multi_topk=False)
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), again.parameters(), strict=True))


def test_tolerates_unknown_keys_and_old_files(tmp_path: Path) -> None:
    write(tmp_path, tensors(), signed=False, something_new={"a": 1}, num_latents=F, expansion_factor=32)
    assert SparseAutoencoder.load(tmp_path).num_latents == F
    config = {"expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": 3, "d_in": D}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert SparseAutoencoder.load(tmp_path).cfg.multi_topk is False  # sparsify's default, not ours


@pytest.mark.parametrize("name", ["W_skip", "log_threshold", "input_mean", "something"])
def test_tensors_that_would_be_dropped_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, {**tensors(), name: torch.zeros(2)})
    with pytest.raises(InputError, match=f"read as sparsify, but has tensors .*: {name}"):
        SparseAutoencoder.load(tmp_path)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights["W_dec"][3, 1] = float("nan")
    with pytest.raises(StoreError, match="W_dec has NaN or infinity"):
        SparseAutoencoder.load(write(tmp_path, weights))
    weights["W_dec"][3, 1] = -float("inf")
    with pytest.raises(StoreError, match="W_dec has NaN or infinity"):
        SparseAutoencoder.load(write(tmp_path, weights))
    large = {name: torch.full_like(tensor, 3e38) for name, tensor in tensors().items()}
    assert SparseAutoencoder.load(write(tmp_path, large)).num_latents == F  # large, but numbers


def test_every_tensor_keeps_its_type(tmp_path: Path) -> None:
    weights = tensors()
    weights["encoder.weight"] = weights["encoder.weight"].bfloat16()
    sae = SparseAutoencoder.load(write(tmp_path, weights))
    assert {name: tensor.dtype for name, tensor in sae.state_dict().items()} == {
        name: tensor.dtype for name, tensor in weights.items()
    }
    x = torch.randn(9, D)
    pre = torch.relu((x - weights["b_dec"]) @ weights["encoder.weight"].float().T + weights["encoder.bias"])
    torch.testing.assert_close(sae.encode(x).top_acts, pre.topk(3).values)
    sae.save(tmp_path / "again")
    assert SparseAutoencoder.load(tmp_path / "again").encoder.weight.dtype == torch.bfloat16


def test_k_is_asked_for_where_the_file_leaves_it_out(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["k"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"doesn't say how many latents fire.*k=…"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, k=5).cfg.k == 5
    with pytest.raises(InputError, match=r"k must be int, got 2\.5"):
        load_sae(tmp_path, k=2.5)
    with pytest.raises(InputError, match="norm_scaling_factor means nothing"):
        load_sae(tmp_path, k=5, norm_scaling_factor=2.0)


def test_finds_the_hookpoint(tmp_path: Path) -> None:
    write(tmp_path / "layers.3", tensors())
    assert SparseAutoencoder.load(tmp_path).num_latents == F
    write(tmp_path / "layers.10", tensors(), k=5)
    assert SparseAutoencoder.load(tmp_path, hookpoint="layers.10").cfg.k == 5
    assert SparseAutoencoder.load(str(tmp_path / "layers.10"), hookpoint="layers.10").cfg.k == 5
    with pytest.raises(InputError, match=r"several.*layers\.3, layers\.10"):
        SparseAutoencoder.load(tmp_path)
    with pytest.raises(InputError, match=r"'layers\.4'; it has layers\.3, layers\.10"):
        SparseAutoencoder.load(tmp_path, hookpoint="layers.4")


@pytest.mark.parametrize(
    ("option", "value"),
    [("activation", "batchtopk"), ("activation", None), ("signed", True), ("sae_type", "dense")],
)
def test_refuses_kinds_that_would_be_misread(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        SparseAutoencoder.load(write(tmp_path, tensors(), **{option: value}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_in": 5}, r"encoder\.weight has shape \(12, 6\).*\(10, 5\)"),
        ({"num_latents": 13}, r"\(13, 6\)"),
        ({"d_in": None}, "d_in"),
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": "three"}, "cfg.json"),
    ],
)
def test_names_what_is_wrong_with_the_config(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        SparseAutoencoder.load(write(tmp_path, tensors(), **config))


@pytest.mark.parametrize("name", ["encoder.bias", "W_dec", "b_dec"])
def test_names_missing_and_misshapen_tensors(tmp_path: Path, name: str) -> None:
    weights = tensors()
    weights[name] = weights[name][:-1].clone()
    with pytest.raises(StoreError, match=name):
        SparseAutoencoder.load(write(tmp_path, weights))
    del weights[name]
    with pytest.raises(StoreError, match=name):
        SparseAutoencoder.load(write(tmp_path, weights))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a directory"):
        SparseAutoencoder.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"none of sae\.safetensors"):
        SparseAutoencoder.load(tmp_path)
    write(tmp_path, tensors())
    weights = tmp_path / "sae.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"sae\.safetensors is truncated or corrupt"):
        SparseAutoencoder.load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"none of sae\.safetensors"):
        SparseAutoencoder.load(tmp_path)
    weights.write_bytes(content)
    for text in ("{", "[1]"):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(StoreError, match="JSON"):
            SparseAutoencoder.load(tmp_path)


def test_saving_where_a_file_is_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="taken"):
        SparseAutoencoder(D, SaeConfig(expansion_factor=2, k=3)).save(tmp_path / "taken")


def test_whole_number_weights_and_fractional_sizes_are_refused(tmp_path: Path) -> None:
    sae = SparseAutoencoder(4, SaeConfig(num_latents=8, k=2))
    sae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"k": 2.5}))
    with pytest.raises(StoreError, match=r"k must be a positive integer, got 2\.5"):
        SparseAutoencoder.load(tmp_path)
    (tmp_path / "cfg.json").write_text("\ufeff" + json.dumps(config))  # as some editors save it
    assert torch.equal(SparseAutoencoder.load(tmp_path).W_dec, sae.W_dec)
    save_file({k: v.to(torch.int32) for k, v in sae.state_dict().items()}, tmp_path / "sae.safetensors")
    with pytest.raises(StoreError, match=r"encoder\.weight holds torch\.int32"):
        SparseAutoencoder.load(tmp_path)

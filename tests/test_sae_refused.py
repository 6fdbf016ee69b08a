"""Autoencoders that can't be read right are refused, and their format named; nothing is dropped silently."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finescope.errors import FineScopeError, InputError, StoreError
from finescope.sae import SparseAutoencoder, load_sae

DATA = Path(__file__).parent / "data" / "sae"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        shutil.copytree(DATA / name, tmp_path / name)
        return tmp_path / name

    return make


def configure(folder: Path, **values: Any) -> Path:
    """Change keys of the JSON file below a folder; None removes one."""
    (path,) = [path for path in folder.rglob("*.json") if "scaler" not in path.name]
    config = json.loads(path.read_text())
    place = config.get("trainer", config)
    for key, value in values.items():
        place[key] = value
        if value is None:
            del place[key]
    path.write_text(json.dumps(config))
    return folder


def change(folder: Path, **tensors: Any) -> Path:
    """Change tensors of the file below a folder by functions; None removes one."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt", ".pth")]
    (path,) = [path for path in paths if path.name != "io.safetensors"]
    held = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    for key, function in tensors.items():
        key = key.replace("__", ".")
        if function is None:
            del held[key]
        else:
            held[key] = function(held[key]) if key in held else function(torch.zeros(16))
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in held.items()}, path)
    else:
        torch.save(held, path)
    return folder


def names_the_format(error: BaseException, folder: Path, case: str) -> bool:
    """Whether a message says, besides the path, as which format the folder was read."""
    library = case.split("/")[0]
    said = str(error).replace(str(folder), "").casefold()
    return library in said or library.replace("_", " ") in said


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


MAIN = {
    "sparsify/topk": ("sparsify", "W_dec"),
    "saelens/jumprelu": ("SAELens", "threshold"),
    "saelens/standard": ("SAELens", "W_enc"),
    "dictionary_learning/batchtopk_norm": ("dictionary_learning", "decoder__weight"),
    "dictionary_learning/gated_norm": ("dictionary_learning", "r_mag"),
    "latentsae/cosine": ("latentsae", "cosine_alpha_logit"),
    "llama_scope/residual": ("Llama Scope", "encoder__bias"),
}


@pytest.mark.parametrize("case", MAIN)
def test_further_tensors_missing_ones_nan_and_shapes(copy: Callable[[str], Path], case: str) -> None:
    name, tensor = MAIN[case]
    folder = copy(case)
    spare = folder.parent / "spare"
    for functions, error, words in (
        (
            {"more_of_it": lambda t: t},
            InputError,
            f"read as {name}, but has tensors that {name} doesn't have: more_of_it",
        ),
        ({tensor: None}, StoreError, f"no tensor '{tensor.replace('__', '.')}'"),
        ({tensor: with_nan}, StoreError, "has NaN or infinity"),
        ({tensor: lambda t: t[:-1]}, StoreError, "has shape"),
        ({tensor: lambda t: t.to(torch.int32)}, StoreError, r"torch\.int32"),
    ):
        shutil.copytree(folder, spare)
        with pytest.raises(error, match=words) as caught:
            load_sae(change(spare, **functions))
        assert names_the_format(caught.value, spare, case)
        shutil.rmtree(spare)
    load_sae(folder)


@pytest.mark.parametrize(
    ("case", "values", "words"),
    [
        ("sparsify/topk", {"activation": "batchtopk"}, "sparsify has topk and groupmax"),
        ("sparsify/topk", {"activation": 3}, "sparsify has topk and groupmax"),
        ("sparsify/topk", {"signed": True}, "signed=True"),
        ("sparsify/topk", {"k": None}, "k=…"),
        ("sparsify/topk", {"k": True}, "k must be a positive integer, got True"),
        ("sparsify/topk", {"skip_connection": True}, "no tensor 'W_skip'"),
        ("sparsify/topk", {"transcode": "no"}, "transcode must be true or false"),
        ("sparsify/topk", {"mean_center": True}, "mean_center=True"),
        ("sparsify/groupmax", {"k": 5}, "groups of equal size"),
        ("saelens/topk", {"architecture": "matching_pursuit"}, "SAELens of architecture 'matching_pursuit'"),
        ("saelens/topk", {"architecture": "temporal"}, "'temporal'"),
        ("saelens/topk", {"architecture": None}, "architecture None"),
        ("saelens/topk", {"k": None}, "k=…"),
        ("saelens/topk", {"k": 2.5}, "whole number of latents per token, got 2.5"),
        ("saelens/abstopk", {"k": 2.5}, "whole number"),
        ("saelens/batchtopk_training", {"k": 2.5}, None),
        ("saelens/standard", {"is_transcoder": True}, "is_transcoder=true"),
        ("saelens/topk", {"normalize_activations": "max"}, "normalize_activations='max'"),
        ("saelens/topk", {"normalize_activations": "covariance_whitening"}, "whitened"),
        ("saelens/topk", {"normalize_activations": "expected_average_only_in"}, "norm_scaling_factor=…"),
        ("saelens/topk", {"reshape_activations": "other"}, "reshape_activations='other'"),
        ("saelens/topk", {"dtype": "int8"}, "no floating-point type"),
        ("saelens/topk", {"apply_b_dec_to_input": "yes"}, "must be true or false"),
        ("saelens/standard", {"d_sae": 63}, "has shape"),
        ("dictionary_learning/standard", {"dict_class": "IdentityDict"}, "class 'IdentityDict'"),
        ("dictionary_learning/topk_norm", {"k": 5}, "says k=4, its configuration k=5"),
        ("dictionary_learning/topk_norm", {"dict_size": 63}, "has shape"),
        ("latentsae/topk", {"sae_type": "DENSE"}, "sae_type='DENSE'"),
        ("latentsae/topk", {"use_skip": True}, "no tensor 'W_skip.weight'"),
        ("latentsae/skip", {"use_skip": False}, "tensors that latentsae doesn't have: W_skip.weight"),
        ("latentsae/topk", {"mean_center": True}, "no tensor 'input_mean'"),
        ("latentsae/matryoshka", {"matryoshka_ks": ""}, "matryoshka_ks"),
        ("latentsae/lista", {"lista_steps": 0}, "lista_steps must be a positive integer"),
        ("llama_scope/residual", {"act_fn": "topk"}, "act_fn='topk'; SAEs of Llama Scope have 'jumprelu'"),
        ("llama_scope/residual", {"act_fn": "JumpReLU", "norm_activation": "dataset-wise"}, None),
        ("llama_scope/residual", {"norm_activation": "token-wise"}, "norm_activation='token-wise'"),
        ("llama_scope/residual", {"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre"),
        ("llama_scope/residual", {"jump_relu_threshold": None}, "jump_relu_threshold must be"),
        ("llama_scope/residual", {"dataset_average_activation_norm": {}}, "dataset_average_activation_norm"),
    ],
)
def test_configurations_that_mean_something_else(
    copy: Callable[[str], Path], case: str, values: dict[str, Any], words: str | None
) -> None:
    folder = configure(copy(case), **values)
    if words is None:
        load_sae(folder)
    else:
        with pytest.raises(FineScopeError, match=words) as caught:
            load_sae(folder)
        assert names_the_format(caught.value, folder, case) or "groups of equal size" in words


def test_a_folder_called_embedding_makes_no_embeddings(tmp_path: Path) -> None:
    """Their weights are read √D smaller, so that only the hub's own layout counts."""
    layer = DATA / "gemma_scope/residual/layer_5"
    shutil.copytree(layer, tmp_path / "embedding/layer_5")
    plain, moved = load_sae(layer), load_sae(tmp_path / "embedding/layer_5")
    assert torch.equal(plain.encoder.weight, moved.encoder.weight)
    words = DATA / "gemma_scope/embedding_sae/embedding/width_4k/average_l0_6"
    as_layer = load_sae(words, embedding=False)
    assert torch.equal(load_sae(words).encoder.weight * 4, as_layer.encoder.weight)


def test_one_head_is_no_place_of_a_module(copy: Callable[[str], Path]) -> None:
    folder = copy("saelens/jumprelu")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 3}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert load_sae(folder).origin.hook == "blocks.1.attn.hook_z[3]"


def test_weights_of_sparsify_with_a_latentsae_configuration_are_latentsaes(
    copy: Callable[[str], Path],
) -> None:
    x = torch.randn(20, 16)
    folder = copy("sparsify/topk") / "layers.0"
    plain = load_sae(folder).encode_sparse(x)
    sae = load_sae(configure(folder, sae_type="abstopk"))
    assert (sae.origin.format, sae.architecture) == ("latentsae", "abstopk")
    assert bool((sae.encode_sparse(x).values < 0).any())
    assert sae.encode_sparse(x) != plain


def test_a_checkpoint_of_another_architecture_is_no_topk() -> None:
    with pytest.raises(InputError, match=r"architecture jumprelu, read as saelens, not topk.*load_sae"):
        SparseAutoencoder.load(DATA / "saelens/jumprelu")
    assert SparseAutoencoder.load(DATA / "saelens/topk").cfg.k == 4


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/finescope-was-here"),))


def test_pickles_that_hold_more_than_tensors_are_never_run(
    tmp_path: Path, copy: Callable[[str], Path]
) -> None:
    folder = copy("dictionary_learning/topk_norm")
    (path,) = folder.rglob("ae.pt")
    harm = {**torch.load(path, weights_only=True), "extra": Dangerous()}
    mark = Path("/tmp/finescope-was-here")
    mark.unlink(missing_ok=True)
    torch.save(harm, path)
    with pytest.raises(StoreError, match="could run code"):
        load_sae(folder)
    path.write_bytes(pickle.dumps(harm))
    with pytest.raises(StoreError):
        load_sae(folder)
    (tmp_path / "model.pt").write_bytes(b"not a file of torch")
    with pytest.raises(StoreError, match=r"model\.pt"):
        load_sae(tmp_path / "model.pt")
    assert not mark.exists()


@pytest.mark.parametrize("case", ["gemma_scope/residual", "saelens/topk", "dictionary_learning/standard"])
def test_truncated_files(copy: Callable[[str], Path], case: str) -> None:
    folder = copy(case)
    for path in folder.rglob("*"):
        if path.suffix in (".npz", ".safetensors", ".pt") and path.name != "io.safetensors":
            path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StoreError, match=r"damaged|corrupt"):
        load_sae(folder)


def test_facts_are_checked() -> None:
    with pytest.raises(InputError, match=r"embedding means nothing for .* saelens's format"):
        load_sae(DATA / "saelens/topk", embedding=True)
    with pytest.raises(InputError, match="norm_scaling_factor must be float, got 'two'"):
        load_sae(DATA / "saelens/topk", norm_scaling_factor="two")
    with pytest.raises(FineScopeError, match="positive"):
        load_sae(DATA / "saelens/topk", norm_scaling_factor=-1)
    with pytest.raises(InputError, match="no format 'sealens'"):
        load_sae(DATA / "saelens/topk", format="sealens")
    with pytest.raises(InputError, match=r"can't be read as gemma_scope: that has params\.npz"):
        load_sae(DATA / "saelens/topk", format="gemma_scope")


def test_both_widths_of_numbers_where_one_is_all_there_is(tmp_path: Path) -> None:
    """A library that reads every tensor in one type: rounded thresholds are what it compares with."""
    sae = load_sae(DATA / "saelens/batchtopk_bf16")
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.bfloat16}
    folder = tmp_path / "mixed"
    shutil.copytree(DATA / "saelens/batchtopk_bf16", folder)
    (path,) = folder.rglob("sae_weights.safetensors")
    held = load_file(path)
    held["threshold"] = held["threshold"].float() * (1 + 2**-10)  # rounds back to what it was
    save_file(held, path)
    x = torch.randn(50, 16)
    assert load_sae(folder).encode_sparse(x) == sae.encode_sparse(x)

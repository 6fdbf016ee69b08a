"""Formats without files of their libraries' own here: written by hand, with codes by dense formulas.

Wrong would be a matrix that stands the other way round, a bias that is taken off or isn't, a threshold that
is a logarithm, a scale that is left out: each gives codes, and other ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from finescope.errors import InputError
from finescope.sae import load_sae
from support import sae_oracle as oracle

D, F, B = 8, 24, 40


def draw(*shape: int, scale: float = 0.5) -> Tensor:
    return torch.randn(shape) * scale


def dense(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.double().numpy()


def write(folder: Path, weights: str, tensors: dict[str, Tensor], **configs: Any) -> Path:
    """Write weights, and each keyword as a JSON file of that name."""
    path = folder / weights
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        torch.save(tensors, path)
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def holds(
    path: Path, x: Tensor, features: np.ndarray[Any, Any], out: np.ndarray[Any, Any], **facts: Any
) -> Any:
    """Assert codes and reconstructions of the autoencoder at ``path``."""
    sae = load_sae(path, **facts)
    np.testing.assert_allclose(sae.encode_sparse(x).to_dense().numpy(), features, rtol=1e-5, atol=1e-5)
    assert (features != 0).any(1).mean() > 0.5
    np.testing.assert_allclose(sae.reconstruct(x).double().numpy(), out, rtol=1e-4, atol=1e-4)
    return sae


def saelens(architecture: str, **more: Any) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.2.hook_mlp_in", "prepend_bos": True},
        **more,
    }


# ---------------------------------------------------------------------------------------------------- SAELens


@pytest.mark.parametrize("apply", [True, False])
def test_saelens_gated(tmp_path: Path, apply: bool) -> None:
    w = {name: draw(F) for name in ("b_gate", "b_mag", "r_mag")}
    w |= {"W_enc": draw(D, F), "W_dec": draw(F, D), "b_dec": draw(D)}
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    e = (dense(x) - apply * n["b_dec"]) @ n["W_enc"]
    features = oracle.gated(e, n["b_gate"], n["r_mag"], n["b_mag"])
    path = write(tmp_path, "sae_weights.safetensors", w, cfg=saelens("gated", apply_b_dec_to_input=apply))
    sae = holds(path, x, features, features @ n["W_dec"] + n["b_dec"])
    assert sae.architecture == "gated"
    assert sae.origin.bos is True


@pytest.mark.parametrize(
    "kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
@pytest.mark.parametrize("normalise", ["none", "layer_norm"])
def test_saelens_transcoders(tmp_path: Path, kind: str, normalise: str) -> None:
    wide = D + 3
    w = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, wide), "b_dec": draw(wide)}
    if "jumprelu" in kind:
        w["threshold"] = draw(F).abs()
    if "skip" in kind:
        w["W_skip"] = draw(wide, D)
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    seen = oracle.layer_norm(dense(x))[0] if normalise == "layer_norm" else dense(x)
    features = oracle.jumprelu(seen @ n["W_enc"] + n["b_enc"], n.get("threshold", 0.0))
    out = features @ n["W_dec"] + n["b_dec"] + (dense(x) @ n["W_skip"].T if "skip" in kind else 0)
    config = saelens(kind, d_out=wide, normalize_activations=normalise)
    sae = holds(write(tmp_path, "sae_weights.safetensors", w, cfg=config), x, features, out)
    assert (sae.d_in, sae.d_out) == (D, wide)
    codes = sae.encode_sparse(x)
    if "skip" in kind:
        with pytest.raises(InputError, match="inputs="):
            sae.decode(codes)
    else:  # the library doesn't bring a transcoder's output back from the normalisation of its input
        assert torch.equal(sae.decode(codes), sae.reconstruct(x))


def test_saelens_before_version_6(tmp_path: Path) -> None:
    w = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    p = (dense(x) - n["b_dec"]) @ n["W_enc"] + n["b_enc"]
    old = {
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2",
    }
    topk = {
        **old,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": False,
    }
    features = oracle.topk(p, 3)
    sae = holds(
        write(tmp_path / "a", "sae_weights.safetensors", w, cfg=topk),
        x,
        features,
        features @ n["W_dec"] + n["b_dec"],
    )
    assert (sae.cfg.k, sae.origin.hook, sae.origin.model) == (3, "blocks.3.hook_resid_pre", "gpt2")
    features = oracle.relu(p)
    w["scaling_factor"] = torch.ones(F)  # for a while it was written by all
    holds(
        write(tmp_path / "b", "sae_weights.safetensors", w, cfg=old),
        x,
        features,
        features @ n["W_dec"] + n["b_dec"],
    )
    w["scaling_factor"] = draw(F).abs() + 0.5
    finetuned = {**old, "finetuning_scaling_factor": True}
    out = (features * dense(w["scaling_factor"])) @ n["W_dec"] + n["b_dec"]
    holds(write(tmp_path / "c", "sae_weights.safetensors", w, cfg=finetuned), x, features, out)


def test_saelens_scaled_and_centred_by_facts(tmp_path: Path) -> None:
    w = {"W_enc": draw(D, F), "b_enc": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}
    x = draw(B, D, scale=1.0) + 2
    n = {name: dense(tensor) for name, tensor in w.items()}
    config = saelens("standard", apply_b_dec_to_input=True, normalize_activations="expected_average_only_in")
    path = write(tmp_path, "sae_weights.safetensors", w, cfg=config)
    with pytest.raises(InputError, match="norm_scaling_factor=…"):
        load_sae(path)
    mean = dense(x).mean(1, keepdims=True)
    features = oracle.relu(((dense(x) - mean) * 0.25 - n["b_dec"]) @ n["W_enc"] + n["b_enc"])
    out = (features @ n["W_dec"] + n["b_dec"]) / 0.25 + mean
    holds(path, x, features, out, norm_scaling_factor=0.25, center_writing_weights=True)


def test_saelens_thresholds_were_logarithms_once(tmp_path: Path) -> None:
    w = {
        "W_enc": draw(D, F),
        "b_enc": draw(F),
        "W_dec": draw(F, D),
        "b_dec": draw(D),
        "log_threshold": draw(F),
    }
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    features = oracle.jumprelu(dense(x) @ n["W_enc"] + n["b_enc"], np.exp(n["log_threshold"]))
    path = write(tmp_path, "sae_weights.safetensors", w, cfg=saelens("jumprelu"))
    holds(path, x, features, features @ n["W_dec"] + n["b_dec"])


# ------------------------------------------------------------------------------ Gemma Scope 2, Llama Scope R1


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("configured", [True, False])
def test_gemma_scope_2(tmp_path: Path, skip: bool, configured: bool) -> None:
    w = {
        "w_enc": draw(D, F),
        "b_enc": draw(F),
        "threshold": draw(F).abs(),
        "w_dec": draw(F, D),
        "b_dec": draw(D),
    }
    if skip:
        w["affine_skip_connection"] = draw(D, D)
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    features = oracle.jumprelu(dense(x) @ n["w_enc"] + n["b_enc"], n["threshold"])
    out = features @ n["w_dec"] + n["b_dec"] + (dense(x) @ n["affine_skip_connection"] if skip else 0)
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.13.output",
        "affine_connection": skip,
    }
    folder = tmp_path / ("transcoder" if skip else "resid_post") / "layer_13_width_16k_l0_small"
    path = write(folder, "params.safetensors", w, **({"config": config} if configured else {}))
    sae = holds(path, x, features, out)
    assert sae.origin.format == "gemma_scope_2"
    if configured:
        assert (sae.origin.hook, sae.origin.model) == ("model.layers.13.output", "google/gemma-3-1b-pt")
    else:
        hook = "model.layers.13.pre_feedforward_layernorm.output" if skip else "model.layers.13.output"
        assert sae.origin.hook == hook


def test_llama_scope_r1(tmp_path: Path) -> None:
    w = {
        "encoder.weight": draw(F, D),
        "encoder.bias": draw(F),
        "decoder.weight": draw(D, F),
        "decoder.bias": draw(D),
        "log_jumprelu_threshold": draw(F) - 1,
    }
    x = draw(B, D, scale=4.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    config = {"d_model": D, "expansion_factor": F / D, "hook_point_in": "blocks.15.hook_resid_post"}
    path = write(tmp_path, "sae_weights.safetensors", w, config=config)
    with pytest.raises(InputError, match="norm_scaling_factor=…"):
        load_sae(path)
    s = 0.3
    features = oracle.jumprelu(
        s * dense(x) @ n["encoder.weight"].T + n["encoder.bias"], np.exp(n["log_jumprelu_threshold"])
    )
    out = (features @ n["decoder.weight"].T + n["decoder.bias"]) / s
    sae = holds(path, x, features, out, norm_scaling_factor=s)
    assert sae.origin.format == "llama_scope_r1"


# ----------------------------------------------------------------------------------------------- llamascopium


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "batchtopk"])
@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_llamascopium(tmp_path: Path, kind: str, weighed: bool, biased: bool) -> None:
    hook, other = "blocks.3.hook_resid_post", "blocks.4.hook_mlp_out"
    w = {
        "W_E": draw(D, F),
        "b_E": draw(F),
        "W_D": draw(F, D),
        f"dataset_average_activation_norm.{hook}": torch.tensor(14.0),
        f"dataset_average_activation_norm.{other}": torch.tensor(7.0),
    }
    if biased:
        w["b_D"] = draw(D)
    if kind == "jumprelu":
        w["activation_function.log_jumprelu_threshold"] = draw(F)
    config = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "use_decoder_bias": biased,
        "act_fn": kind,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": weighed,
        "top_k": 4,
        "hook_point_in": hook,
        "hook_point_out": other,
    }
    x = draw(B, D, scale=5.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    s, s_out = math.sqrt(D) / 14, math.sqrt(D) / 7
    p = s * dense(x) @ n["W_E"] + n["b_E"]
    norms = np.linalg.norm(n["W_D"], axis=1) if weighed else np.ones(F)
    limit = np.exp(n["activation_function.log_jumprelu_threshold"]) if kind == "jumprelu" else 0.6
    gated = {
        "relu": lambda: oracle.relu(p * norms),
        "topk": lambda: oracle.topk(p * norms, 4),
        "jumprelu": lambda: oracle.jumprelu(p * norms, limit),
        "batchtopk": lambda: oracle.jumprelu(p * norms, limit),
    }[kind]()
    features = gated / norms
    out = (features @ n["W_D"] + n.get("b_D", 0)) / s_out
    path = write(tmp_path, "sae_weights.safetensors", w, config=config)
    facts = {}
    if kind == "batchtopk":
        with pytest.raises(InputError, match="threshold=…"):
            load_sae(path)
        facts["threshold"] = 0.6
    sae = holds(path, x, features, out, **facts)
    assert (sae.origin.hook, sae.origin.hook_out) == (hook, other)


# -------------------------------------------------------------------------------- one file of torch.save each


def test_qwen_scope(tmp_path: Path) -> None:
    w = {"W_enc": draw(F, D), "b_enc": draw(F), "W_dec": draw(D, F), "b_dec": draw(D)}
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    features = oracle.topk(dense(x) @ n["W_enc"].T + n["b_enc"], 5)
    out = features @ n["W_dec"].T + n["b_dec"]
    folder = write(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5", "layer7.sae.pt", w)
    sae = holds(folder, x, features, out)
    assert (sae.origin.hook, sae.origin.model) == ("model.layers.7", "Qwen/Qwen3-1.7B-Base")
    unnamed = write(tmp_path / "qwen", "layer7.sae.pt", w)
    write(unnamed, "layer8.sae.pt", w)
    with pytest.raises(InputError, match=r"several.*layer7\.sae\.pt, layer8\.sae\.pt"):
        load_sae(unnamed)
    with pytest.raises(InputError, match="k=…"):
        load_sae(unnamed, "layer7.sae.pt")
    holds(unnamed, x, features, out, hookpoint="layer7.sae.pt", k=5)


@pytest.mark.parametrize(("format", "ending"), [("goodfire", "_linear"), ("qresearch", "")])
def test_two_linear_layers(tmp_path: Path, format: str, ending: str) -> None:
    w = {
        f"encoder{ending}.weight": draw(F, D),
        f"encoder{ending}.bias": draw(F),
        f"decoder{ending}.weight": draw(D, F),
        f"decoder{ending}.bias": draw(D),
    }
    x = draw(B, D, scale=1.0)
    n = [dense(tensor) for tensor in w.values()]
    features = oracle.relu(dense(x) @ n[0].T + n[1])
    path = (
        write(tmp_path, "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", w)
        / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    )
    sae = holds(path, x, features, features @ n[2].T + n[3])
    assert (sae.origin.format, sae.origin.hook) == (format, "blocks.19.hook_resid_post")
    assert load_sae(tmp_path).origin.format == format


@pytest.mark.parametrize("kind", ["TopK", "ReLU"])
def test_openai(tmp_path: Path, kind: str) -> None:
    w: dict[str, Any] = {
        "pre_bias": draw(D),
        "latent_bias": draw(F),
        "encoder.weight": draw(F, D),
        "decoder.weight": draw(D, F),
        "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "latents_activation_frequency": torch.ones(F),
        "latents_mean_square": torch.ones(F),
        "activation": kind,
    }
    if kind == "TopK":
        w["activation_state_dict"] = {"k": 6, "postact_fn": "ReLU"}
    x = draw(B, D, scale=3.0) + 1
    pre, latent, encoder, decoder = (dense(tensor) for tensor in list(w.values())[:4])
    seen, spread, mean = oracle.layer_norm(dense(x)) if kind == "TopK" else (dense(x), 1.0, 0.0)
    p = (seen - pre) @ encoder.T + latent
    features = oracle.topk(p, 6) if kind == "TopK" else oracle.relu(p)
    out = (features @ decoder.T + pre) * spread + mean
    folder = write(tmp_path / "resid_post_mlp_v5_32k" / "autoencoders", "8.pt", w)
    sae = holds(folder / "8.pt", x, features, out)
    assert (sae.origin.format, sae.origin.hook) == ("openai", "blocks.8.hook_resid_post")


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
@pytest.mark.parametrize("skip", [True, False])
def test_circuit_tracer(tmp_path: Path, kind: str, skip: bool) -> None:
    w = {
        "W_enc": draw(D, D),
        "b_enc": draw(D),
        "W_dec": draw(D, D),
        "b_dec": draw(D),
    }  # square: no shape helps
    if kind == "jumprelu":
        w["activation_function.threshold"] = draw(D)  # some negative: what is below 0 gets through
    if skip:
        w["W_skip"] = draw(D, D)
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    p = dense(x) @ n["W_enc"].T + n["b_enc"]
    features = p * (p > n["activation_function.threshold"]) if kind == "jumprelu" else oracle.relu(p)
    assert kind == "relu" or (features < 0).any()
    out = features @ n["W_dec"] + n["b_dec"] + (dense(x) @ n["W_skip"].T if skip else 0)
    write(tmp_path, "layer_0.safetensors", {name: tensor + 1 for name, tensor in w.items()})
    write(tmp_path, "layer_11.safetensors", w)
    (tmp_path / "config.yaml").write_text(
        "model_name: google/gemma-2-2b\n"
        "feature_input_hook: hook_resid_mid\n"
        "feature_output_hook: hook_mlp_out\n"
    )
    sae = holds(tmp_path, x, features, out, hookpoint="layer_11.safetensors")
    assert sae.origin.hook == "blocks.11.hook_resid_mid"
    assert sae.origin.hook_out == "blocks.11.hook_mlp_out"


# ---------------------------------------------------------------------------------------- dictionary_learning


def test_dictionary_learning_checkpoints_and_the_newer_class(tmp_path: Path) -> None:
    w = {
        "encoder.weight": draw(F, D),
        "encoder.bias": draw(F),
        "decoder.weight": draw(D, F),
        "decoder.bias": draw(D),
    }
    x = draw(B, D, scale=1.0)
    n = [dense(tensor) for tensor in w.values()]
    features = oracle.relu(dense(x) @ n[0].T + n[1])
    trainer = {
        "dict_class": "AutoEncoderNew",
        "activation_dim": D,
        "dict_size": F,
        "layer": 3,
        "lm_name": "pythia",
    }
    folder = write(tmp_path / "trainer_2", "ae.pt", w, config={"trainer": trainer, "buffer": {}})
    out = features @ n[2].T + n[3]
    sae = holds(tmp_path, x, features, out)
    assert sae.origin.hook == "layer 3"
    write(folder, "checkpoints/ae_100.pt", {name: tensor * 2 for name, tensor in w.items()})
    holds(tmp_path, x, features, out)  # the end of the training, not a step of it
    doubled = oracle.relu(dense(x) @ (2 * n[0]).T + 2 * n[1])
    holds(folder, x, doubled, doubled @ (2 * n[2]).T + 2 * n[3], hookpoint="checkpoints/ae_100.pt")


# -------------------------------------------------------------------------------------------------- latentsae


@pytest.mark.parametrize("kind", ["jumprelu", "batchtopk"])
def test_latentsae_keeps_at_most_so_many(tmp_path: Path, kind: str) -> None:
    w = {"encoder.weight": draw(F, D), "encoder.bias": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}
    w["input_mean"] = draw(D)
    limit: Any
    if kind == "jumprelu":
        w["log_threshold"] = draw(F) + 0.5
        limit = np.exp(dense(w["log_threshold"]))
    else:
        w["batchtopk_threshold"] = torch.tensor(1.75)
        limit = 1.75
    config = {
        "sae_type": kind.upper(),
        "num_latents": F,
        "d_in": D,
        "k": 3,
        "jumprelu_max_active": 3,
        "mean_center": True,
    }
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    p = (dense(x) - n["input_mean"] - n["b_dec"]) @ n["encoder.weight"].T + n["encoder.bias"]
    kept = p * (p > limit if kind == "jumprelu" else p >= limit)
    assert ((kept > 0).sum(1) > 3).any()
    assert ((kept > 0).sum(1) < 3).any()
    features = oracle.topk(kept, 3)
    out = features @ n["W_dec"] + n["b_dec"] + n["input_mean"]
    sae = holds(write(tmp_path, "sae.safetensors", w, cfg=config), x, features, out)
    assert torch.equal(sae.decode(sae.encode_sparse(x)), sae.reconstruct(x))


def test_latentsae_inhibits_more_than_once(tmp_path: Path) -> None:
    w = {"encoder.weight": draw(F, D), "encoder.bias": draw(F), "W_dec": draw(F, D), "b_dec": draw(D)}
    config = {"sae_type": "LISTA", "num_latents": F, "d_in": D, "k": 2, "lista_eta": 0.4, "lista_steps": 3}
    x = draw(B, D, scale=1.0)
    n = {name: dense(tensor) for name, tensor in w.items()}
    acts = oracle.relu((dense(x) - n["b_dec"]) @ n["encoder.weight"].T + n["encoder.bias"])
    features = np.zeros_like(acts)
    for row, act in enumerate(acts):
        for _ in range(3):
            strong = np.argsort(-act, kind="stable")[:8]
            products = n["W_dec"][strong] @ n["W_dec"][strong].T
            np.fill_diagonal(products, 0)
            act[strong] = oracle.relu(act[strong] - 0.4 * products @ act[strong])
        best = strong[np.argsort(-act[strong], kind="stable")[:2]]
        features[row, best] = act[best]
    holds(write(tmp_path, "sae.safetensors", w, cfg=config), x, features, features @ n["W_dec"] + n["b_dec"])

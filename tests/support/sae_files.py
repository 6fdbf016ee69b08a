"""Files of three libraries, read as those read them, in float64: formulas of sae_oracle on what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from support import sae_oracle as formula

Codes = tuple[formula.Array, formula.Array]


def sparsify(folder: Path, x: formula.Array) -> Codes:
    config = json.loads((folder / "cfg.json").read_text())
    w = _wide(load_file(folder / "sae.safetensors"))
    assert set(w) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | (
        {"W_skip"} if config["skip_connection"] else set()
    )
    latents = config["num_latents"] or config["d_in"] * config["expansion_factor"]
    assert w["encoder.weight"].shape == (latents, config["d_in"])
    assert config["multi_topk"] is False
    seen = x if config["transcode"] else x - w["b_dec"]
    p = formula.relu(seen @ w["encoder.weight"].T + w["encoder.bias"])
    f = {"topk": formula.topk, "groupmax": formula.groupmax}[config["activation"]](p, config["k"])
    return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)


def saelens(folder: Path, x: formula.Array) -> Codes:
    config = json.loads((folder / "cfg.json").read_text())
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    w = _wide(load_file(folder / "sae_weights.safetensors"))
    kind = config["architecture"]
    assert w["W_enc"].shape == (config["d_in"], config["d_sae"])
    seen, back, mean = x, np.ones((len(x), 1)), np.zeros((len(x), 1))
    if config["normalize_activations"] == "layer_norm":
        seen, back, mean = formula.layer_norm(x)
    elif config["normalize_activations"] == "constant_norm_rescale":
        back = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        seen = x / back
    else:
        assert config["normalize_activations"] == "none"
    if "transcoder" in kind:
        assert not config["apply_b_dec_to_input"]
    e = (seen - w["b_dec"] if config["apply_b_dec_to_input"] else seen) @ w["W_enc"]
    if kind == "gated":
        f = formula.gated(e, w["b_gate"], w["r_mag"], w["b_mag"])
    elif "jumprelu" in kind:
        f = formula.jumprelu(e + w["b_enc"], w["threshold"])
    elif kind == "topk":
        assert not config["rescale_acts_by_decoder_norm"]
        f = formula.topk(e + w["b_enc"], config["k"])
    elif kind == "abstopk":
        f = formula.abs_topk(e + w["b_enc"], config["k"])
    else:
        f = formula.relu(e + w["b_enc"])
    out = f @ w["W_dec"] + w["b_dec"]
    if "transcoder" in kind:
        return f, out + (x @ w["W_skip"].T if "W_skip" in w else 0)
    return f, out * back + mean


def dictionary_learning(folder: Path, x: formula.Array) -> Codes:
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    held = torch.load(folder / "ae.pt", weights_only=True)
    w = _wide(held)
    kind = trainer["dict_class"]
    turned = "W_enc" in w
    encoder = w["W_enc"] if turned else w["encoder.weight"].T
    decoder = w["W_dec"] if turned else w["decoder.weight"].T
    assert encoder.shape == (trainer["activation_dim"], trainer["dict_size"])
    b_dec = next(w[name] for name in ("bias", "b_dec", "decoder.bias", "decoder_bias") if name in w)
    e = (x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - b_dec) @ encoder
    if kind == "GatedAutoEncoder":
        f = formula.gated(e, w["gate_bias"], w["r_mag"], w["mag_bias"])
        return f, f @ decoder + b_dec
    p = e + w["b_enc" if turned else "encoder.bias"]
    if kind == "AutoEncoder":  # is brought to unit length when it is loaded, unless it is so
        np.testing.assert_allclose(np.linalg.norm(decoder, axis=1), 1, rtol=1e-5)
    if "k" in trainer:
        assert int(held["k"]) == trainer["k"]
    if kind == "AutoEncoderTopK":
        f = formula.topk(p, trainer["k"])
    elif kind in ("AutoEncoder", "AutoEncoderNew"):
        f = formula.relu(p)
    else:
        f = formula.jumprelu(p, w["threshold"])
    if kind == "MatryoshkaBatchTopKSAE":
        assert int(held["group_sizes"].sum()) == trainer["dict_size"]
    return f, f @ decoder + b_dec


def _wide(tensors: dict[str, torch.Tensor]) -> dict[str, formula.Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}

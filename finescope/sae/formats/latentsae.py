"""latentsae: sparsify's two files for many architectures, told apart by ``sae_type``.

encoder.weight [F,D], encoder.bias [F], W_dec [F,D], b_dec [D]. p = W (x − b_dec) + b, and of it

- TOPK, MATRYOSHKA: the top k of relu(p); for the latter k is the last of ``matryoshka_ks``
- JUMPRELU: p where p > exp(log_threshold), at most ``jumprelu_max_active`` of them
- BATCHTOPK: relu(p) where it is at least batchtopk_threshold, at most k of them
- ABSTOPK: the k largest of |p|, with their signs
- COSINE: the top k of relu(cos(x', w) ‖x'‖^α + b), α = sigmoid(cosine_alpha_logit)
- LISTA: the top k of the strongest 4k after they have inhibited each other
- GATED: the top k by the gate g = W_gate x' + b, worth relu(exp(r_mag) W_mag x' · sigmoid(g))

``mean_center``: x − input_mean comes in; ``use_skip``: W_skip of that is added to the reconstruction.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_tensors, whole
from finescope.sae.formats.format import Facts, Format

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae.safetensors"

_KINDS = {
    "TOPK": "topk",
    "MATRYOSHKA": "topk",
    "JUMPRELU": "capped_jumprelu",
    "BATCHTOPK": "capped_jumprelu",
    "ABSTOPK": "abstopk",
    "COSINE": "cosine",
    "LISTA": "lista",
    "GATED": "gated_topk",
}


def _recognises(folder: Path) -> bool:
    path = folder / CONFIG_NAME
    return path.is_file() and "sae_type" in read_json(path)


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an autoencoder of latentsae."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    config = read_json(path)
    kind = str(config.get("sae_type", "TOPK")).rpartition(".")[2].upper()
    if kind not in _KINDS:
        raise InputError(f"{path} says sae_type={config['sae_type']!r}; {', '.join(_KINDS)} are supported")
    d_in = whole(path, config, "d_in")
    num_latents = config.get("num_latents") or d_in * whole(path, config, "expansion_factor")
    sizes = {"F": num_latents, "D": d_in, "R": config.get("skip_rank", 0)}
    held = read_tensors(weights)
    said_by = f"{CONFIG_NAME} (F={num_latents} latents of width D={d_in})"
    letters = _letters(kind, config)
    wanted = {name: tuple(sizes[letter] for letter in word) for name, word in letters.items()}
    if kind != "BATCHTOPK" and config.get("matryoshka_use_batchtopk"):
        wanted["batchtopk_threshold"] = ()
    found = check_tensors(weights, held, wanted, format="latentsae", said_by=said_by)
    tensors = {name: found[name] for name in ("W_dec", "b_dec")}
    tensors["encoder.weight"] = found["W_gate.weight" if kind == "GATED" else "encoder.weight"]
    tensors["encoder.bias"] = found["W_gate.bias" if kind == "GATED" else "encoder.bias"]
    if "input_mean" in found:
        tensors["input_mean"] = found["input_mean"]
    if "W_skip.weight" in found:
        tensors["W_skip"] = found["W_skip.weight"]
    elif "W_skip_up.weight" in found:
        up, down = found["W_skip_up.weight"], found["W_skip_down.weight"]
        tensors["W_skip"] = (up.double() @ down.double()).to(up.dtype)
    k = _k(path, kind, config, num_latents)
    _add(path, kind, config, found, tensors)
    options: dict[str, Any] = {
        "num_latents": num_latents,
        "normalize_decoder": bool(config.get("normalize_decoder", True)),
        "k": k,
        "multi_topk": False,
    }
    notes: tuple[str, ...] = ()
    if config.get("matryoshka_use_batchtopk"):
        notes = (
            "encoded token by token, as the library's encode does; its forward shares out k by the batch",
        )
    origin = Origin("latentsae", trained_as=kind, k=None if kind == "JUMPRELU" else k, notes=notes)
    return Checkpoint(_KINDS[kind], tensors, options, origin=origin)


def _letters(kind: str, config: dict[str, Any]) -> dict[str, str]:
    """Return the tensors that a file of this kind has, and their shapes in letters."""
    wanted = {"W_dec": "FD", "b_dec": "D"}
    if kind == "GATED":
        wanted |= {"W_gate.weight": "FD", "W_gate.bias": "F", "W_mag.weight": "FD", "r_mag": "F"}
    else:
        wanted |= {"encoder.weight": "FD", "encoder.bias": "F"}
    if kind == "JUMPRELU":
        wanted["log_threshold"] = "F"
    elif kind == "BATCHTOPK":
        wanted["batchtopk_threshold"] = ""
    elif kind == "COSINE":
        wanted["cosine_alpha_logit"] = "F" if config.get("cosine_per_feature", True) else ""
    if config.get("mean_center"):
        wanted["input_mean"] = "D"
    if config.get("use_skip"):
        low_rank = {"W_skip_up.weight": "DR", "W_skip_down.weight": "RD"}
        wanted |= low_rank if config.get("skip_rank") else {"W_skip.weight": "DD"}
    return wanted


def _k(path: Path, kind: str, config: dict[str, Any], num_latents: int) -> int:
    if kind == "JUMPRELU":
        return min(int(config.get("jumprelu_max_active", 512)), num_latents)
    if kind != "MATRYOSHKA":
        return whole(path, config, "k")
    last = str(config.get("matryoshka_ks", "")).replace(" ", "").rpartition(",")[2]
    if not last.isdecimal() or not 1 <= int(last) <= num_latents:
        raise StoreError(
            f"{path}: matryoshka_ks must be numbers of latents, got {config.get('matryoshka_ks')!r}"
        )
    return int(last)


def _add(
    path: Path, kind: str, config: dict[str, Any], found: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Add what decides which latents fire."""
    if kind == "JUMPRELU":
        tensors["threshold"] = found["log_threshold"].exp()
    elif kind == "BATCHTOPK":
        # At least the threshold is more than the number below it.
        below = math.nextafter(float(found["batchtopk_threshold"]), -math.inf)
        tensors["threshold"] = torch.full((len(tensors["encoder.weight"]),), below, dtype=torch.float64)
    elif kind == "COSINE":
        tensors["alpha_logit"] = found["cosine_alpha_logit"]
    elif kind == "GATED":
        tensors["W_mag"], tensors["r_mag"] = found["W_mag.weight"], found["r_mag"]
    elif kind == "LISTA":
        eta, steps = config.get("lista_eta", 0.1), config.get("lista_steps", 1)
        if not isinstance(eta, (int, float)) or not math.isfinite(eta):
            raise StoreError(f"{path}: lista_eta must be a number, got {eta!r}")
        whole(path, {"lista_steps": steps}, "lista_steps")
        tensors["eta"], tensors["steps"] = torch.tensor(float(eta)), torch.tensor(float(steps))


FORMAT = Format("latentsae", WEIGHTS_NAME, read, _recognises, beside=(CONFIG_NAME,))

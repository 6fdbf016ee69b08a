"""SAELens: ``cfg.json`` beside ``sae_weights.safetensors``, as version 6 and those before it write them.

W_enc [D,F], b_enc [F], W_dec [F,D_out], b_dec [D_out]; jumprelu: threshold [F]; gated: b_gate, b_mag, r_mag
[F] instead of b_enc; skip transcoders: W_skip [D_out,D]. What a training checkpoint has is turned into what
the library would have written at the end: norms of the decoder into the codes, a scale or a whitening of the
activations into the way in.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.ops.checks import all_finite
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_tensors, whole
from finescope.sae.formats.folded import folded, is_transcoder
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame
from finescope.storage.files import write_json, write_tensors

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
SCALER_NAME = "activation_scaler.json"
WHITENING_NAME = "activation_whitening.safetensors"
SPARSITY_NAME = "sparsity.safetensors"

_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}

# Name of the architecture: ours, and the tensors it has besides W_enc, W_dec and b_dec.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("relu", ("b_enc",)),
    "gated": ("gated", ("b_gate", "b_mag", "r_mag")),
    "jumprelu": ("jumprelu", ("b_enc", "threshold")),
    "topk": ("topk", ("b_enc",)),
    "abstopk": ("abstopk", ("b_enc",)),
    "batchtopk": ("batchtopk", ("b_enc", "topk_threshold")),
    "matryoshka_batchtopk": ("matryoshka", ("b_enc", "topk_threshold")),
    "transcoder": ("relu", ("b_enc",)),
    "skip_transcoder": ("relu", ("b_enc", "W_skip")),
    "jumprelu_transcoder": ("jumprelu", ("b_enc", "threshold")),
    "jumprelu_skip_transcoder": ("jumprelu", ("b_enc", "threshold", "W_skip")),
}
_WAYS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
}
# What the library writes each of our architectures as; of transcoders only the last two.
_WRITTEN = {
    "topk": "topk",
    "abstopk": "abstopk",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "relu": "standard",
}
_TRAINED_AS = {"batchtopk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
_LAYOUT = "6.54.12"
"""Version of the library whose files these are."""
_UNROUNDED = ("topk", "abstopk", "gated")
"""Ours whose sums aren't rounded as those of the library are: it leaves open which of equal ones fire."""
_RESCALED = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
_NAMES = {"b_enc": "encoder.bias", "b_gate": "gate_bias", "b_mag": "mag_bias", "topk_threshold": "threshold"}


def _recognises(folder: Path) -> bool:
    return (folder / CONFIG_NAME).is_file()


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read an SAE or transcoder of SAELens: of the end of a run or from its middle, or from before 6."""
    path = folder / CONFIG_NAME
    config, before_6 = _current(read_json(path))
    name = config.get("architecture")
    if name not in _KINDS:
        raise InputError(
            f"{path} is an SAE of SAELens of architecture {name!r}, which isn't supported;"
            f" {', '.join(_KINDS)} are"
        )
    if config.get("is_transcoder") and "transcoder" not in name:
        raise InputError(
            f"{path} says is_transcoder=true beside architecture={name!r}; the b_dec of a transcoder isn't of"
            " its input, so name the architecture (transcoder, skip_transcoder)"
        )
    architecture, besides = _KINDS[name]
    d_in, num_latents = whole(path, config, "d_in"), whole(path, config, "d_sae")
    d_out = whole(path, config, "d_out") if "transcoder" in name else d_in
    tensors = _weights(folder, config, besides, (d_in, num_latents, d_out))
    metadata = config.get("metadata") or {}
    details = metadata.get("training_architecture_details") or {}
    options: dict[str, Any] = {"num_latents": num_latents, "normalize_decoder": False}
    k = config.get("k", details.get("k"))
    if name in _RESCALED:
        if name in ("topk", "abstopk") and "k" not in config:
            k = facts.need("k", int, folder, "how many latents fire")
        if isinstance(k, bool) or not isinstance(k, (int, float)) or not k > 0:
            raise StoreError(f"{path}: k must be a positive number, got {k!r}")
        if name in ("topk", "abstopk") and k != int(k):
            raise StoreError(f"{path}: k must be a whole number of latents per token, got {k!r}")
        options["k"] = max(1, round(k))
        if _flag(path, config, "rescale_acts_by_decoder_norm", "topk_threshold" in besides):
            _fold_decoder_norms(tensors)
    if details.get("matryoshka_widths"):
        options["matryoshka_widths"] = list(details["matryoshka_widths"])
    subtract = _flag(path, config, "apply_b_dec_to_input", "transcoder" not in name)
    if subtract and "transcoder" in name:
        raise StoreError(f"{path}: a transcoder's b_dec isn't of its input, but apply_b_dec_to_input is true")
    # How the library loads the model: then its writing matrices have no mean, and neither has the residual.
    loaded = metadata.get("model_from_pretrained_kwargs") or {}
    centred = bool(loaded.get("center_writing_weights")) and _is_of_residual(metadata.get("hook_name"))
    frame = _frame(folder, config, facts, tensors, subtract, centred)
    notes = []
    if before_6:
        notes.append("written by SAELens before version 6")
    if config.get("reshape_activations") == "hook_z":
        notes.append("takes the outputs of all attention heads, one behind the other")
    if frame.round_to and architecture in _UNROUNDED:
        notes.append(
            f"its library computes in {frame.round_to}, and codes here are exact: of latents that differ by"
            " less than such a number shows, another may fire"
        )
    origin = Origin(
        "saelens",
        model=metadata.get("model_name"),
        hook=_hook(metadata),
        hook_out=metadata.get("hook_name_out"),
        bos=metadata.get("prepend_bos"),
        trained_as=metadata.get("training_architecture"),
        k=k,
        l0=metadata.get("l0") or _measured_l0(folder / SPARSITY_NAME),
        notes=tuple(notes),
    )
    return Checkpoint(architecture, tensors, options, frame, origin)


def _measured_l0(path: Path) -> float | None:
    """Return how many latents fired per token at the end of a run: the sum of their frequencies."""
    if not path.is_file():
        return None
    logarithms = read_tensors(path).get("sparsity")
    found = None if logarithms is None else float((10 ** logarithms.double()).sum())
    return found if found is not None and math.isfinite(found) else None


def _current(config: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a configuration as version 6 writes them, and whether it was older."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (metadata or {}).get("sae_lens_version")
    if version and int(str(version).partition(".")[0]) >= 6:
        return config, False
    config = {_RENAMED.get(name, name): value for name, value in config.items()}
    config.setdefault("architecture", "standard")
    arguments = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn") == "topk" and arguments.get("k") is not None:
        config["architecture"], config["k"] = "topk", arguments["k"]
    elif config.get("activation_fn", "relu") not in ("relu", "topk"):
        raise InputError(f"an SAE of SAELens with activation {config['activation_fn']!r} isn't supported")
    if config.get("normalize_activations") is True:
        config["normalize_activations"] = "expected_average_only_in"
    if not config.get("normalize_activations"):
        config["normalize_activations"] = "none"
    config["metadata"] = {**config, **(metadata or {})}
    return config, True


def _weights(
    folder: Path, config: dict[str, Any], besides: tuple[str, ...], sizes: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Return the tensors by our names, in the type that the configuration asks for."""
    d_in, num_latents, d_out = sizes
    path = folder / WEIGHTS_NAME
    held = read_tensors(path)
    if "log_threshold" in held and "threshold" in besides:  # of training checkpoints before 6.30
        held["threshold"] = held.pop("log_threshold").exp()
    wanted: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, num_latents),
        "W_dec": (num_latents, d_out),
        "b_dec": (d_out,),
        **dict.fromkeys(besides, (num_latents,)),
    }
    if "topk_threshold" in wanted:
        wanted["topk_threshold"] = ()
    if "W_skip" in wanted:
        wanted["W_skip"] = (d_out, d_in)
    factor = held.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        if not config.get("finetuning_scaling_factor"):
            raise StoreError(f"{path} has a scaling_factor, but {CONFIG_NAME} says that none was finetuned")
        if factor.shape != (num_latents,) or not all_finite(factor):
            raise StoreError(f"{path}: scaling_factor must be {num_latents} finite numbers")
    tensors = check_tensors(
        path,
        held,
        wanted,
        format="SAELens",
        said_by=f"{CONFIG_NAME} (F={num_latents} latents, D={d_in})",
        ignored=("finetuning_scaling_factor",),
    )
    kind = _dtype(folder / CONFIG_NAME, config)
    renamed = {}
    for name, tensor in tensors.items():
        # The library reads all tensors in this one type, so a threshold kept in float32 acts rounded; the
        # running threshold of a training checkpoint is its own and stays as it is.
        tensor = tensor if name == "topk_threshold" else tensor.to(kind)
        renamed[_NAMES.get(name, name)] = tensor
    renamed["encoder.weight"] = renamed.pop("W_enc").T.contiguous()
    if factor is not None and config.get("finetuning_scaling_factor"):
        renamed["W_dec"] = renamed["W_dec"] * factor[:, None].to(kind)
    return renamed


def _fold_decoder_norms(tensors: dict[str, Tensor]) -> None:
    """Put the norms of the decoder's rows into the codes: p·‖w‖ is compared, and w/‖w‖ added up."""
    kind = tensors["W_dec"].dtype
    if "threshold" in tensors:
        # The library folds a BatchTopK when it writes it as a JumpReLU, in the type of the weights.
        tensors["threshold"] = tensors["threshold"].to(kind).double()
    else:
        # The others it rescales at every token; nothing here should be rounded to a narrow type once more.
        kind = torch.promote_types(kind, torch.float32)
    decoder = tensors["W_dec"].to(kind)
    norms = torch.linalg.vector_norm(decoder, dim=1).clamp(min=1e-8)
    tensors["W_dec"] = decoder / norms[:, None]
    tensors["encoder.weight"] = tensors["encoder.weight"].to(kind) * norms[:, None]
    tensors["encoder.bias"] = tensors["encoder.bias"].to(kind) * norms


def _hook(metadata: dict[str, Any]) -> str | None:
    """Return the place; one head of it, where only that was read, is no place that a module has."""
    hook, head = metadata.get("hook_name"), metadata.get("hook_head_index")
    return hook if hook is None or head is None else f"{hook}[{head}]"


def _is_of_residual(hook: str | None) -> bool:
    """Whether a place is the residual stream or what is added to it."""
    return hook is not None and bool(re.search(r"hook_(resid_\w+|mlp_out|attn_out|embed|pos_embed)$", hook))


def _frame(
    folder: Path,
    config: dict[str, Any],
    facts: Facts,
    tensors: dict[str, Tensor],
    subtract: bool,
    centred: bool,
) -> Frame:
    """Return the way in and out; a whitening is put into ``tensors``."""
    path = folder / CONFIG_NAME
    reshape = config.get("reshape_activations", "none")
    way = facts.get("normalize_activations", str, config.get("normalize_activations", "none"))
    if reshape not in ("none", "hook_z"):
        raise InputError(f"{path} says reshape_activations={reshape!r}; that isn't supported")
    if way not in _WAYS:
        raise InputError(f"{path} says normalize_activations={way!r}; supported are {', '.join(_WAYS)}")
    # What is known of public SAEs acts where the configuration leaves a place for it.
    read = facts.get if way == "expected_average_only_in" else facts.given
    scale = read("norm_scaling_factor", float)
    scaler = folder / SCALER_NAME
    if scaler.is_file():  # a training checkpoint: scale and whitening aren't in the weights yet
        said = read_json(scaler)
        if said.get("has_whitening"):
            _fold_whitening(folder, tensors, subtract)
            way = "none"
        scale = said.get("scaling_factor") or scale
    if way == "covariance_whitening":
        raise InputError(
            f"{path} wants whitened activations, but {WHITENING_NAME}, which says how, isn't there"
        )
    if way == "expected_average_only_in" and scale is None:
        meaning = "the factor that its activations were scaled by (√D / their mean norm)"
        scale = facts.need("norm_scaling_factor", float, folder, meaning)
    kind = str(config.get("dtype", "float32")).removeprefix("torch.")
    try:
        return Frame(
            subtract_b_dec=subtract,
            normalise=_WAYS[way],
            scale=scale or 1.0,
            scale_out=scale or 1.0,
            remove_mean=bool(facts.get("center_writing_weights", bool, centred)),
            round_to="" if kind in ("float32", "float64") else kind,
            undo="transcoder" not in str(config["architecture"]),
        )
    except (TypeError, ValueError) as error:
        raise StoreError(f"{scaler}: {error}") from error


def _fold_whitening(folder: Path, tensors: dict[str, Tensor], subtract: bool) -> None:
    """Put z = (x − mean) M and x̂ = ẑ M⁻¹ + mean into the weights, as the library does in the end."""
    path = folder / WHITENING_NAME
    d_in = tensors["encoder.weight"].shape[1]
    held = read_tensors(path)
    names = {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}
    found = check_tensors(path, held, names, format="SAELens")
    mean, into, back = (found[name].double() for name in names)
    weight = tensors["encoder.weight"].double() @ into.T
    if not subtract:  # else b_dec, which takes over the mean, is taken off anyway
        shift = weight @ mean
        for name in ("encoder.bias", "gate_bias", "mag_bias"):
            if name in tensors:
                gain = tensors["r_mag"].double().exp() if name == "mag_bias" else 1.0
                tensors[name] = (tensors[name].double() - gain * shift).float()
    tensors["encoder.weight"] = weight.float()
    tensors["W_dec"] = (tensors["W_dec"].double() @ back).float()
    tensors["b_dec"] = (tensors["b_dec"].double() @ back + mean).float()


def _flag(path: Path, config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise StoreError(f"{path}: {name} must be true or false, got {value!r}")
    return value


def _dtype(path: Path, config: dict[str, Any]) -> torch.dtype:
    name = str(config.get("dtype", "float32")).removeprefix("torch.")
    kind = getattr(torch, name, None)
    if kind not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise StoreError(f"{path}: dtype {config.get('dtype')!r} is no floating-point type")
    return kind  # type: ignore[no-any-return]


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as SAELens does at the end of a run.

    Raises:
        InputError: the library has nothing that makes the same codes; says why.
        StoreError: a file can't be written.
    """
    name = _written_name(checkpoint)
    subtract = checkpoint.frame.subtract_b_dec and "transcoder" not in name
    ready = folded(checkpoint, "SAELens", subtract=subtract)
    tensors, options, origin = dict(ready.tensors), ready.options, ready.origin
    num_latents, d_in = tensors["encoder.weight"].shape
    if "threshold" in tensors and not tensors["threshold"].dim():
        limit = tensors["threshold"].clamp(min=0).to(tensors["W_dec"].dtype)
        tensors["threshold"] = limit.expand(num_latents).contiguous()
    _, besides = _KINDS[name]
    held = {theirs: tensors[_NAMES.get(theirs, theirs)] for theirs in ("W_dec", "b_dec", *besides)}
    held["W_enc"] = tensors["encoder.weight"].T
    details = {key: options[key] for key in ("k", "matryoshka_widths") if options.get(key)}
    metadata = {
        "sae_lens_version": _LAYOUT,
        "model_name": origin.model,
        "hook_name": origin.hook,
        "hook_name_out": origin.hook_out,
        "prepend_bos": origin.bos,
        "l0": origin.l0,
        "training_architecture": origin.trained_as or _TRAINED_AS.get(ready.architecture),
        "training_architecture_details": details if name == "jumprelu" else None,
    }
    way = next(theirs for theirs, ours in _WAYS.items() if ours == ready.frame.normalise)
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": d_in,
        "d_sae": num_latents,
        "dtype": str(held["W_dec"].dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": subtract,
        "normalize_activations": way,
        "reshape_activations": "hook_z" if (origin.hook or "").endswith("hook_z") else "none",
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }
    if "transcoder" in name:
        config["d_out"] = len(held["b_dec"])
    if name in _RESCALED:
        config |= {"k": int(options["k"]), "rescale_acts_by_decoder_norm": False}
    write_tensors(folder / WEIGHTS_NAME, {key: held[key].contiguous() for key in sorted(held)}, {})
    write_json(folder / CONFIG_NAME, config)


def _written_name(checkpoint: Checkpoint) -> str:
    """Return which of the library's architectures makes the codes of a checkpoint."""
    architecture = checkpoint.architecture
    if architecture not in _WRITTEN:
        raise InputError(f"SAELens has no {architecture} autoencoders, only {', '.join(_WRITTEN)}")
    name = _WRITTEN[architecture]
    skips = "W_skip" in checkpoint.tensors
    if not (skips or is_transcoder(checkpoint)):
        return name
    if name not in ("standard", "jumprelu"):
        raise InputError(
            f"SAELens has transcoders and skip connections of relu and jumprelu only, not {name}"
        )
    if checkpoint.frame.undo and checkpoint.frame.normalise != "none":
        raise InputError("SAELens doesn't bring what its transcoders predict back from a normalisation")
    return ("" if name == "standard" else "jumprelu_") + ("skip_transcoder" if skips else "transcoder")


FORMAT = Format(
    "saelens",
    WEIGHTS_NAME,
    read,
    _recognises,
    beside=(CONFIG_NAME, SCALER_NAME, WHITENING_NAME, SPARSITY_NAME),
    write=write,
)

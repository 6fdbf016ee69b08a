"""dictionary_learning: ``trainer_N/ae.pt`` beside ``config.json``, and ``checkpoints/ae_STEP.pt`` below it.

encoder.weight [F,D] and decoder.weight [D,F], or W_enc [D,F] and W_dec [F,D]. ``config.json`` names the
class:

- AutoEncoder: relu(W (x − bias) + b). ``load_dictionary`` brings the decoder to unit length, and the codes
  with it, unless it is so already; here too.
- AutoEncoderNew: relu(W x + b)
- AutoEncoderTopK: the top k of relu(W (x − b_dec) + b); its threshold isn't used
- BatchTopKSAE, MatryoshkaBatchTopKSAE: p · [p > threshold], p = relu(W (x − b_dec) + b); a threshold of −1 is
  that of a training too short to have one, and keeps every p above 0
- JumpReluAutoEncoder: relu(p) · [p > threshold], p = W x + b
- GatedAutoEncoder: [e + gate_bias > 0] · relu(exp(r_mag) e + mag_bias), e = W (x − decoder_bias)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finescope.errors import InputError, StoreError
from finescope.sae.formats.checkpoint import Checkpoint, Origin
from finescope.sae.formats.files import check_tensors, read_json, read_pickle, whole
from finescope.sae.formats.folded import folded, is_transcoder
from finescope.sae.formats.format import Facts, Format
from finescope.sae.frame import Frame
from finescope.storage.files import atomic_path, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "ae.pt"

# The class: our architecture, whether b_dec is taken off the input, and by our names the file's. A name in
# capitals is a matrix that stands the other way round; an empty one is a number.
_LINEAR = {"encoder.weight": "encoder.weight", "encoder.bias": "encoder.bias", "W_dec": "decoder.weight"}
_PLAIN = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("relu", True, {**_LINEAR, "b_dec": "bias"}),
    "AutoEncoderNew": ("relu", False, {**_LINEAR, "b_dec": "decoder.bias"}),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", True, {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("matryoshka", True, {**_PLAIN, "threshold": "threshold"}),
    "JumpReluAutoEncoder": ("jumprelu", False, {**_PLAIN, "threshold": "threshold"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        {
            "encoder.weight": "encoder.weight",
            "W_dec": "decoder.weight",
            "b_dec": "decoder_bias",
            "r_mag": "r_mag",
            "gate_bias": "gate_bias",
            "mag_bias": "mag_bias",
        },
    ),
}
_TOPK = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_TURNED = ("decoder.weight", "W_enc")


def read(folder: Path, facts: Facts) -> Checkpoint:
    """Read a dictionary by the class that its configuration names."""
    return _read(folder, folder / CONFIG_NAME, folder / WEIGHTS_NAME, facts)


def read_step(file: Path, facts: Facts) -> Checkpoint:
    """Read a checkpoint of a training, whose configuration lies one folder up."""
    return _read(file, file.parent.parent / CONFIG_NAME, file, facts)


def _read(place: Path, path: Path, weights: Path, facts: Facts) -> Checkpoint:
    config = read_json(path)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise StoreError(f"{path} has no trainer, as configurations of dictionary_learning have")
    kind = trainer.get("dict_class")
    if kind not in _CLASSES:
        raise InputError(
            f"{path} is a dictionary of dictionary_learning of class {kind!r}, which isn't supported;"
            f" {', '.join(_CLASSES)} are"
        )
    architecture, subtract, names = _CLASSES[kind]
    d_in, num_latents = whole(path, trainer, "activation_dim"), whole(path, trainer, "dict_size")
    held = read_pickle(weights)
    if not isinstance(held, dict):
        raise StoreError(f"{weights} should hold a dictionary of tensors, but holds {type(held).__name__}")
    options: dict[str, Any] = {"num_latents": num_latents, "normalize_decoder": False}
    ignored: tuple[str, ...] = ()
    k = None
    if kind in _TOPK:
        k = _k(weights, held, trainer)
        options["k"] = k
        ignored = ("k", "threshold", "group_sizes")
    if architecture == "matryoshka":
        options["matryoshka_widths"] = _widths(weights, held, num_latents)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (num_latents, d_in),
        "W_enc": (d_in, num_latents),
        "decoder.weight": (d_in, num_latents),
        "W_dec": (num_latents, d_in),
        **dict.fromkeys(("encoder.bias", "b_enc", "r_mag", "gate_bias", "mag_bias"), (num_latents,)),
        **dict.fromkeys(("bias", "b_dec", "decoder.bias", "decoder_bias"), (d_in,)),
        "threshold": (num_latents,) if architecture == "jumprelu" else (),
    }
    found = check_tensors(
        weights,
        held,
        {name: shapes[name] for name in names.values()},
        format="dictionary_learning",
        said_by=f"{path.name} (F={num_latents} latents of width D={d_in})",
        ignored=ignored,
    )
    # load_dictionary reads narrow types into float32 and computes in that.
    found = {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in found.items()}
    tensors = {
        ours: found[name].T.contiguous() if name in _TURNED else found[name] for ours, name in names.items()
    }
    if "threshold" in tensors and architecture != "jumprelu":
        tensors["threshold"] = tensors["threshold"].double()
    notes: tuple[str, ...] = ()
    if kind == "AutoEncoder" and _bring_to_unit_length(tensors):
        notes = (
            "the decoder's rows are brought to unit length and the codes with them, as load_dictionary does",
        )
    if architecture in ("batchtopk", "matryoshka") and float(tensors["threshold"]) < 0:
        notes = ("the training ended before it had a threshold: every positive latent fires",)
    layer = trainer.get("layer")
    origin = Origin(
        "dictionary_learning",
        model=trainer.get("lm_name"),
        hook=trainer.get("submodule_name") or (None if layer is None else f"layer {layer}"),
        trained_as=trainer.get("trainer_class"),
        k=k,
        notes=notes,
    )
    return Checkpoint(architecture, tensors, options, Frame(subtract_b_dec=subtract), origin)


def _k(path: Path, held: dict[str, Any], trainer: dict[str, Any]) -> int:
    said = trainer.get("k")
    stored = held.get("k")
    k = int(stored) if isinstance(stored, Tensor) and stored.numel() == 1 else said
    if not isinstance(k, int) or k < 1:
        raise StoreError(f"{path}: k must be a positive integer, got {k!r}")
    if said is not None and said != k:
        raise StoreError(
            f"{path} says k={k}, its configuration k={said}; one of the two is of another training"
        )
    return k


def _widths(path: Path, held: dict[str, Any], num_latents: int) -> list[int]:
    sizes = held.get("group_sizes")
    if not isinstance(sizes, Tensor) or int(sizes.sum()) != num_latents:
        raise StoreError(
            f"{path}: group_sizes must be numbers of latents that add up to {num_latents}, got {sizes}"
        )
    return sizes.cumsum(0).tolist()


def _bring_to_unit_length(tensors: dict[str, Tensor]) -> bool:
    """Divide decoder rows by their norms and multiply the encoder's by them; return whether it was due."""
    if _is_unit(tensors["W_dec"]):
        return False
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    tensors["encoder.weight"] = tensors["encoder.weight"] * norms[:, None]
    tensors["encoder.bias"] = tensors["encoder.bias"] * norms
    return True


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as the class of the library that makes the same codes of it.

    Raises:
        InputError: there is no such class; says why.
        StoreError: a file can't be written.
    """
    architecture = checkpoint.architecture
    unit = architecture == "relu" and _is_unit(checkpoint.tensors["W_dec"].float())
    kinds = [
        name
        for name, (ours, subtract, _) in _CLASSES.items()
        if ours == architecture and (ours != "relu" or subtract == unit)
    ]
    if not kinds:
        known = dict.fromkeys(ours for ours, _, _ in _CLASSES.values())
        raise InputError(f"dictionary_learning has no {architecture} autoencoders, only {', '.join(known)}")
    (kind,) = kinds
    _, subtract, names = _CLASSES[kind]
    if is_transcoder(checkpoint) or "W_skip" in checkpoint.tensors:
        raise InputError("dictionary_learning has no transcoders and no skip connections")
    if checkpoint.frame.normalise != "none" or checkpoint.frame.round_to:
        how = checkpoint.frame.normalise.replace("_", " ")
        what = f"computed in {checkpoint.frame.round_to}" if how == "none" else f"of activations under {how}"
        raise InputError(f"dictionary_learning can't hold an autoencoder {what}")
    ready = folded(checkpoint, "dictionary_learning", subtract=subtract)
    tensors = {
        theirs: ready.tensors[ours].T if theirs in _TURNED else ready.tensors[ours]
        for ours, theirs in names.items()
    }
    num_latents, d_in = ready.tensors["encoder.weight"].shape
    trainer: dict[str, Any] = {
        "dict_class": kind,
        "trainer_class": ready.origin.trained_as,
        "activation_dim": d_in,
        "dict_size": num_latents,
        "lm_name": ready.origin.model,
        "submodule_name": ready.origin.hook,
    }
    if kind in _TOPK:
        k = int(ready.options["k"])
        trainer["k"] = k
        tensors["k"] = torch.tensor(k, dtype=torch.int32)
        # What says that there is none: a TopK needs none, and without it a BatchTopK keeps every p above 0.
        limit = float(ready.tensors.get("threshold", torch.tensor(-1.0)))
        tensors["threshold"] = torch.tensor(limit if limit > 0 else -1.0, dtype=torch.float32)
    if architecture == "matryoshka":
        widths = ready.options["matryoshka_widths"]
        tensors["group_sizes"] = torch.tensor(widths).diff(prepend=torch.zeros(1, dtype=torch.int64))
    with atomic_path(folder / WEIGHTS_NAME) as path:
        torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    write_json(folder / CONFIG_NAME, {"trainer": trainer, "buffer": {}})


def _is_unit(decoder: Tensor) -> bool:
    norms = torch.linalg.vector_norm(decoder, dim=1)
    return torch.allclose(norms, torch.ones_like(norms))  # the library's own test


FORMAT = Format("dictionary_learning", WEIGHTS_NAME, read, beside=(CONFIG_NAME,), write=write)
STEP = Format(
    "dictionary_learning",
    "ae_*.pt",
    read_step,
    lambda file: (file.parent.parent / CONFIG_NAME).is_file(),
    single=True,
    beside=("../config.json",),
)

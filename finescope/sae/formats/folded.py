"""Putting into the weights what happens around them, so that a format without a word for it holds it too."""

from __future__ import annotations

import dataclasses
from functools import reduce

import torch
from torch import Tensor

from finescope.errors import InputError
from finescope.sae.formats.checkpoint import Checkpoint

_BIASES = ("encoder.bias", "gate_bias", "mag_bias")


def is_transcoder(checkpoint: Checkpoint) -> bool:
    """Whether it predicts another place of the model than the one it reads."""
    tensors = checkpoint.tensors
    d_in = tensors["encoder.weight"].shape[1]
    return bool(checkpoint.origin.hook_out) or not checkpoint.frame.undo or len(tensors["b_dec"]) != d_in


def folded(checkpoint: Checkpoint, format: str, *, subtract: bool) -> Checkpoint:
    """Return the same autoencoder, with scales and a centre of its activations put into its weights.

    Sums are made in float64 and rounded once, to float32 or wider; weights that need none keep their values.

    Args:
        checkpoint: what is to be written.
        format: where to, for messages.
        subtract: whether the encoder is to see x − b_dec; b_dec goes into the encoder's bias otherwise.

    Raises:
        InputError: something that no weights can stand for; names it.
    """
    frame, tensors = checkpoint.frame, dict(checkpoint.tensors)
    d_in = tensors["encoder.weight"].shape[1]
    if frame.wide != 1:
        raise InputError(
            f"{format} can't hold multi_topk, by which sparsify reconstructs from {frame.wide} times k"
            " latents; set multi_topk to false in its cfg.json: the codes stay as they are"
        )
    if frame.remove_mean:
        raise InputError(f"{format} can't hold an autoencoder of activations whose mean was taken out")
    if "value_scale" in tensors:
        raise InputError(
            f"{format} can't hold codes that are chosen by one value and worth another, as those are that go"
            " by the decoder's norms"
        )
    if subtract and len(tensors["b_dec"]) != d_in:
        raise InputError(
            f"{format} can't hold a transcoder from width {d_in} to another, {len(tensors['b_dec'])}"
        )
    mean = tensors.pop("input_mean", None)
    if mean is not None and frame.normalise != "none":
        raise InputError(f"{format} can't hold activations that are centred first and then normalised")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dim()}
    kind = reduce(torch.promote_types, kinds, torch.float32)
    same = frame.scale == frame.scale_out == 1 and mean is None and subtract == frame.subtract_b_dec
    if frame.round_to:
        if not same:
            raise InputError(
                f"{format} can't hold an autoencoder that its library computes in {frame.round_to}; set dtype"
                " to float32 in its cfg.json to have it computed in that"
            )
        kind = getattr(torch, frame.round_to)
    if not same:
        _fold(tensors, checkpoint, mean, subtract)
    tensors = {name: tensor.to(kind) if tensor.dim() else tensor for name, tensor in tensors.items()}
    plain = dataclasses.replace(frame, subtract_b_dec=subtract, scale=1.0, scale_out=1.0)
    return dataclasses.replace(checkpoint, tensors=tensors, frame=plain)


def _fold(tensors: dict[str, Tensor], checkpoint: Checkpoint, mean: Tensor | None, subtract: bool) -> None:
    """Change tensors, in float64, so that they need no scale and no centre.

    The encoder makes W (s (x − m) − c) + b of x, with c = b_dec or 0; the new one sW (x − c') + b'.
    """
    frame = checkpoint.frame
    weight, b_dec = tensors["encoder.weight"].double(), tensors["b_dec"].double()
    centre = b_dec if frame.subtract_b_dec else torch.zeros(weight.shape[1], dtype=torch.float64)
    back = frame.scale_out if frame.undo else 1.0
    out = b_dec / back
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].double() / back
    if mean is not None:
        centre = centre + frame.scale * mean.double()
        out = out + mean.double()
        if "W_skip" in tensors:
            out = out - tensors["W_skip"] @ mean.double()
    if subtract:
        centre = centre - frame.scale * out
    shift = weight @ centre
    for name in _BIASES:
        if name in tensors:
            gain = tensors["r_mag"].double().exp() if name == "mag_bias" else 1.0
            tensors[name] = tensors[name].double() - gain * shift
    tensors["encoder.weight"] = weight * frame.scale
    tensors["W_dec"] = tensors["W_dec"].double() / back
    tensors["b_dec"] = out

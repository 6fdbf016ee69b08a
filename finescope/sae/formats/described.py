"""What the files of an autoencoder say of it, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finescope.sae.formats.checkpoint import Checkpoint


def describe(checkpoint: Checkpoint, missing: Mapping[str, str]) -> dict[str, Any]:
    """Return what is known of an autoencoder, by words for people; what nobody says is left out.

    Args:
        checkpoint: from ``known.look``.
        missing: the facts that its files leave out.
    """
    tensors, origin, frame = checkpoint.tensors, checkpoint.origin, checkpoint.frame
    num_latents, d_in = tensors["encoder.weight"].shape
    d_out = len(tensors["b_dec"])
    kinds = dict.fromkeys(
        str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.dim()
    )
    k = None if "k" in missing else origin.k or checkpoint.options.get("k")
    uses_k = "topk" in checkpoint.architecture or checkpoint.architecture in ("groupmax", "matryoshka")
    found: dict[str, Any] = {
        "format": origin.format,
        "architecture": checkpoint.architecture,
        "trained as": origin.trained_as,
        "width": d_in,
        "latents": num_latents,
        "width of what it predicts": d_out if d_out != d_in else None,
        "k": k if uses_k or origin.k else None,
        "L0": origin.l0,
        "element type": ", ".join(kinds),
        "model": origin.model,
        "reads": origin.hook,
        "predicts": origin.hook_out,
        "start token": {True: "before every text", False: "none", None: None}[origin.bos],
        "activations": "; ".join(frame.words()) or "taken as they are",
        "b_dec": "taken off the input" if frame.subtract_b_dec else "not taken off the input",
        "skip connection": "linear" if "W_skip" in tensors else None,
        "notes": list(origin.notes),
        "asks for": {name: f"{meaning} (sae_facts.{name})" for name, meaning in missing.items()},
    }
    return {name: value for name, value in found.items() if value not in (None, [], {})}

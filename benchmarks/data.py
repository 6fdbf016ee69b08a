"""Inputs: Gaussian rows, rows like an LLM's residual stream, a real model's hidden states, sparse codes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finescope import SparseCodes

KINDS = ("gaussian", "real", "heavy-tailed", "common mean")
# Width of the real rows, and how many there are.
REAL_D, REAL_ROWS = 384, 65536


def rows(kind: str, n: int, d: int, seed: int = 0) -> Tensor:
    """[n,d] float32 rows.

    "heavy-tailed": six coordinates a hundred times the others, and a common mean. "common mean": a mean ten
    times the spread around it, so that all cosines are about 0.99. "real": hidden states of all-MiniLM-L6-v2
    over docstrings, of which there are ``REAL_ROWS``, d = ``REAL_D``; the seed chooses.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "real":
        states = hidden_states()
        if d != states.shape[1] or n > len(states):
            raise ValueError(f"real rows are [{len(states)}, {states.shape[1]}], asked for [{n}, {d}]")
        return states[torch.randperm(len(states), generator=generator)[:n]]
    x = torch.randn(n, d, generator=generator)
    if kind == "heavy-tailed":
        outliers = torch.randperm(d, generator=torch.Generator().manual_seed(7))[:6]
        x[:, outliers] *= 100.0
        x += torch.randn(d, generator=torch.Generator().manual_seed(8))
    if kind == "common mean":
        x += 10.0 * torch.randn(d, generator=torch.Generator().manual_seed(8))
    return x


@functools.cache
def hidden_states() -> Tensor:
    """[REAL_ROWS, REAL_D] float32, the last block's output for every token; made once and kept in a file."""
    place = Path(tempfile.gettempdir()) / f"finescope-bench-minilm-{REAL_ROWS}.npy"
    if place.exists():
        return torch.from_numpy(np.load(place))
    from transformers import AutoModel, AutoTokenizer

    from finescope.demo.docstrings import collect_docstrings
    from finescope.demo.text import find_model

    folder = find_model()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [row.text for row in collect_docstrings(max_per_label=60)]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    # Texts of nearly equal lengths go together, so that little is padding.
    texts = [text for i in range(0, len(texts), 512) for text in sorted(texts[i : i + 512], key=len)]
    parts, held = [], 0
    with torch.no_grad():
        for first in range(0, len(texts), 32):
            batch = tokenizer(
                texts[first : first + 32],
                padding=True,
                truncation=True,
                max_length=128,
                return_tensors="pt",
            )
            states = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
            parts.append(states)
            held += len(states)
            if held >= REAL_ROWS:
                break
    if held < REAL_ROWS:
        raise RuntimeError(f"the installed libraries give {held} tokens, {REAL_ROWS} are needed")
    states = torch.cat(parts)[:REAL_ROWS].float().contiguous()
    temporary = place.with_suffix(".tmp.npy")
    np.save(temporary, states.numpy())
    temporary.replace(place)
    return states


def encoder(f: int, d: int, seed: int = 1, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight [f,d] with rows of about unit length, and bias [f].

    With ``rows`` the directions are differences of these from their mean, as where an autoencoder starts from
    data, and the bias takes the mean out.
    """
    generator = torch.Generator().manual_seed(seed)
    if rows is None:
        weight = torch.randn(f, d, generator=generator) / d**0.5
        return weight, torch.randn(f, generator=generator) * 0.01
    mean = rows.mean(dim=0)
    chosen = rows[torch.randint(0, len(rows), (f,), generator=generator)] - mean
    chosen += 0.1 * chosen.std() * torch.randn(f, d, generator=generator)  # rows may be chosen twice
    weight = torch.nn.functional.normalize(chosen, dim=1)
    return weight, -(weight @ mean)


def codes(n: int, nnz: int, f: int, seed: int = 0) -> SparseCodes:
    """n codes of nnz entries each; latents are as unequally common as in a trained autoencoder (Zipf).

    Which latents are common does not depend on the seed, so queries and corpus share them.
    """
    generator = np.random.default_rng(seed)
    common = 1.0 / np.arange(1, f + 1) ** 0.6
    edges = np.cumsum(common / common.sum())
    # Draws with replacement, repeated latents moved on to the next free one: cheap, and nnz is exact.
    drawn = np.sort(np.searchsorted(edges, generator.random((n, nnz), dtype=np.float32)), axis=1)
    step = np.arange(nnz)
    drawn = np.maximum.accumulate(drawn - step, axis=1) + step
    drawn = np.minimum(drawn, f - nnz + step)
    narrow = np.uint16 if f <= 1 << 16 else np.int32
    indices = np.random.default_rng(7).permutation(f).astype(narrow)[drawn]
    order = np.argsort(indices, axis=1)
    values = generator.gamma(2.0, 1.0, size=(n, nnz)).astype(np.float16)
    return SparseCodes(
        torch.arange(0, n * nnz + 1, nnz, dtype=torch.int64),
        torch.from_numpy(np.take_along_axis(indices, order, axis=1).reshape(-1)),
        torch.from_numpy(np.take_along_axis(values, order, axis=1).reshape(-1)),
        f,
    )

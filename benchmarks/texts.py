"""Real text: sentences of installed libraries' docstrings, and what MiniLM makes of them.

Each is made once, and kept in the folder for temporary files.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finescope import SparseCodes

SHORTEST = 30
"""Characters."""
MAX_LENGTH = 256
"""Tokens of a text that are read, which is what sentence-transformers reads with this model."""


def kept(name: str) -> Path:
    """Where something that takes long to make is kept."""
    return Path(tempfile.gettempdir()) / f"finescope-bench-{name}"


@functools.cache
def sentences() -> list[str]:
    """Every sentence once, in an order that has nothing to do with where it comes from; some 28,000."""
    place = kept("sentences.json")
    if not place.exists():
        from finescope.demo.docstrings import collect_docstrings

        parts = (re.split(r"(?<=[.!?])\s+", row.text) for row in collect_docstrings(max_per_label=0))
        found = list(dict.fromkeys(text for part in parts for text in part if len(text) >= SHORTEST))
        order = np.random.default_rng(0).permutation(len(found))
        place.with_suffix(".new").write_text(json.dumps([found[i] for i in order]))
        place.with_suffix(".new").replace(place)
    held: list[str] = json.loads(place.read_text())
    return held


def some(n: int) -> list[str]:
    """The first n sentences.

    Raises:
        ValueError: the installed libraries have fewer.
    """
    held = sentences()
    if n > len(held):
        raise ValueError(
            f"the docstrings of the installed libraries have {len(held)} sentences, {n} are needed"
        )
    return held[:n]


def model_folder() -> str:
    """The model's folder."""
    from finescope.demo.text import find_model

    return find_model()


def plain_model() -> tuple[Any, Any]:
    """Tokenizer and model as transformers loads them."""
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder()
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def mean_pooled(tokenizer: Any, model: Any, texts: list[str], batch: int = 64) -> Tensor:
    """[N,D] means of each text's last hidden states, as one writes it by hand: batches sorted by length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    out = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode():
        for first in range(0, len(order), batch):
            chosen = order[first : first + batch]
            given = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            mask = given["attention_mask"][..., None].float()
            out[chosen] = (model(**given).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return out


@functools.cache
def embeddings(n: int) -> Tensor:
    """[n,384] unit rows: the sentence embeddings of the first n sentences."""
    place = kept(f"embeddings-{n}.npy")
    if not place.exists():
        rows = torch.nn.functional.normalize(mean_pooled(*plain_model(), some(n)))
        np.save(place.with_suffix(".new.npy"), rows.numpy())
        place.with_suffix(".new.npy").replace(place)
    return torch.from_numpy(np.load(place))


def write_rows(path: Path, texts: list[str]) -> None:
    """A corpus of one column."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write_job(folder: Path, n: int, targets: int) -> tuple[Path, Path]:
    """A corpus of n sentences, and others as targets."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen, corpus, seeds = some(n + targets), folder / "corpus.jsonl", folder / "targets.jsonl"
    write_rows(corpus, chosen[targets:])
    write_rows(seeds, chosen[:targets])
    return corpus, seeds


def curate(folder: Path, n: int, targets: int = 20, k: int = 1000, options: Sequence[str] = ()) -> Path:
    """Run ``finescope curate`` on n sentences, of which others are the targets; returns its folder."""
    corpus, seeds = write_job(folder, n, targets)
    command = [sys.executable, "-m", "finescope", "curate", "--model", model_folder(), "--quiet"]
    command += ["--targets", str(seeds), "--corpus", str(corpus), "--out", str(folder / "run")]
    subprocess.run([*command, "-k", str(k), *options], check=True, stdout=subprocess.PIPE)
    return folder / "run"


@functools.cache
def codes(n: int) -> SparseCodes:
    """The codes of n sentences, of an autoencoder that ``finescope curate`` trained on them."""
    from finescope.embeddings import CodeStore

    run = curate(kept(f"curated-{n}"), n)  # resumes: what is there isn't made again
    return CodeStore(run / "codes" / "corpus").codes()

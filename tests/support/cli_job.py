"""A curation job small enough for a test: a random transformer on disk, and rows about two topics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = [
    "cats",
    "dogs",
    "birds",
    "fish",
    "purr",
    "bark",
    "sing",
    "swim",
    "fur",
    "tail",
    "wing",
    "fin",
    "stars",
    "planets",
    "moons",
    "comets",
    "orbit",
    "shine",
    "spin",
    "fall",
    "light",
    "gravity",
    "telescope",
    "rocket",
    "the",
    "a",
    "of",
    "and",
    "in",
    "to",
    "is",
    "with",
    "very",
    "small",
    "large",
    "old",
    "new",
]


def save_tiny_model(folder: Path, width: int = 32) -> Path:
    """Write a two-layer BERT of random weights over a word-level vocabulary; return the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * width,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_wild(model: Path) -> None:
    """Give the model of ``save_tiny_model`` activations that float16 can't hold."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.output.LayerNorm.weight"))
    weights[name] = weights[name] * 1e6
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def rows_of(topic: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return labelled rows about animals or the sky, every one different."""
    import random

    words = WORDS[:12] if topic == "animals" else WORDS[12:24]
    chosen = random.Random(f"{topic}/{seed}")
    filler = WORDS[24:]
    rows = []
    for number in range(count):
        text = [chosen.choice(words if place % 3 else filler) for place in range(chosen.randint(9, 15))]
        rows.append({"id": f"{topic}-{seed}-{number}", "text": " ".join(text), "label": topic})
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_job(folder: Path, animals: int = 30, sky: int = 90) -> Path:
    """Write a model, a shuffled corpus and targets about animals into ``folder``."""
    import random

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_model(folder / "model")
    rows = rows_of("animals", animals) + rows_of("sky", sky)
    random.Random(1).shuffle(rows)
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "seeds.jsonl", rows_of("animals", 6, seed=1))
    return folder


def save_run(folder: Path, *options: object, corpus: str = "corpus.jsonl") -> Path:
    """Curate a job of ``save_job``, one of whose targets is a row of the corpus; return the run's folder.

    The corpus may be written as Parquet: that is in its name.
    """
    from click.testing import CliRunner

    from finescope.cli import main

    save_job(folder)
    with (folder / "seeds.jsonl").open("a") as file:
        file.write((folder / "corpus.jsonl").read_text().splitlines()[20] + "\n")
    if corpus != "corpus.jsonl":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = map(json.loads, (folder / "corpus.jsonl").read_text().splitlines())
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / corpus)
    arguments = [
        "curate", "--model", folder / "model", "--layer", "layers.0", "--targets", folder / "seeds.jsonl",
        "--corpus", folder / corpus, "--out", folder / "run", "-k", 12, "--draws", 0,
        "--set", "training.num_epochs=1", *options,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return folder / "run"

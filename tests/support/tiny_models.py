"""Tiny random models of the common families, with a tokenizer made on the spot: no file, no network."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from finescope.corpus import Row

WORDS = [f"w{number}" for number in range(100)]
WIDTH = 32
CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('unknown role') }}{% endif %}"
    "<turn> {{ m['role'] }} {{ m['content'] }} {% endfor %}"
)


def make_tokenizer(
    *, padding_side: str = "right", bos: bool = True, eos: bool = False, pad: bool = True, chat: bool = False
) -> Any:
    """A whitespace tokenizer: 100 words, start/end/unknown/padding tokens and a chat marker."""
    vocabulary = {
        name: index for index, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<turn>", *WORDS])
    }
    vocabulary |= {"user": len(vocabulary), "assistant": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
        padding_side=padding_side,
        model_max_length=64,
    )
    fast.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    if chat:
        fast.chat_template = CHAT
    return fast


# Heads of width 16: with narrower ones torch's attention rounds by which thread an item falls to.
_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_ROPE = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 64}

_ENDS = {"bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, tuple[Any, str]] = {
    "llama": (lambda: LlamaModel(LlamaConfig(**_ROPE)), "layers.1"),
    "llama-lm": (lambda: LlamaForCausalLM(LlamaConfig(**_ROPE)), "layers.1"),
    "qwen2": (lambda: Qwen2Model(Qwen2Config(**_ROPE)), "model.layers.1"),
    "gpt2": (
        lambda: GPT2Model(
            GPT2Config(vocab_size=128, n_embd=WIDTH, n_layer=3, n_head=2, n_positions=64, **_ENDS)
        ),
        "layers.1",
    ),
    "bert": (
        lambda: BertModel(BertConfig(**_SIZES, intermediate_size=64, max_position_embeddings=64)),
        "layer.1",
    ),
}


@functools.cache
def make_model(family: str) -> nn.Module:
    """A random model with weights large enough that every token's context shows."""
    torch.manual_seed(7)
    model: nn.Module = FAMILIES[family][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()


def make_rows(count: int, *, longest: int = 60, seed: int = 0) -> list[Row]:
    """Rows of 1 … ``longest`` random words, so that many lengths occur."""
    draw = random.Random(seed)
    return [
        Row(
            f"d{number}",
            " ".join(draw.choices(WORDS, k=draw.randint(1, longest))),
            place=f"t.jsonl:{number + 1}",
        )
        for number in range(count)
    ]


def save_rows(folder: Path, **files: tuple[int, int]) -> None:
    """Write ``NAME.jsonl`` with rows of ``make_rows`` for each NAME=(count, seed)."""
    for name, (count, seed) in files.items():
        rows = [{"id": f"{name}-{row.id}", "text": row.text} for row in make_rows(count, seed=seed)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

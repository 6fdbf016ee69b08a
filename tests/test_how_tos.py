"""What the documentation's how-tos say is what happens: their code and commands are run, in their order.

Names of models and autoencoders that only the hub has are replaced by small ones of the same kind. Fails if a
block of Python raises, or a command ends with another code than 0. Blocks titled "needs …" are left out where
a package that they name isn't installed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from finescope.cli import main
from support.cli_job import save_job

PAGES = Path(__file__).resolve().parent.parent / "docs" / "pages"
HOW_TOS = sorted(path.stem for path in (PAGES / "how-to").glob("*.md"))
BLOCK = re.compile(r'^```(python|bash)(?: title="needs ([\w, ]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SCOPE = "layer_20/width_16k/average_l0_71"


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Return (language, packages that it needs, code) of a page's blocks."""
    return BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))


def save_gemma(folder: Path) -> Path:
    """Write a Gemma 2 of random weights, 21 thin layers deep, with the tokenizer that lies there."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(
            Gemma2Config(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=21,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    return folder


def save_gemma_scope(folder: Path, width: int = 32, latents: int = 128) -> Path:
    """Write a JumpReLU autoencoder as Gemma Scope lies on the hub."""
    random = np.random.default_rng(0)
    decoder = random.standard_normal((latents, width)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    file = folder / SCOPE / "params.npz"
    file.parent.mkdir(parents=True)
    np.savez(
        file,
        W_enc=decoder.T.copy(),
        W_dec=decoder,
        b_enc=np.zeros(latents, np.float32),
        b_dec=np.zeros(width, np.float32),
        threshold=np.full(latents, 0.5, np.float32),
    )
    return folder


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands in the place of names that the hub has, and of names to be filled in."""
    job = save_job(tmp_path_factory.mktemp("how-to") / "job")
    gemma = tmp_path_factory.mktemp("gemma") / "gemma-2-2b"
    (job / "model").rename(job / "bert")
    for file in (job / "bert").glob("*token*"):
        gemma.mkdir(exist_ok=True)
        (gemma / file.name).write_bytes(file.read_bytes())
    scope = save_gemma_scope(tmp_path_factory.mktemp("scope") / "gemma-scope-2b-pt-res")
    return {
        "google/gemma-scope-2b-pt-res": str(scope),
        "google/gemma-2-2b": str(save_gemma(gemma)),
        "corpus.jsonl": str(job / "corpus.jsonl"),
        "seeds.jsonl": str(job / "seeds.jsonl"),
        "MODEL": str(job / "bert"),
        "LAYER": "encoder.layer.0",
    }


@pytest.mark.parametrize("page", [f"how-to/{name}" for name in HOW_TOS] + ["api/index"])
def test_a_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, str], page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    found = blocks(page)
    assert found
    (tmp_path / "data").mkdir()  # where a pipeline that stands in a page finds its documents
    shutil.copy(there["corpus.jsonl"], tmp_path / "data")
    for language, needed, code in found:
        if any(find_spec(package) is None for package in needed.replace(",", "").split()):
            continue
        if language == "python":
            exec(compile(code, f"{page}.md", "exec"), names)
            continue
        for line in code.splitlines():
            words = [_replaced(word, there) for word in shlex.split(line)]
            assert words.pop(0) == "finescope", line
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"


def _replaced(word: str, there: dict[str, str]) -> str:
    for name, place in there.items():
        if word == name or word.startswith(f"{name}#"):
            return place + word[len(name) :]
    return word


def test_every_how_to_stands_in_the_menu() -> None:
    menu = (PAGES.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert HOW_TOS
    assert all(f"how-to/{name}.md" in menu for name in HOW_TOS)

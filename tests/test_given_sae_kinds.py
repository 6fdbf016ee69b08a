"""Autoencoders of every architecture and way in, from their libraries' own files, through a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from finescope.activations import ActivationTap
from finescope.corpus import open_corpus
from finescope.embeddings.store import CodeStore
from finescope.progress import Reporter
from finescope.sae import load_sae
from finescope.workflow.job import Job
from finescope.workflow.run import Run
from support.tiny_models import make_tokenizer, save_rows

DATA = Path(__file__).parent / "data" / "sae"
CASES = {
    "sparsify/topk": "layers.0",
    "sparsify/groupmax": "layers.0",
    "sparsify/transcode": "layers.0.input",
    "saelens/standard_layer_norm": "layers.3",
    "saelens/jumprelu": "layers.3",
    "saelens/abstopk": "layers.3",
    "saelens/batchtopk_bf16": "layers.3",
    "dictionary_learning/batchtopk_norm": "layers.3",
    "dictionary_learning/matryoshka_norm": "layers.3",
    "dictionary_learning/gated_norm": "layers.3",
    "llama_scope/residual": "layers.15",
    "latentsae/cosine": "layers.15",  # whose files don't say
    "latentsae/lista": "layers.15",
    "latentsae/gated": "layers.15",
    "latentsae/batchtopk": "layers.15",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model of sixteen blocks as wide as the golden files, and rows."""
    place = tmp_path_factory.mktemp("kinds")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, num_hidden_layers=16, num_attention_heads=1, intermediate_size=32,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    model.save_pretrained(place / "model")
    make_tokenizer().save_pretrained(place / "model")
    save_rows(place, corpus=(30, 1), seeds=(4, 2))
    return place


@pytest.mark.parametrize("case", CASES)
def test_curate(case: str, folder: Path, tmp_path: Path) -> None:
    job = Job.from_dict(
        {
            "model": str(folder / "model"), "sae_path": str(DATA / case), "device": "cpu", "draws": 0,
            "corpus": [str(folder / "corpus.jsonl")], "targets": str(folder / "seeds.jsonl"),
            "out": str(tmp_path), "selection": {"k": 5}, "pooling": "mean", "activation_dtype": "float32",
            "top_k_activations": 64, "sinks": "keep",
        }
    )  # fmt: skip
    outcome = Run(job, Reporter(quiet=True)).curate()
    assert len(outcome.selection) == 5
    page = (tmp_path / "report.html").read_text()
    sae = load_sae(DATA / case)
    assert f"{sae.architecture} of {sae.origin.format}, 64 latents" in page

    rows = open_corpus(folder / "corpus.jsonl")
    tap = ActivationTap(
        str(folder / "model"), CASES[case], device="cpu", start=sae.origin.bos, activation_dtype="float32"
    )
    codes = CodeStore(tmp_path / "codes/corpus").codes().to_dense().numpy()
    for number, document in enumerate(tap.run(rows.rows())):
        dense = sae.encode_sparse(document.activations).to_dense().double().numpy()
        np.testing.assert_allclose(codes[number], dense.mean(0), rtol=1e-3, atol=1e-5)  # kept in float16

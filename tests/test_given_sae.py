"""An autoencoder that comes from elsewhere gets what it was trained on, or the run says that it doesn't.

Its width fits any layer of a model; nothing else would tell that it reads the wrong one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel

from finescope.activations.windows import Windower
from finescope.cli import main
from finescope.errors import InputError
from finescope.progress import Reporter
from finescope.sae import load_sae
from finescope.workflow.job import Job
from finescope.workflow.opening import Given, open_given
from support.tiny_models import make_rows, make_tokenizer, save_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model whose tokenizer puts a start token before a text, and rows."""
    place = tmp_path_factory.mktemp("given")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(place / "tiny-llama")
    make_tokenizer().save_pretrained(place / "tiny-llama")
    save_rows(place, corpus=(40, 1), seeds=(5, 2))
    return place


def saelens(place: Path, width: int = 32, **metadata: Any) -> Path:
    """A JumpReLU autoencoder in SAELens' files."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        "W_enc": torch.randn(width, 64, generator=generator),
        "W_dec": torch.randn(64, width, generator=generator),
        "b_enc": torch.zeros(64),
        "b_dec": torch.zeros(width),
        "threshold": torch.full((64,), 0.05),
    }
    place.mkdir(parents=True)
    save_file(tensors, place / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu", "d_in": width, "d_sae": 64, "dtype": "float32",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "tiny-llama", **metadata},
    }  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(config))
    return place


def opened(folder: Path, sae: Path, **job: Any) -> Given:
    values = {"model": str(folder / "tiny-llama"), "sae_path": str(sae), "device": "cpu", **job}
    return open_given(Job.from_dict(values), Reporter(quiet=True))


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.0.hook_resid_post", "layers.0"),
        ("blocks.1.hook_resid_pre", "layers.1.input"),
        ("blocks.1.hook_mlp_out", "layers.1.mlp"),
        ("blocks.1.attn.hook_z", "layers.1.self_attn.o_proj.input"),
        ("model.layers.1.output", "layers.1"),
    ],
)
def test_the_place_of_its_training_is_read(folder: Path, tmp_path: Path, hook: str, layer: str) -> None:
    given = opened(folder, saelens(tmp_path / "sae", hook_name=hook))
    assert given.tap.layer == layer
    assert f"at {hook}" in given.about[0]
    assert given.warnings == ()


def test_another_place_is_refused_and_the_same_by_another_name_is_not(folder: Path, tmp_path: Path) -> None:
    sae = saelens(tmp_path / "sae", hook_name="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match=r"trained at blocks\.1\.hook_resid_pre.*the run reads layers\.1;"):
        opened(folder, sae, layer="layers.1")
    assert opened(folder, sae, layer="layers.0").tap.layer == "layers.0"
    deep = saelens(tmp_path / "deep", hook_name="blocks.9.hook_resid_post")
    with pytest.raises(InputError, match=r"is of block 9, but the model's blocks are layers\.0 … layers\.2"):
        opened(folder, deep)


def test_a_place_that_cannot_be_read_needs_a_layer(folder: Path, tmp_path: Path) -> None:
    sae = saelens(tmp_path / "sae", hook_name="blocks.1.ln2.hook_normalized")
    with pytest.raises(InputError, match=r"hook_normalized can't be read.*--layer"):
        opened(folder, sae)
    given = opened(folder, sae, layer="layers.1")
    assert "hook_normalized, and the run reads layers.1" in given.warnings[0]


def test_without_a_word_about_its_place_the_run_says_which_it_takes(folder: Path, tmp_path: Path) -> None:
    given = opened(folder, saelens(tmp_path / "sae"))
    assert given.tap.layer == "layers.2"
    assert "its files don't say of which layer, so layers.2 is read" in given.about[0]


def test_one_of_another_model_or_width_is_spoken_of(folder: Path, tmp_path: Path) -> None:
    other = saelens(tmp_path / "a", hook_name="blocks.0.hook_resid_post", model_name="google/gemma-2-2b")
    assert "trained on google/gemma-2-2b" in opened(folder, other).warnings[0]
    same = saelens(tmp_path / "b", hook_name="blocks.0.hook_resid_post", model_name="someone/Tiny-Llama")
    assert opened(folder, same).warnings == ()
    wide = saelens(tmp_path / "c", 48, hook_name="blocks.0.hook_resid_post")
    with pytest.raises(InputError, match="width 48, but the layer gives width 32"):
        opened(folder, wide)


@pytest.mark.parametrize("bos", [True, False, None])
def test_the_start_token_is_as_in_training(folder: Path, tmp_path: Path, bos: bool | None) -> None:
    given = opened(folder, saelens(tmp_path / "sae", hook_name="blocks.0.hook_resid_post", prepend_bos=bos))
    assert given.tap.windower.prefix == ([] if bos is False else [1])
    said = " ".join(given.about)
    assert ("a start token stands" in said, "no start token stands" in said) == (bos is True, bos is False)
    (document,) = given.tap.run(make_rows(1, seed=9))
    ids = torch.tensor([[*given.tap.windower.prefix, *document.token_ids.tolist()]])
    model = LlamaModel.from_pretrained(folder / "tiny-llama")
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(document.activations, hidden[len(given.tap.windower.prefix) :])


def test_a_tokenizer_gets_a_start_token_or_loses_it() -> None:
    bare, starting = make_tokenizer(bos=False), make_tokenizer()
    assert Windower(bare, max_length=16).prefix == []
    assert Windower(bare, max_length=16, start=True).prefix == [1]
    assert Windower(starting, max_length=16).prefix == [1]
    assert Windower(starting, max_length=16, start=True).prefix == [1]
    assert Windower(starting, max_length=16, start=False).prefix == []
    starting.bos_token = None
    none = Windower(starting, max_length=16, start=False)
    assert (none.prefix, none.starts) == ([1], False)


def test_centred_residuals_are_known_from_how_the_model_was_loaded(folder: Path, tmp_path: Path) -> None:
    kwargs = {"center_writing_weights": True}
    place = saelens(
        tmp_path / "sae", hook_name="blocks.0.hook_resid_post", model_from_pretrained_kwargs=kwargs
    )
    given = opened(folder, place)
    assert "the mean over the width is taken out" in " ".join(given.about)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(1)) + 3
    plain = load_sae(saelens(tmp_path / "plain"))
    centred = plain.encode_sparse(x - x.mean(1, keepdim=True)).to_dense()
    torch.testing.assert_close(given.sae.encode_sparse(x).to_dense(), centred, rtol=1e-4, atol=1e-5)
    heads = saelens(tmp_path / "z", hook_name="blocks.0.attn.hook_z", model_from_pretrained_kwargs=kwargs)
    assert not load_sae(heads).frame.remove_mean


def test_a_transcoder_reads_what_goes_in(folder: Path, tmp_path: Path) -> None:
    from finescope.sae import SparseAutoencoder

    place = tmp_path / "run" / "layers.1.mlp"
    SparseAutoencoder(32).save(place)
    config = json.loads((place / "cfg.json").read_text())
    (place / "cfg.json").write_text(json.dumps(config | {"transcode": True}))
    assert opened(folder, tmp_path / "run").tap.layer == "layers.1.mlp.input"


def test_our_own_know_their_place_too(folder: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    model = ["--model", folder / "tiny-llama"]
    corpus = ["--corpus", folder / "corpus.jsonl"]
    acts, sae = tmp_path / "acts", tmp_path / "sae"
    assert call("activations", *model, "--layer", "layers.1", *corpus, "--out", acts).exit_code == 0
    assert call("train", acts, "--out", sae, "--num-latents", 64, "-k", 4, "--epochs", 1).exit_code == 0
    said = json.loads(call("sae", "info", sae, "--json").stdout)
    assert (said["model"], said["reads"]) == ("tiny-llama", "layers.1")
    given = opened(folder, sae)
    assert given.tap.layer == "layers.1"
    assert given.warnings == ()
    wrong = call("embed", *model, "--layer", "layers.0", "--sae", sae, *corpus, "--out", tmp_path / "codes")
    assert wrong.exit_code == 1
    assert "trained at layers.1" in wrong.stderr
    assert "the run reads layers.0" in wrong.stderr
    load_sae(sae).save(tmp_path / "elsewhere")
    assert load_sae(tmp_path / "elsewhere").origin.hook == "layers.1"


def test_a_run_says_it_all_and_so_does_its_report(folder: Path, tmp_path: Path) -> None:
    sae = saelens(
        tmp_path / "sae", hook_name="blocks.1.hook_resid_post", model_name="gpt2-small", prepend_bos=True
    )
    arguments = [
        "curate", "--model", folder / "tiny-llama", "--sae", sae, "--targets", folder / "seeds.jsonl",
        "--corpus", folder / "corpus.jsonl", "--out", tmp_path / "out", "-k", 5, "--draws", 0,
    ]  # fmt: skip
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    report = (tmp_path / "out/report.html").read_text()
    for words in (
        "jumprelu of saelens, 64 latents, trained on gpt2-small at blocks.1.hook_resid_post",
        "which is layers.1 here",
        "a start token stands before a text, as in its training",
    ):
        assert words in " ".join(result.stderr.split())
        assert words in report
    assert "autoencoder was trained on gpt2-small, and the run reads" in result.stderr
    assert "autoencoder was trained on gpt2-small, and the run reads" in report
    assert "layers.1" in report
    again = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert again.exit_code == 0
    assert "gpt2-small" not in again.stderr, "nothing is opened again"
    assert (tmp_path / "out/report.html").read_text().count("gpt2-small") == report.count("gpt2-small")

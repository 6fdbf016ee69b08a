"""Hidden states that vLLM has written become an activation store, which trains and embeds like any other.

The files are made by the model of transformers, in the format that vLLM's connector writes. Fails if: another
layer is read than the one asked for; tokens, rows and activations don't go together; special tokens get in; a
file that doesn't fit is taken, or refused without its name.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from finescope.activations import ActivationStore
from finescope.cli import main
from finescope.embeddings import CodeStore, extract_embeddings
from finescope.sae import load_sae
from support.cli_job import save_job, write_jsonl
from support.vllm_files import write_request, write_requests

LAYERS = (2, 0, 1)
"""As eagle_aux_hidden_state_layer_ids had them: in no order."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose corpus holds an empty row and one text twice, and vLLM's files of it: in another order."""
    folder = save_job(tmp_path_factory.mktemp("vllm"), animals=6, sky=9)
    rows = read(folder / "corpus.jsonl")
    rows[3:3] = [{"id": "nothing", "text": " "}, {"id": "again", "text": rows[0]["text"]}]
    write_jsonl(folder / "corpus.jsonl", rows)
    texts = [row["text"] for row in rows if row["text"].strip()]
    order = np.random.default_rng(3).permutation(len(texts))
    write_requests(folder / "states", folder / "model", [texts[at] for at in order], LAYERS)
    given = ["--model", folder / "model", "--layer", "layers.0", "--corpus", folder / "corpus.jsonl"]
    done = run("activations", *given, "--out", folder / "own")
    assert done.exit_code == 0, done.output
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def imported(
    job: Path, out: Path, *more: object, states: Path | None = None, layer: str = "layers.0"
) -> Result:
    given = ["--from-vllm", states or job / "states", "--model", job / "model", "--layer", layer]
    return run("activations", *given, "--out", out, *more)


def refused(job: Path, tmp_path: Path, *more: object, **given: Any) -> str:
    done = imported(job, tmp_path / "refused", *more, **given)
    assert done.exit_code == 1, done.output
    return " ".join(done.stderr.split())


def test_with_rows_it_is_the_store_that_the_model_itself_gives(job: Path, tmp_path: Path) -> None:
    done = imported(job, tmp_path / "store", "--vllm-layers", "2,0,1", "--corpus", job / "corpus.jsonl")
    assert done.exit_code == 0, done.output
    store, own = ActivationStore(tmp_path / "store"), ActivationStore(job / "own")
    wanted = [document for document in own.documents() if len(document.token_ids)]
    found = list(store.documents())
    assert [(d.index, d.id, d.place) for d in found] == [(d.index, d.id, d.place) for d in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        torch.testing.assert_close(one.activations, other.activations, rtol=2e-3, atol=2e-3)
    again = imported(job, tmp_path / "store", "--vllm-layers", "2,0,1", "--corpus", job / "corpus.jsonl")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(("layer", "number"), [("layers.0", 1), ("encoder.layer.1", 2)])
def test_the_layer_asked_for_is_read(job: Path, tmp_path: Path, layer: str, number: int) -> None:
    from safetensors.torch import load_file

    done = imported(job, tmp_path / "store", "--vllm-layers", "2,0,1", layer=layer)
    assert done.exit_code == 0, done.output
    documents = list(ActivationStore(tmp_path / "store").documents())
    names = sorted(path.name.removesuffix(".safetensors") for path in (job / "states").glob("*.safetensors"))
    assert [document.id for document in documents] == sorted(names, key=lambda name: int(name.split("-")[0]))
    for document in documents:
        file = load_file(job / "states" / f"{document.id}.safetensors")
        inner = file["hidden_states"][1:-1, LAYERS.index(number)]  # between [CLS] and [SEP]
        assert torch.equal(document.token_ids, file["token_ids"][1:-1])
        assert torch.equal(document.activations, inner.to(torch.float16))


def test_it_trains_an_autoencoder_that_embeds_rows(job: Path, tmp_path: Path) -> None:
    numbers = ("--vllm-layers", "2,0,1")
    assert imported(job, tmp_path / "store", *numbers, "--corpus", job / "corpus.jsonl").exit_code == 0
    done = run("train", tmp_path / "store", "--out", tmp_path / "sae", "--epochs", 2, "--sinks", "keep")
    assert done.exit_code == 0, done.output
    given = ["--model", job / "model", "--sae", tmp_path / "sae", "--corpus", job / "corpus.jsonl"]
    done = run("embed", *given, "--out", tmp_path / "codes", "--sinks", "keep", "--pooling", "mean")
    assert done.exit_code == 0, done.output  # the layer is the one that the autoencoder's file names
    sae, store = load_sae(tmp_path / "sae"), ActivationStore(tmp_path / "store")
    codes = extract_embeddings(sae, store, pooling="mean").to_dense()
    wanted = CodeStore(tmp_path / "codes").codes().to_dense()[store.indices.tolist()]
    torch.testing.assert_close(codes, wanted.float(), rtol=1e-2, atol=2e-2)


def test_rows_that_were_not_sent_are_left_out_and_said(job: Path, tmp_path: Path) -> None:
    rows = read(job / "corpus.jsonl")
    write_requests(tmp_path / "states", job / "model", [rows[5]["text"], rows[1]["text"]], [1])
    done = imported(job, tmp_path / "store", "--corpus", job / "corpus.jsonl", states=tmp_path / "states")
    assert done.exit_code == 0, done.output
    assert "14 rows have no file of vLLM's and are left out, the first at corpus.jsonl:1" in done.stderr
    documents = list(ActivationStore(tmp_path / "store").documents())
    assert [document.id for document in documents] == [rows[1]["id"], rows[5]["id"]]
    write_requests(tmp_path / "states", job / "model", ["purr bark sing"], [1], ["more/77"])
    said = refused(job, tmp_path, "--corpus", job / "corpus.jsonl", states=tmp_path / "states")
    assert "77.safetensors has 5 tokens that no row of corpus.jsonl has" in said


def test_the_layer_is_settled_by_the_numbers_that_vllm_had(job: Path, tmp_path: Path) -> None:
    assert "holds 3 layers; say with --vllm-layers which" in refused(job, tmp_path)
    assert "holds 3 layers, and --vllm-layers names 1, 2" in refused(job, tmp_path, "--vllm-layers", "1,2")
    said = refused(job, tmp_path, "--vllm-layers", "2,0,1", layer="layers.4")
    assert (
        "'layers.4' gives what vLLM calls 5, the state after so many blocks; the files hold 2, 0, 1" in said
    )
    said = refused(job, tmp_path, "--vllm-layers", "2,0,1", layer="layers.0.mlp")
    assert "'layers.0.mlp' is no block" in said
    assert "--vllm-layers 1,x" in refused(job, tmp_path, "--vllm-layers", "1,x")


def test_what_is_no_file_of_the_connector_is_named(job: Path, tmp_path: Path) -> None:
    ids, states = torch.arange(4) + 5, torch.ones(4, 1, 32)
    nan = states.clone()
    nan[2, 0, 3] = float("nan")
    blank = states.clone()
    blank[1] = 0
    cases = {
        "turned": (
            ids,
            torch.ones(1, 4, 32),
            r"hidden states [1, 4, 32] for token ids [4], not [T, layers, D]",
        ),
        "short": (ids[:3], states, "for token ids [3]"),
        "flat": (ids, torch.ones(4, 32), "hidden states [4, 32]"),
        "nameless": (None, states, "holds hidden_states, not hidden_states and token_ids"),
        "eight": (ids, states.to(torch.float8_e4m3fn), "holds hidden states in torch.float8_e4m3fn"),
        "prompt": (ids[:0], states[:0], "holds no token"),
        "nan": (ids, nan, "holds NaN or infinite activations"),
        "blank": (ids, blank, "no activations of 1 of its 4 tokens"),
    }
    for name, (tokens, activations, words) in cases.items():
        path = write_request(tmp_path / name / "7.safetensors", tokens, activations)
        said = refused(job, tmp_path, states=path.parent)
        assert f"{name}/7.safetensors" in said
        assert words in said, name
    path = write_request(tmp_path / "mixed" / "0.safetensors", ids, states)
    write_request(tmp_path / "mixed" / "1.safetensors", ids, torch.ones(4, 2, 32))
    said = refused(job, tmp_path, states=path.parent)
    assert "1.safetensors holds 2 layers of width 32, and 0.safetensors 1 of width 32" in said
    path = write_request(tmp_path / "special" / "0.safetensors", torch.tensor([2, 3]), states[:2])
    assert "no token but special ones" in refused(job, tmp_path, states=path.parent)


def test_files_that_are_not_whole_are_refused(job: Path, tmp_path: Path) -> None:
    path = write_request(tmp_path / "one" / "0.safetensors", torch.arange(4) + 5, torch.ones(4, 1, 32))
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "0.safetensors is being written by vLLM" in refused(job, tmp_path, states=path.parent)
    assert imported(job, tmp_path / "store", states=path.parent).exit_code == 0
    path.write_bytes(path.read_bytes()[:-8])
    done = imported(job, tmp_path / "cut", states=path.parent)
    assert done.exit_code == 1
    assert "0.safetensors is truncated or corrupt" in done.stderr
    path.rename(f"{path}.zst")
    assert "0.safetensors.zst is packed; unpack such files first" in refused(
        job, tmp_path, states=path.parent
    )
    assert "there is no folder" in refused(job, tmp_path, states=tmp_path / "none")
